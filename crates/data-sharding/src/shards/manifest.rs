//! `manifest.json`: which shards a data set consists of, with their sizes and checksums, and its classes. The hash of
//! this file identifies the data set.

use std::fs;
use std::io::Read;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::atomic;
use crate::error::DataError;
use crate::file;

/// File names in the folder of a data set.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const SAMPLE_INDEX: &str = "samples.index";
pub(crate) const SEEK_INDEX: &str = "seek.index";
/// Says what `prepare` is making, as long as it is not finished.
pub(crate) const UNFINISHED: &str = ".prepare.json";
/// Held while any of them is made.
pub(crate) const LOCK: &str = ".lock";

const FORMAT: &str = "wrn-dist shards 1";
/// A manifest of 100,000 shards and as many classes is a tenth of this.
const LARGEST_MANIFEST: u64 = 256 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) format: String,
    /// How the shards were made; none for shards made elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    pub(crate) samples: u64,
    /// Names by label.
    pub(crate) classes: Vec<String>,
    pub(crate) index: FileEntry,
    pub(crate) shards: Vec<ShardEntry>,
}

/// What `prepare` was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    /// Data set and half of it.
    pub(crate) source: String,
    /// Seed of the order of the samples.
    pub(crate) seed: u64,
    /// Bytes at which a new shard was begun.
    pub(crate) shard_bytes: u64,
    /// What was done to the images.
    pub(crate) images: String,
    /// Hash of the above and of name, length and label of each sample in order.
    pub(crate) plan: String,
}

/// A file with its checksum, XXH3-128 in hexadecimal. Checksums find damage, which they do at the speed of memory;
/// they are no protection against somebody who wants to deceive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) checksum: String,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardEntry {
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) samples: u64,
    pub(crate) checksum: String,
}

impl Manifest {
    pub(crate) fn new(
        origin: Option<Origin>,
        classes: Vec<String>,
        index: FileEntry,
        shards: Vec<ShardEntry>,
    ) -> Self {
        let samples = shards.iter().map(|shard| shard.samples).sum();
        Manifest { format: FORMAT.into(), origin, samples, classes, index, shards }
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), DataError> {
        let path = folder.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| DataError::Write { path: path.clone(), source: e.into() })?;
        text.push(b'\n');
        atomic::write(&path, &text)
    }

    /// Reads and checks a manifest; gives its hash too, XXH3-128 of the file in hexadecimal.
    pub(crate) fn read(folder: &Path) -> Result<(Self, String), DataError> {
        let path = folder.join(MANIFEST);
        let invalid = |problem: String, expected: &str| DataError::Invalid {
            path: path.clone(),
            problem,
            expected: expected.into(),
        };
        let (opened, length) = file::open(&path)?;
        if length > LARGEST_MANIFEST {
            return Err(invalid(format!("has {length} bytes"), "a list of shards"));
        }
        let mut text = Vec::new();
        opened.take(LARGEST_MANIFEST).read_to_end(&mut text).map_err(|e| file::unreadable(&path, e))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| match serde_json::from_slice(&text) {
                Ok(Foreign { source, .. }) => {
                    let problem =
                        format!("is that of {source}, which is kept in the files of its own format");
                    invalid(problem, "a data set of shards")
                }
                Err(_) => invalid(format!("is no manifest ({error})"), "what `wrn-dist data prepare` writes"),
            })?;
        if manifest.format != FORMAT {
            let problem = format!("has the format `{}`", manifest.format);
            return Err(invalid(problem, &format!("`{FORMAT}`; prepare the data set anew")));
        }
        let names = manifest.shards.iter().map(|shard| &shard.file).chain([&manifest.index.file]);
        for name in names {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name.as_str())
            {
                return Err(invalid(format!("lists the file `{name}`"), "names of files in the same folder"));
            }
        }
        let counted = manifest.shards.iter().try_fold(0_u64, |sum, shard| sum.checked_add(shard.samples));
        if counted != Some(manifest.samples) {
            let problem =
                format!("counts {} samples, which is not the sum over its shards", manifest.samples);
            return Err(invalid(problem, "the sum"));
        }
        Ok((manifest, format!("{:032x}", xxh3_128(&text))))
    }

    /// Whether all shards are there with their sizes; see [`check_sizes`].
    pub(crate) fn check_sizes(&self, folder: &Path) -> Result<(), DataError> {
        check_sizes(folder, self.shards.iter().map(|shard| (&*shard.file, shard.bytes)))
    }
}

/// A manifest of files that are no shards.
#[derive(Deserialize)]
struct Foreign {
    source: String,
    #[serde(rename = "files")]
    _files: Vec<FileEntry>,
}

/// An error that names the first of these files that is missing or has not as many bytes as it should. Cheap, so that
/// whoever is about to call a data set ready can afford it; contents are the business of `verify`.
pub(crate) fn check_sizes<'a>(
    folder: &Path,
    files: impl IntoIterator<Item = (&'a str, u64)>,
) -> Result<(), DataError> {
    for (name, expected) in files {
        let path = folder.join(name);
        let problem = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == expected => continue,
            Ok(metadata) if metadata.is_file() => format!("has {} bytes", metadata.len()),
            Ok(_) => "is no regular file".into(),
            Err(error) => format!("cannot be read: {error}"),
        };
        return Err(DataError::Invalid {
            path,
            problem,
            expected: format!(
                "{expected} bytes, as the manifest says; `wrn-dist data verify` names all that is wrong"
            ),
        });
    }
    Ok(())
}

/// Whether `prepare` began a data set in `folder` and did not finish it.
pub(crate) fn is_unfinished(folder: &Path) -> bool {
    !exists(folder) && fs::exists(folder.join(UNFINISHED)).unwrap_or(true)
}

/// Whether a data set in `folder` is complete.
pub(crate) fn exists(folder: &Path) -> bool {
    fs::exists(folder.join(MANIFEST)).unwrap_or(true)
}
