//! What `wrn-dist data verify` checks in a folder: one half of a data set, or all halves in folders below it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::file;
use crate::prepare::Files;
use crate::progress::Progress;
use crate::shards;

/// Reads everything that belongs to the prepared data set in `folder` and gives a sentence for each thing that is
/// wrong; none where all is well.
///
/// # Errors
/// If the folder itself cannot be read, or holds no data set.
pub fn verify(folder: &Path, progress: &Progress) -> Result<Vec<String>, DataError> {
    if let Some(files) = Files::read(folder) {
        return Ok(files.verify(folder, progress));
    }
    let mut problems = Vec::new();
    for half in halves(folder)? {
        problems.extend(shards::verify::verify(&half, progress)?);
    }
    Ok(problems)
}

/// `folder`, or the folders in it that hold a data set.
fn halves(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    if shards::is_data_set(folder)? {
        return Ok(vec![folder.into()]);
    }
    let mut halves = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| file::unreadable(folder, e))? {
        let path = entry.map_err(|e| file::unreadable(folder, e))?.path();
        if path.is_dir() && shards::is_data_set(&path)? {
            halves.push(path);
        }
    }
    halves.sort_unstable();
    if halves.is_empty() {
        return Err(shards::missing(folder));
    }
    Ok(halves)
}
