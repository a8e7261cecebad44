//! Whether archives are the published ones. Large archives are checked once, however often `prepare` is interrupted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::PrepareOptions;
use crate::atomic::{self, unwritable};
use crate::error::DataError;
use crate::file;
use crate::progress::Progress;
use crate::published::Published;
use crate::shards::build::remove;

const RECORD: &str = ".checked.json";

/// Checks archives, and remembers in the destination which ones are right.
pub(crate) struct Checker<'a> {
    record: PathBuf,
    checked: Vec<Checked>,
    options: &'a PrepareOptions,
    progress: &'a Progress,
}

/// An archive as it was when it was found right.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Checked {
    file: String,
    bytes: u64,
    inode: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(destination: &Path, options: &'a PrepareOptions, progress: &'a Progress) -> Self {
        let record = destination.join(RECORD);
        let text = fs::read(&record).unwrap_or_default();
        let checked = serde_json::from_slice(&text).unwrap_or_default();
        Checker { record, checked, options, progress }
    }

    /// Warns, or with `strict` refuses, when `path` is not the published archive.
    pub(crate) fn check(&mut self, path: &Path, published: &Published) -> Result<(), DataError> {
        let metadata = fs::metadata(path).map_err(|e| file::unreadable(path, e))?;
        let now = Checked {
            file: published.file.into(),
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        };
        if self.checked.contains(&now) {
            return Ok(());
        }
        match published.differs(path, self.progress)? {
            None => {
                self.checked.push(now);
                let text =
                    serde_json::to_vec(&self.checked).map_err(|e| unwritable(&self.record)(e.into()))?;
                atomic::write(&self.record, &text)
            }
            Some(difference) if self.options.strict => Err(difference),
            Some(difference) => {
                self.progress.warn(&difference.to_string());
                Ok(())
            }
        }
    }

    /// Forgets everything, when all is done.
    pub(crate) fn done(self) -> Result<(), DataError> {
        remove(&self.record)
    }
}
