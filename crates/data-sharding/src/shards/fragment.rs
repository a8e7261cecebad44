//! What is known of one shard, kept in a file beside it while a data set is being made, so that work that was
//! interrupted goes on instead of beginning anew. Fragments are joined into the indices and then removed.
//!
//! ```text
//! magic "wrn-frag" | shard bytes u64 | shard XXH3-128 | samples u32 | with seek records? u32
//!   | records | lengths of the seek records, u32 each | seek records | XXH3-64 of everything before
//! ```

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::archive;
use super::record::{RECORD_BYTES, Record};
use crate::atomic;
use crate::error::DataError;
use crate::file;
use crate::jpeg;

const MAGIC: &[u8; 8] = b"wrn-frag";
const HEADER_BYTES: usize = 40;

/// What is known of one shard.
pub(crate) struct Fragment {
    pub(crate) bytes: u64,
    pub(crate) checksum: u128,
    pub(crate) records: Vec<Record>,
    pub(crate) seek: Option<SeekRecords>,
}

/// Seek records of all samples of a shard; an empty one says that there is none.
#[derive(Default)]
pub(crate) struct SeekRecords {
    pub(crate) lengths: Vec<u32>,
    pub(crate) bytes: Vec<u8>,
}

/// Where the fragment of a shard is kept.
pub(crate) fn path_of(shard: &Path) -> PathBuf {
    let name = shard.file_name().unwrap_or_default().to_string_lossy();
    shard.with_file_name(format!(".{name}.part"))
}

fn read_whole(path: &Path) -> Result<Vec<u8>, DataError> {
    let (opened, length) = file::open(path)?;
    let mut bytes = Vec::new();
    opened.take(length).read_to_end(&mut bytes).map_err(|e| file::unreadable(path, e))?;
    Ok(bytes)
}

impl Fragment {
    /// Reads the whole shard.
    pub(crate) fn of_shard(
        path: &Path,
        shard: u32,
        seek: bool,
        advance: impl FnMut(u64),
    ) -> Result<Self, DataError> {
        let mut records = SeekRecords::default();
        let build = |image: &[u8]| {
            if seek {
                // An image that cannot be indexed is decoded without an index, or reported when it is decoded.
                let record = jpeg::seek::build(image).ok().flatten().unwrap_or_default();
                records.lengths.push(record.len() as u32);
                records.bytes.extend(record);
            }
            Ok(())
        };
        let scan = archive::scan(path, shard, build, advance)?;
        let seek = seek.then_some(records);
        Ok(Fragment { bytes: scan.bytes, checksum: scan.checksum, records: scan.records, seek })
    }

    pub(crate) fn write(&self, shard: &Path) -> Result<(), DataError> {
        atomic::write(&path_of(shard), &self.encode())
    }

    /// The fragment kept beside `shard`; none where it is missing, damaged, of a shard of another size or made
    /// without the seek records that are wanted, as it is then made anew.
    pub(crate) fn read(shard: &Path, with_seek: bool) -> Option<Self> {
        let fragment = Self::decode(&read_whole(&path_of(shard)).ok()?)?;
        let same_size = fs::metadata(shard).ok()?.len() == fragment.bytes;
        (same_size && fragment.seek.is_some() == with_seek).then_some(fragment)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.bytes.to_le_bytes());
        out.extend(self.checksum.to_le_bytes());
        out.extend((self.records.len() as u32).to_le_bytes());
        out.extend(u32::from(self.seek.is_some()).to_le_bytes());
        out.extend(self.records.iter().flat_map(Record::encode));
        if let Some(seek) = &self.seek {
            out.extend(seek.lengths.iter().flat_map(|length| length.to_le_bytes()));
            out.extend(&seek.bytes);
        }
        let checksum = xxh3_64(&out);
        out.extend(checksum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk::<8>()?;
        if xxh3_64(content).to_le_bytes() != *checksum {
            return None;
        }
        let (header, body) = content.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| Some(u32::from_le_bytes(*header[at..].first_chunk()?));
        if !header.starts_with(MAGIC) {
            return None;
        }
        let samples = word(32)? as usize;
        let (records, body) = body.split_at_checked(samples.checked_mul(RECORD_BYTES)?)?;
        let seek = if word(36)? == 1 {
            let (lengths, body) = body.split_at_checked(samples.checked_mul(4)?)?;
            let lengths: Vec<u32> =
                lengths.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
            let total: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
            if total != body.len() as u64 {
                return None;
            }
            Some(SeekRecords { lengths, bytes: body.into() })
        } else if body.is_empty() {
            None
        } else {
            return None;
        };
        Some(Fragment {
            bytes: u64::from_le_bytes(*header[8..].first_chunk()?),
            checksum: u128::from_le_bytes(*header[16..].first_chunk()?),
            records: records.as_chunks().0.iter().map(Record::decode).collect(),
            seek,
        })
    }
}
