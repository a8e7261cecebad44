//! Data sets as shards: WebDataset tar files that any other tool can read, beside them an index of all samples, an
//! optional seek index, and a manifest with sizes and checksums. Making them from archives is the business of
//! `prepare`, decoding images that of the decoder.
//!
//! A folder holds one half (training or validation) of a data set:
//! ```text
//! shard-000000.tar …   samples: KEY.jpg or KEY.png, KEY.cls
//! samples.index        20 bytes a sample: where it lies, label, width, height
//! seek.index           optional, about 2 KB a sample
//! manifest.json        written last: sizes, checksums, class names
//! ```

pub(crate) mod archive;
pub(crate) mod build;
mod fragment;
pub(crate) mod manifest;
mod map;
mod record;
mod seek_index;
mod set;
pub(crate) mod verify;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::file;
use crate::parallel;
use crate::progress::Progress;

/// Adds what is missing of the indices of the data set in `folder`, or of its halves in folders below: sample index and
/// manifest of shards made elsewhere, and the seek index of any. Interrupted, it can be called again and goes on.
///
/// # Errors
/// If there are no shards, they are damaged or not what their manifest says, or something cannot be written.
pub fn index(folder: &Path, progress: &Progress) -> Result<(), DataError> {
    for half in halves(folder)? {
        build::index(&half, true, parallel::cores(), progress)?;
    }
    Ok(())
}

/// `folder`, or the folders in it that hold shards.
pub(crate) fn halves(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    if is_data_set(folder)? {
        return Ok(vec![folder.into()]);
    }
    let mut halves = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| file::unreadable(folder, e))? {
        let path = entry.map_err(|e| file::unreadable(folder, e))?.path();
        if path.is_dir() && is_data_set(&path)? {
            halves.push(path);
        }
    }
    halves.sort_unstable();
    if halves.is_empty() { Err(missing(folder)) } else { Ok(halves) }
}

/// Whether there are shards in `folder`, finished or not.
fn is_data_set(folder: &Path) -> Result<bool, DataError> {
    Ok(manifest::exists(folder) || manifest::is_unfinished(folder) || !build::find_shards(folder)?.is_empty())
}

/// There is no data set in `folder`.
fn missing(folder: &Path) -> DataError {
    DataError::MissingFile {
        folder: folder.into(),
        content: "samples".into(),
        expected: format!("{} or shards *.tar", manifest::MANIFEST),
        origin: "`wrn-dist data prepare` makes them",
    }
}

pub use set::{ReadMode, ShardSet};
