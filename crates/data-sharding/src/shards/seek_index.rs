//! The seek index: for each sample an opaque record that lets a crop be decoded without what lies around it, in one
//! mapped file. Knows nothing of what the records mean.
//!
//! ```text
//! header, 64 bytes: magic "wrn-seek" | version u32 | bytes an entry u32 | samples u64 | bytes of records u64
//!                   | checksum of the sample index, 16 bytes | XXH3-64 of all entries | XXH3-64 of the header so far
//! entry, 16 bytes:  offset u64 | length u32 | lower half of XXH3-64 of the record u32
//! records, one after the other; an entry of length 0 says that there is none
//! ```
//! All little endian, offsets counted from the first record. Opening checks header and entries; a record is checked
//! when it is asked for.

use std::io::Write;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::map::Map;
use crate::atomic::AtomicFile;
use crate::error::DataError;

const MAGIC: &[u8; 8] = b"wrn-seek";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 16;

/// An opened seek index.
#[derive(Debug)]
pub(crate) struct SeekIndex {
    map: Map,
    samples: usize,
}

impl SeekIndex {
    /// Maps the index that belongs to a sample index with `samples` records and this checksum.
    pub(crate) fn open(path: &Path, samples: usize, sample_index: u128) -> Result<Self, DataError> {
        let map = Map::open(path)?;
        check(map.bytes(), samples, sample_index).map_err(|(problem, expected)| DataError::Invalid {
            path: path.into(),
            problem,
            expected: format!("{expected}; `wrn-dist data index` makes the seek index anew"),
        })?;
        Ok(SeekIndex { map, samples })
    }

    /// Record of a sample: `Ok(None)` where there is none, `Err` where it is damaged.
    pub(crate) fn get(&self, sample: usize) -> Result<Option<&[u8]>, DamagedRecord> {
        let body = &self.map.bytes()[HEADER_BYTES..];
        let (entries, records) = body.split_at(self.samples * ENTRY_BYTES);
        let Some(entry) = entries.as_chunks::<ENTRY_BYTES>().0.get(sample) else { return Ok(None) };
        let (offset, length, checksum) = decode_entry(entry);
        if length == 0 {
            return Ok(None);
        }
        let record =
            usize::try_from(offset).ok().and_then(|offset| records.get(offset..)?.get(..length as usize));
        match record {
            Some(record) if xxh3_64(record) as u32 == checksum => Ok(Some(record)),
            _ => Err(DamagedRecord),
        }
    }
}

/// A record that is not what was written.
#[derive(Debug)]
pub(crate) struct DamagedRecord;

fn decode_entry(entry: &[u8; ENTRY_BYTES]) -> (u64, u32, u32) {
    let [offset, rest] = [0, 8]
        .map(|at| entry[at..at + 8].iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte)));
    (offset, rest as u32, (rest >> 32) as u32)
}

fn check(bytes: &[u8], samples: usize, sample_index: u128) -> Result<(), (String, &'static str)> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err((format!("has {} bytes", bytes.len()), "a header of 64 bytes"));
    };
    let long =
        |at: usize| header[at..at + 8].iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    if !header.starts_with(MAGIC) {
        return Err(("is no seek index".into(), "a file that starts with `wrn-seek`"));
    }
    if long(8) != u64::from(VERSION) | (ENTRY_BYTES as u64) << 32 {
        return Err((format!("is of version {}", long(8) as u32), "version 1"));
    }
    if long(56) != xxh3_64(&header[..56]) {
        return Err(("is damaged: its header does not have its checksum".into(), "an unchanged file"));
    }
    if long(16) != samples as u64 || header[32..48] != sample_index.to_le_bytes() {
        return Err(("belongs to another data set".into(), "one made for these shards"));
    }
    let length =
        (samples as u64).checked_mul(ENTRY_BYTES as u64).and_then(|entries| entries.checked_add(long(24)));
    if length != Some(body.len() as u64) {
        return Err((format!("has {} bytes behind its header", body.len()), "what its header says"));
    }
    if long(48) != xxh3_64(&body[..samples * ENTRY_BYTES]) {
        return Err(("is damaged: its entries do not have their checksum".into(), "an unchanged file"));
    }
    Ok(())
}

/// Writes a seek index for a known number of samples.
pub(crate) struct SeekIndexWriter {
    file: AtomicFile,
    entries: Vec<u8>,
    samples: usize,
    offset: u64,
}

impl SeekIndexWriter {
    pub(crate) fn create(path: &Path, samples: usize) -> Result<Self, DataError> {
        let mut file = AtomicFile::create(path)?;
        file.skip((HEADER_BYTES + samples * ENTRY_BYTES) as u64)?;
        Ok(SeekIndexWriter { file, entries: Vec::with_capacity(samples * ENTRY_BYTES), samples, offset: 0 })
    }

    pub(crate) fn push(&mut self, record: &[u8]) -> Result<(), DataError> {
        let checksum = if record.is_empty() { 0 } else { xxh3_64(record) as u32 };
        self.entries.extend(self.offset.to_le_bytes());
        self.entries.extend((record.len() as u32).to_le_bytes());
        self.entries.extend(checksum.to_le_bytes());
        self.offset += record.len() as u64;
        self.file.write_all(record).map_err(self.file.failed())
    }

    pub(crate) fn commit(mut self, sample_index: u128) -> Result<(), DataError> {
        let mut start = MAGIC.to_vec();
        start.extend(VERSION.to_le_bytes());
        start.extend((ENTRY_BYTES as u32).to_le_bytes());
        start.extend((self.samples as u64).to_le_bytes());
        start.extend(self.offset.to_le_bytes());
        start.extend(sample_index.to_le_bytes());
        let mut hash = Xxh3Default::new();
        hash.update(&self.entries);
        start.extend(hash.digest().to_le_bytes());
        start.extend(xxh3_64(&start).to_le_bytes());
        start.extend(&self.entries);
        self.file.rewrite_start(&start)?;
        self.file.commit()
    }
}
