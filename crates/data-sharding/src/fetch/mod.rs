//! Downloads published archives. What was received before a connection broke is kept and gone on from; nothing gets its
//! name before its checksum is right. Unpacks nothing.

mod transfer;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use transfer::Transfer;

use crate::atomic::unwritable;
use crate::error::DataError;
use crate::progress::Progress;
use crate::published::{self, Published};
use crate::shards::build::Lock;

/// A data set that may be downloaded by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchKind {
    /// CIFAR-10, 170 MB.
    Cifar10,
    /// CIFAR-100, 169 MB.
    Cifar100,
    /// SVHN's cropped digits: train, extra and test, 1.6 GB.
    Svhn,
}

impl FetchKind {
    const NAMES: [(&str, FetchKind); 3] =
        [("cifar10", FetchKind::Cifar10), ("cifar100", FetchKind::Cifar100), ("svhn", FetchKind::Svhn)];

    fn files(self) -> &'static [Published] {
        match self {
            FetchKind::Cifar10 => &published::CIFAR10,
            FetchKind::Cifar100 => &published::CIFAR100,
            FetchKind::Svhn => &published::SVHN,
        }
    }
}

impl FromStr for FetchKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let found = Self::NAMES.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind).ok_or_else(|| DataError::UnknownSource {
            name: name.into(),
            known: Self::NAMES.map(|(name, _)| name).join(", "),
        })
    }
}

/// Downloads the archives of a data set into the folder `destination`, from their authors' site or from the folder
/// `from` of another. Archives that are there already are checked and kept. Interrupted, it can be called again and goes
/// on.
///
/// # Errors
/// If a server cannot be reached or does not have a file, if what it sends is not the published file, or if something
/// cannot be written.
pub fn fetch(
    kind: FetchKind,
    destination: &Path,
    from: Option<&str>,
    progress: &Progress,
) -> Result<(), DataError> {
    fetch_files(kind.files(), destination, from, progress)
}

fn fetch_files(
    files: &[Published],
    destination: &Path,
    from: Option<&str>,
    progress: &Progress,
) -> Result<(), DataError> {
    fs::create_dir_all(destination).map_err(unwritable(destination))?;
    let _lock = Lock::wait(destination)?;
    for published in files {
        let path = destination.join(published.file);
        if path.try_exists().unwrap_or(true) {
            if let Some(difference) = published.differs(&path, progress)? {
                return Err(difference);
            }
            continue;
        }
        let Some(folder) = from.or(published.from) else { continue };
        let url = format!("{}/{}", folder.trim_end_matches('/'), published.file);
        let partial = partial(&path);
        Transfer { url: &url, bytes: published.bytes, partial: &partial, progress }.run()?;
        if let Some(difference) = published.differs(&partial, progress)? {
            // Nothing of it can be trusted: the next attempt begins anew.
            fs::remove_file(&partial).map_err(unwritable(&partial))?;
            return Err(DataError::Fetch {
                url,
                problem: format!("is not what was published ({difference})"),
            });
        }
        fs::rename(&partial, &path).map_err(unwritable(&path))?;
    }
    Ok(())
}

/// Where the bytes of a file are kept until it is complete.
fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.partial"))
}
