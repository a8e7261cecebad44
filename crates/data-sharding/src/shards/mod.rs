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

use std::path::Path;

use crate::error::DataError;

/// Whether there are shards in `folder`, finished or not.
pub(crate) fn is_data_set(folder: &Path) -> Result<bool, DataError> {
    Ok(manifest::exists(folder) || !build::find_shards(folder)?.is_empty())
}

/// There is no data set in `folder`.
pub(crate) fn missing(folder: &Path) -> DataError {
    DataError::MissingFile {
        folder: folder.into(),
        content: "samples".into(),
        expected: format!("{} or shards *.tar", manifest::MANIFEST),
        origin: "`wrn-dist data prepare` makes them",
    }
}

pub(crate) use seek_index::SeekBuilder;
pub use set::{ReadMode, ShardSet};
