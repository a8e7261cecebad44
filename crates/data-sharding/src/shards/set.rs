//! An opened data set of shards: labels, sizes and compressed images by sample, at random. Decodes nothing.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::build;
use super::manifest::{self, Manifest, SAMPLE_INDEX, SEEK_INDEX, ShardEntry};
use super::map::Map;
use super::record::{BLOCK_BYTES, Record, SampleIndex};
use super::seek_index::SeekIndex;
use crate::error::DataError;
use crate::file;
use crate::parallel;
use crate::progress::Progress;
use crate::text::printable;

/// How the bytes of shards get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// Each image is read into the reader's buffer. Failures of the disk or network are errors, and the memory of the
    /// process does not grow with what it has read.
    #[default]
    Read,
    /// Shards are mapped: no copy, but what was read counts as memory of the process as long as the system keeps it,
    /// and a disk that fails or a shard that somebody truncates ends the process with SIGBUS.
    Map,
}

/// A data set of shards, shared by all threads. Takes no memory of its own that grows with the number of samples: the
/// index, 20 bytes a sample, is mapped, so that all ranks of a host share it.
#[derive(Debug)]
pub struct ShardSet {
    name: String,
    fingerprint: String,
    classes: Vec<String>,
    index: SampleIndex,
    seek: Option<SeekIndex>,
    shards: Vec<Shard>,
    mode: ReadMode,
    reported: AtomicBool,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: u64,
    /// Opened when first needed.
    file: OnceLock<File>,
    map: OnceLock<Map>,
}

impl ShardSet {
    /// Opens the data set in `folder`: what `wrn-dist data prepare` wrote, or WebDataset shards made elsewhere
    /// (`*.tar` with a `.jpg`, `.jpeg` or `.png` and a `.cls` for each sample), which are indexed first, once for
    /// all processes.
    ///
    /// Manifest, index and the sizes of the shards are checked, and that every record lies inside its shard; contents
    /// of shards are not read.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not belong to the others.
    pub fn open(folder: &Path, mode: ReadMode) -> Result<Self, DataError> {
        Self::open_with(folder, mode, &Progress::visible())
    }

    pub(crate) fn open_with(folder: &Path, mode: ReadMode, progress: &Progress) -> Result<Self, DataError> {
        if !manifest::exists(folder) {
            build::index(folder, false, parallel::cores(), progress)?;
        }
        let (manifest, fingerprint) = Manifest::read(folder)?;
        manifest.check_sizes(folder)?;
        let shard = |entry: &ShardEntry| Shard {
            path: folder.join(&entry.file),
            bytes: entry.bytes,
            file: OnceLock::new(),
            map: OnceLock::new(),
        };
        let shards: Vec<Shard> = manifest.shards.iter().map(shard).collect();
        let sizes: Vec<u64> = shards.iter().map(|shard| shard.bytes).collect();
        let index_path = folder.join(&manifest.index.file);
        let index = SampleIndex::open(&index_path, &sizes, manifest.classes.len())?;
        if format!("{:032x}", index.checksum()) != manifest.index.checksum
            || index.len() as u64 != manifest.samples
        {
            return Err(DataError::Invalid {
                path: index_path,
                problem: "is the index of another data set".into(),
                expected: format!("the {SAMPLE_INDEX} that was made with this manifest"),
            });
        }
        if index.len() == 0 {
            return Err(DataError::Empty { path: folder.into() });
        }
        let seek_path = folder.join(SEEK_INDEX);
        let seek = match seek_path.try_exists() {
            Ok(false) => None,
            _ => Some(SeekIndex::open(&seek_path, index.len(), index.checksum())?),
        };
        Ok(ShardSet {
            name: format!("shards in {}", folder.display()),
            fingerprint,
            classes: manifest.classes,
            index,
            seek,
            shards,
            mode,
            reported: AtomicBool::new(false),
        })
    }

    /// What the data set is and where it lies, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are no samples, which no opened data set has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes, by label.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// XXH3-128 of the manifest in hexadecimal, which holds the checksums of all shards and of the index.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The class of a sample, below `classes().len()`.
    ///
    /// # Panics
    /// If there is no such sample.
    #[must_use]
    pub fn label(&self, sample: usize) -> u32 {
        self.record(sample).label
    }

    /// Width and height of a stored image in pixels; (0, 0) where they could not be read from its header.
    ///
    /// # Panics
    /// If there is no such sample.
    #[must_use]
    pub fn size(&self, sample: usize) -> (u32, u32) {
        let record = self.record(sample);
        (record.width.into(), record.height.into())
    }

    fn record(&self, sample: usize) -> Record {
        self.index.get(sample).unwrap_or_else(|| panic!("{}: there is no sample {sample}", self.name))
    }

    fn existing(&self, sample: usize) -> Result<Record, DataError> {
        let error = || DataError::NoSuchSample { data_set: self.name.clone(), sample, samples: self.len() };
        self.index.get(sample).ok_or_else(error)
    }

    /// The image file of a sample, in `buffer` or, with [`ReadMode::Map`], where it lies.
    ///
    /// # Errors
    /// If there is no such sample, or the system cannot read it.
    pub fn bytes<'a>(&'a self, sample: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], DataError> {
        let record = self.existing(sample)?;
        let shard = &self.shards[record.shard as usize];
        self.read(shard, record.offset(), record.length as usize, buffer)
    }

    fn read<'a>(
        &self,
        shard: &'a Shard,
        offset: u64,
        length: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], DataError> {
        match self.mode {
            ReadMode::Read => {
                buffer.resize(length, 0);
                let file = get_or_open(&shard.file, || file::open(&shard.path).map(|(file, _)| file))?;
                file.read_exact_at(buffer, offset).map_err(|e| file::unreadable(&shard.path, e))?;
                Ok(buffer)
            }
            ReadMode::Map => {
                let map = get_or_open(&shard.map, || Map::open(&shard.path))?;
                let range = offset as usize..offset as usize + length;
                map.bytes().get(range).ok_or_else(|| DataError::Invalid {
                    path: shard.path.clone(),
                    problem: "has become shorter".into(),
                    expected: format!("{} bytes", shard.bytes),
                })
            }
        }
    }

    /// The record of a sample in the seek index; none where there is no index or no record, or where the record is
    /// damaged, which is said once.
    #[must_use]
    pub fn seek_record(&self, sample: usize) -> Option<&[u8]> {
        match self.seek.as_ref()?.get(sample) {
            Ok(record) => record,
            Err(_) => {
                if !self.reported.swap(true, Ordering::Relaxed) {
                    eprintln!(
                        "warning: {}: {SEEK_INDEX}: the record of sample {sample} is damaged, so it is decoded \
                         without; `wrn-dist data verify` names all such records",
                        printable(&self.name)
                    );
                }
                None
            }
        }
    }

    /// Whether there is a seek index.
    #[must_use]
    pub fn has_seek_index(&self) -> bool {
        self.seek.is_some()
    }

    /// Name of a sample's image in its shard and the shard, for messages.
    #[must_use]
    pub fn describe(&self, sample: usize) -> Cow<'static, str> {
        let Some(record) = self.index.get(sample) else { return "no such sample".into() };
        let shard = &self.shards[record.shard as usize];
        let mut header = Vec::new();
        let name = record.offset().checked_sub(BLOCK_BYTES).and_then(|header_offset| {
            let header = self.read(shard, header_offset, BLOCK_BYTES as usize, &mut header).ok()?;
            let name = header[..100].split(|&byte| byte == 0).next()?;
            Some(String::from_utf8_lossy(name).into_owned())
        });
        format!("{} in {}", name.unwrap_or_else(|| "?".into()), shard.path.display()).into()
    }
}

/// Opens once; of two threads that do so at the same time, one opens in vain.
fn get_or_open<T>(cell: &OnceLock<T>, open: impl FnOnce() -> Result<T, DataError>) -> Result<&T, DataError> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = open()?;
    Ok(cell.get_or_init(|| value))
}
