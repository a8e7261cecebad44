//! From the files that authors publish to data sets that can be trained on.

mod imagefolder;
mod listing;
mod options;
mod plan;
mod write;

use std::path::Path;
use std::str::FromStr;

pub use options::PrepareOptions;

use crate::error::DataError;
use crate::progress::Progress;

/// What can be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareKind {
    /// A folder of class folders with JPEG and PNG files; also a folder with `train` and `val` of that kind.
    ImageFolder,
}

impl PrepareKind {
    const NAMES: [(&str, PrepareKind); 1] = [("imagefolder", PrepareKind::ImageFolder)];
}

impl FromStr for PrepareKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let found = Self::NAMES.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind).ok_or_else(|| DataError::UnknownSource {
            name: name.into(),
            known: Self::NAMES.map(|(name, _)| name).join(", "),
        })
    }
}

/// Prepares a data set: reads `source`, writes `destination`. Interrupted at any moment, by whatever, it can be
/// called again and goes on; the result has the same bytes.
///
/// # Errors
/// If the source is not what it should be, or something cannot be read or written.
pub fn prepare(
    kind: PrepareKind,
    source: &Path,
    destination: &Path,
    options: &PrepareOptions,
    progress: &Progress,
) -> Result<(), DataError> {
    match kind {
        PrepareKind::ImageFolder => {
            let halves: Vec<&str> =
                ["train", "val", "test"].into_iter().filter(|half| source.join(half).is_dir()).collect();
            if halves.is_empty() {
                let listing = imagefolder::list(source, "imagefolder".into(), progress)?;
                return write::write(&listing, destination, options, None, progress);
            }
            for half in halves {
                let listing = imagefolder::list(&source.join(half), format!("imagefolder {half}"), progress)?;
                write::write(&listing, &destination.join(half), options, None, progress)?;
            }
            Ok(())
        }
    }
}
