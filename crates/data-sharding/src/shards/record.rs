//! The sample index: one record of 20 bytes a sample in a file that is mapped, so that ranks of a host share it.
//! Says where a sample lies, not what is in it.
//!
//! ```text
//! header, 64 bytes: magic "wrn-smpl" | version u32 | bytes a record u32 | samples u64 | shards u32 | classes u32
//!                   | XXH3-128 of all records, 16 bytes | zeros
//! record, 20 bytes: first block u32 | length u32 | shard u32 | label u32 | width u16 | height u16
//! ```
//! All little endian. A block has 512 bytes, as in tar, whose contents always start at a whole block. A size of 0x0
//! says that the image's header could not be read.

use std::io::Write;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::map::Map;
use crate::atomic::AtomicFile;
use crate::error::DataError;

pub(crate) const MAGIC: &[u8; 8] = b"wrn-smpl";
const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes of the index a sample.
pub(crate) const RECORD_BYTES: usize = 20;
pub(crate) const BLOCK_BYTES: u64 = 512;

/// Where a sample lies and what is known of it without decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) block: u32,
    pub(crate) length: u32,
    pub(crate) shard: u32,
    pub(crate) label: u32,
    pub(crate) width: u16,
    pub(crate) height: u16,
}

impl Record {
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.block) * BLOCK_BYTES
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset() + u64::from(self.length)
    }

    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let words = [self.block, self.length, self.shard, self.label];
        for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes[16..18].copy_from_slice(&self.width.to_le_bytes());
        bytes[18..20].copy_from_slice(&self.height.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; RECORD_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Record {
            block: word(0),
            length: word(4),
            shard: word(8),
            label: word(12),
            width: half(16),
            height: half(18),
        }
    }
}

/// An opened and checked sample index.
#[derive(Debug)]
pub(crate) struct SampleIndex {
    map: Map,
    checksum: u128,
}

impl SampleIndex {
    /// Maps the index and checks everything that can be checked without the shards' contents: its own checksum, and
    /// that every record lies inside its shard and names a class. `shard_bytes` are the sizes of the shards.
    pub(crate) fn open(path: &Path, shard_bytes: &[u64], classes: usize) -> Result<Self, DataError> {
        let map = Map::open(path)?;
        let checksum = check(map.bytes(), shard_bytes, classes)
            .map_err(|(problem, expected)| DataError::Invalid { path: path.into(), problem, expected })?;
        Ok(SampleIndex { map, checksum })
    }

    fn records(&self) -> &[[u8; RECORD_BYTES]] {
        self.map.bytes()[HEADER_BYTES..].as_chunks().0
    }

    pub(crate) fn len(&self) -> usize {
        self.records().len()
    }

    pub(crate) fn get(&self, sample: usize) -> Option<Record> {
        self.records().get(sample).map(Record::decode)
    }

    /// XXH3-128 of the records, which the seek index repeats.
    pub(crate) fn checksum(&self) -> u128 {
        self.checksum
    }
}

/// Checks a whole index file; gives its checksum, or what is wrong and what was expected.
fn check(bytes: &[u8], shard_bytes: &[u64], classes: usize) -> Result<u128, (String, String)> {
    let wrong = |problem: String, expected: &str| Err((problem, expected.to_owned()));
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return wrong(format!("has {} bytes", bytes.len()), "a header of 64 bytes");
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if &header[..8] != MAGIC {
        return wrong("is no sample index".into(), "a file that starts with `wrn-smpl`");
    }
    if (word(8), word(12)) != (VERSION, RECORD_BYTES as u32) {
        let problem = format!("is of version {} with {} bytes a record", word(8), word(12));
        return wrong(problem, "version 1 with 20 bytes a record");
    }
    let samples = u64::from(word(16)) | u64::from(word(20)) << 32;
    if samples.checked_mul(RECORD_BYTES as u64) != Some(body.len() as u64) {
        let problem = format!("promises {samples} samples but has {} bytes of records", body.len());
        return wrong(problem, "20 bytes a sample");
    }
    if (word(24) as usize, word(28) as usize) != (shard_bytes.len(), classes) {
        let problem = format!("belongs to {} shards and {} classes", word(24), word(28));
        return Err((problem, format!("{} and {classes}, as in the manifest", shard_bytes.len())));
    }
    if header[48..].iter().any(|&byte| byte != 0) {
        return wrong("has a header of another version".into(), "zeros at its end");
    }
    let checksum = xxh3_128(body);
    if checksum.to_le_bytes() != header[32..48] {
        return wrong("is damaged: its records do not have its checksum".into(), "an unchanged file");
    }
    for (sample, record) in body.as_chunks().0.iter().map(Record::decode).enumerate() {
        let size = shard_bytes.get(record.shard as usize).copied();
        if size.is_none_or(|size| record.end() > size) || record.label as usize >= classes {
            let problem = format!(
                "sample {sample} is said to be bytes {} to {} of shard {}, of class {}",
                record.offset(),
                record.end(),
                record.shard,
                record.label
            );
            return wrong(problem, "a place inside one of the shards and a class of the manifest");
        }
    }
    Ok(checksum)
}

/// Writes an index, record by record.
pub(crate) struct SampleIndexWriter {
    file: AtomicFile,
    hash: Xxh3Default,
}

impl SampleIndexWriter {
    /// Begins with an empty header, which is filled in at the end.
    pub(crate) fn create(path: &Path) -> Result<Self, DataError> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(&[0; HEADER_BYTES]).map_err(file.failed())?;
        Ok(SampleIndexWriter { file, hash: Xxh3Default::new() })
    }

    pub(crate) fn push(&mut self, record: &Record) -> Result<(), DataError> {
        let bytes = record.encode();
        self.hash.update(&bytes);
        self.file.write_all(&bytes).map_err(self.file.failed())
    }

    /// Gives the checksum of the records.
    pub(crate) fn commit(mut self, samples: u64, shards: u32, classes: u32) -> Result<u128, DataError> {
        let checksum = self.hash.digest128();
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(RECORD_BYTES as u32).to_le_bytes());
        header[16..24].copy_from_slice(&samples.to_le_bytes());
        header[24..28].copy_from_slice(&shards.to_le_bytes());
        header[28..32].copy_from_slice(&classes.to_le_bytes());
        header[32..48].copy_from_slice(&checksum.to_le_bytes());
        self.file.rewrite_start(&header)?;
        self.file.commit()?;
        Ok(checksum)
    }
}
