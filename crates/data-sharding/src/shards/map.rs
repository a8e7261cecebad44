//! Read-only memory maps of files that nobody changes. The only unsafe code of this crate's readers.

#![allow(unsafe_code)]

use std::path::Path;

use memmap2::{Advice, Mmap};

use crate::error::DataError;
use crate::file;

/// A whole file in memory. An empty file gives an empty slice.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps a regular file. Pages are read at random, so the system is asked not to read ahead.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let (opened, _) = file::open(path)?;
        // SAFETY: the map is private to readers and read as plain bytes, for which any content is valid. Shards and
        // indices are written under a temporary name, renamed when complete and never changed afterwards; whoever
        // truncates one in place while it is mapped ends the process with SIGBUS, as documented at `ReadMode::Map`.
        let map = unsafe { Mmap::map(&opened) }.map_err(|e| file::unreadable(path, e))?;
        let _ = map.advise(Advice::Random);
        Ok(Map(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
