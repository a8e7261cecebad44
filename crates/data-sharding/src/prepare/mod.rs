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

use std::path::Path;
use std::str::FromStr;

pub(crate) use files::Files;
pub use options::{Cap, PrepareOptions, Side};

use crate::error::DataError;
use crate::kind::SourceKind;
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

impl PrepareKind {
    const NAMES: [(&str, PrepareKind); 7] = [
        ("imagenet", PrepareKind::ImageNet),
        ("imagefolder", PrepareKind::ImageFolder),
        ("cifar10", PrepareKind::Small(SourceKind::Cifar10)),
        ("cifar100", PrepareKind::Small(SourceKind::Cifar100)),
        ("svhn", PrepareKind::Small(SourceKind::Svhn)),
        ("svhn-without-extra", PrepareKind::Small(SourceKind::SvhnWithoutExtra)),
        ("fashion-mnist", PrepareKind::Small(SourceKind::FashionMnist)),
    ];
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
    let mut checker = Checker::new(destination, options, progress)?;
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
