//! Downloads published archives. What was received before a connection broke is kept and gone on from; nothing gets its
//! name before its checksum is right. Unpacks nothing.

mod transfer;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use transfer::Transfer;

use crate::atomic::{self, unwritable};
use crate::error::DataError;
use crate::folders;
use crate::kind::{SourceKind, choose};
use crate::own_file::UsualMode;
use crate::progress::Progress;
use crate::published::{self, Published};
use crate::shards::build::Lock;

/// A data set that may be downloaded by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchKind(SourceKind);

impl FromStr for FetchKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        choose(&published::FETCHED.map(SourceKind::named), name).map(FetchKind)
    }
}

/// Where files can be fetched from: a folder of a server, by HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl FromStr for Address {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let host = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        if host.is_some_and(|host| {
            !host.trim_start_matches('/').is_empty() && !text.contains(char::is_whitespace)
        }) {
            return Ok(Address(text.into()));
        }
        Err(DataError::Fetch {
            url: text.into(),
            problem: "is no address; expected one such as https://example.org/folder".into(),
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
    from: Option<&Address>,
    progress: &Progress,
) -> Result<(), DataError> {
    folders::made_for(destination, || fetch_files(published::archives(kind.0), destination, from, progress))
}

fn fetch_files(
    files: &[Published],
    destination: &Path,
    from: Option<&Address>,
    progress: &Progress,
) -> Result<(), DataError> {
    let _lock = Lock::wait(destination)?;
    for published in files {
        let path = destination.join(published.file);
        if path.try_exists().unwrap_or(true) {
            if let Some(difference) = published.differs(&path, progress)? {
                return Err(difference);
            }
            continue;
        }
        let Some(folder) = from.map(|address| &*address.0).or(published.from) else { continue };
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
        let named = UsualMode::of_file(&atomic::temporary(&path))
            .and_then(|usual| usual.give_to(&File::open(&partial)?))
            .and_then(|()| fs::rename(&partial, &path));
        named.map_err(unwritable(&path))?;
    }
    Ok(())
}

/// Where the bytes of a file are kept, for nobody else, until it is complete.
fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.partial"))
}
