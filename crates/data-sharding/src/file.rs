//! Finding and opening the files of a data set. What is in them is the business of `idx` and `cifar`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// The first of `names` that exists in `folder`. A file that cannot even be looked at counts as there, so
/// that opening it tells why.
pub(crate) fn first_existing(folder: &Path, names: &[String]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.try_exists().unwrap_or(true))
}

/// Opens a regular file; gives its length in bytes too. Pipes and the like are refused, as they could block
/// for ever.
pub(crate) fn open(path: &Path) -> Result<(File, u64), DataError> {
    let metadata = fs::metadata(path).map_err(|e| unreadable(path, e))?;
    if !metadata.is_file() {
        return Err(unreadable(path, io::Error::other("not a regular file")));
    }
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    Ok((file, metadata.len()))
}

pub(crate) fn unreadable(path: &Path, source: io::Error) -> DataError {
    DataError::Io { path: path.into(), source }
}
