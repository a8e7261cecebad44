//! The manifest of a data set that is kept in the files of its own format: which they are, with sizes and checksums.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::atomic::{self, unwritable};
use crate::error::DataError;
use crate::file;
use crate::progress::Progress;
use crate::shards::manifest::{FileEntry, MANIFEST, check_sizes};

const FORMAT: &str = "wrn-dist files 1";
const LARGEST_MANIFEST: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Files {
    format: String,
    /// Name of the data set.
    pub(crate) source: String,
    files: Vec<FileEntry>,
}

impl Files {
    /// Of files in `folder`, named relative to it.
    pub(crate) fn of(folder: &Path, source: &str, names: &[String]) -> Result<Self, DataError> {
        let files = names.iter().map(|name| entry(folder, name)).collect::<Result<_, _>>()?;
        Ok(Files { format: FORMAT.into(), source: source.into(), files })
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), DataError> {
        let path = folder.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| unwritable(&path)(e.into()))?;
        text.push(b'\n');
        atomic::write(&path, &text)
    }

    /// The manifest in `folder`; none where there is none of this kind.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(MANIFEST);
        let small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= LARGEST_MANIFEST);
        let files: Files = serde_json::from_slice(&fs::read(&path).ok().filter(|_| small)?).ok()?;
        (files.format == FORMAT).then_some(files)
    }

    /// Whether all files are there with their sizes; see [`check_sizes`].
    pub(crate) fn check_sizes(&self, folder: &Path) -> Result<(), DataError> {
        check_sizes(folder, self.files.iter().map(|entry| (&*entry.file, entry.bytes)))
    }

    /// What is wrong with the files, a sentence each.
    pub(crate) fn verify(&self, folder: &Path, progress: &Progress) -> Vec<String> {
        let bytes = self.files.iter().map(|entry| entry.bytes).sum();
        progress.stage(format!("verifying {}", folder.display()), bytes);
        let mut problems = Vec::new();
        for expected in &self.files {
            match entry(folder, &expected.file) {
                Err(error) => problems.push(error.to_string()),
                Ok(found) if found != *expected => problems.push(format!(
                    "{}: has {} bytes with the checksum {}; expected {} with {}",
                    folder.join(&expected.file).display(),
                    found.bytes,
                    found.checksum,
                    expected.bytes,
                    expected.checksum
                )),
                Ok(_) => {}
            }
            progress.advance(expected.bytes);
        }
        progress.finish();
        problems
    }
}

fn entry(folder: &Path, name: &str) -> Result<FileEntry, DataError> {
    let path = folder.join(name);
    let (mut opened, bytes) = file::open(&path)?;
    let mut hash = Xxh3Default::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match opened.read(&mut buffer).map_err(|e| file::unreadable(&path, e))? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(FileEntry { file: name.into(), bytes, checksum: format!("{:032x}", hash.digest128()) })
}
