//! From the files that authors publish to data sets that can be trained on.

mod check;
mod devkit;
mod files;
mod imagefolder;
mod imagenet;
mod listing;
mod options;
mod plan;
mod resample;
mod small;
mod svhn;
mod write;

use std::path::{Path, PathBuf};
use std::str::FromStr;

pub(crate) use files::Files;
pub use options::{Cap, PrepareOptions, Side};

use crate::error::DataError;
use crate::folders;
use crate::kind::{SourceKind, choose};
use crate::progress::Progress;
use check::Checker;

/// What can be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareKind {
    /// ILSVRC2012: the training and validation archives and the development kit, to shards.
    ImageNet,
    /// A folder of class folders with JPEG and PNG files, or a folder with `train` and `val` of that kind, to shards.
    ImageFolder,
    /// A data set of small images, to the files that its reader opens.
    Small(SourceKind),
}

impl FromStr for PrepareKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let shards = [("imagenet", PrepareKind::ImageNet), ("imagefolder", PrepareKind::ImageFolder)];
        let small = SourceKind::ALL.map(|kind| (kind.facts().name, PrepareKind::Small(kind)));
        choose(&[&shards[..], &small].concat(), name)
    }
}

/// Prepares a data set: reads `source`, writes `destination`. Interrupted at any moment, by whatever, it can be
/// called again and goes on; the result has the same bytes.
///
/// # Errors
/// If the source is not what it should be, the destination holds something else, something damaged or lies in the
/// source, or something cannot be read or written. Folders that were made in vain are taken away again.
pub fn prepare(
    kind: PrepareKind,
    source: &Path,
    destination: &Path,
    options: &PrepareOptions,
    progress: &Progress,
) -> Result<(), DataError> {
    refuse_inside(kind, source, destination)?;
    folders::made_for(destination, || prepare_in(kind, source, destination, options, progress))
}

fn prepare_in(
    kind: PrepareKind,
    source: &Path,
    destination: &Path,
    options: &PrepareOptions,
    progress: &Progress,
) -> Result<(), DataError> {
    let mut checker = Checker::new(destination, options, progress);
    match kind {
        PrepareKind::ImageNet => {
            for (half, listing) in imagenet::list(source, &mut checker, progress)? {
                write::write(&listing, &destination.join(half), options, progress)?;
            }
        }
        PrepareKind::ImageFolder => {
            let halves: Vec<&str> =
                ["train", "val", "test"].into_iter().filter(|half| source.join(half).is_dir()).collect();
            if halves.is_empty() {
                progress.warn(&format!(
                    "{}: has no folders train and val with the class folders in them; made one set of all, which \
                     cannot be trained on by itself",
                    source.display()
                ));
                let listing = imagefolder::list(source, "imagefolder".into(), progress)?;
                write::write(&listing, destination, options, progress)?;
            }
            let mut listings = Vec::with_capacity(halves.len());
            for half in halves {
                let folder = source.join(half);
                listings.push((half, imagefolder::list(&folder, format!("imagefolder {half}"), progress)?));
                imagefolder::require_equal_classes(&folder, &listings[0].1, &listings[listings.len() - 1].1)?;
            }
            for (half, listing) in listings {
                write::write(&listing, &destination.join(half), options, progress)?;
            }
        }
        PrepareKind::Small(kind) => small::prepare(kind, source, destination, &mut checker, progress)?,
    }
    checker.done()
}

/// What is made must not be taken for a part of what it is made from: of an image folder, every folder is a class.
fn refuse_inside(kind: PrepareKind, source: &Path, destination: &Path) -> Result<(), DataError> {
    let (from, to) = (resolved(source), resolved(destination));
    if to == from || kind == PrepareKind::ImageFolder && to.starts_with(&from) {
        return Err(DataError::Invalid {
            path: destination.into(),
            problem: format!("lies in {}, which is the source", source.display()),
            expected: "a folder outside of it".into(),
        });
    }
    Ok(())
}

/// An absolute path without links and detours, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let existing = absolute.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match existing {
        Some((ancestor, real)) => real.join(absolute.strip_prefix(ancestor).unwrap_or(Path::new(""))),
        None => absolute,
    }
}
