//! ILSVRC2012's archives, read where they lie: the training tar of a tar a class, the flat validation tar, and the
//! development kit. A class is the place of its WordNet id among all in order, as everywhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tar::Archive;

use super::check::Checker;
use super::devkit::Devkit;
use super::listing::{Listing, Place, Sample, SourceArchive};
use crate::error::DataError;
use crate::file;
use crate::progress::Progress;
use crate::published::{IMAGENET_DEVKIT, IMAGENET_TRAIN, IMAGENET_VALIDATION};

/// The halves whose archives are in `root`, each with the name of its folder.
pub(crate) fn list(
    root: &Path,
    checker: &mut Checker<'_>,
    progress: &Progress,
) -> Result<Vec<(&'static str, Listing)>, DataError> {
    let [train, validation, devkit] =
        [&IMAGENET_TRAIN, &IMAGENET_VALIDATION, &IMAGENET_DEVKIT].map(|published| root.join(published.file));
    let there = |path: &Path| path.try_exists().unwrap_or(true);
    let missing = |content: &str, expected: &str| DataError::MissingFile {
        folder: root.into(),
        content: content.into(),
        expected: expected.into(),
        origin: "from image-net.org, ILSVRC2012",
    };
    if !there(&train) && !there(&validation) {
        return Err(missing(
            "images",
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz",
        ));
    }
    if there(&validation) && !there(&devkit) {
        return Err(missing("labels of the validation images", IMAGENET_DEVKIT.file));
    }
    let kit = if there(&devkit) {
        checker.check(&devkit, &IMAGENET_DEVKIT)?;
        Some(Devkit::open(&devkit)?)
    } else {
        progress.warn(&format!("{}: not found, so classes get no words", devkit.display()));
        None
    };
    let mut halves = Vec::new();
    if there(&train) {
        checker.check(&train, &IMAGENET_TRAIN)?;
        halves.push(("train", list_train(&train, kit.as_ref(), progress)?));
    } else {
        progress.warn(&format!("{}: not found, so only the validation images are prepared", train.display()));
    }
    if let Some(kit) = kit.filter(|_| there(&validation)) {
        checker.check(&validation, &IMAGENET_VALIDATION)?;
        halves.push(("val", list_validation(&validation, &kit, progress)?));
    } else {
        progress
            .warn(&format!("{}: not found, so only the training images are prepared", validation.display()));
    }
    Ok(halves)
}

/// Names of classes: the WordNet id, which is unique, and its words, which are not.
fn class_names<'a>(ids: impl Iterator<Item = &'a String>, kit: Option<&Devkit>) -> Vec<String> {
    ids.map(|id| match kit.and_then(|kit| kit.words.get(id)) {
        Some(words) => format!("{id} {words}"),
        None => id.clone(),
    })
    .collect()
}

fn list_train(path: &Path, kit: Option<&Devkit>, progress: &Progress) -> Result<Listing, DataError> {
    let (opened, length) = file::open(path)?;
    progress.stage("listing the training images", length);
    let whole = Window { file: &opened, begin: 0, length, position: 0 };
    let mut inner = Vec::new();
    let mut ids = BTreeSet::new();
    for member in members(path, whole)? {
        let id = member.name.strip_suffix(".tar").unwrap_or_default().to_owned();
        if !is_wordnet_id(&id) {
            return Err(invalid(
                path,
                format!("holds `{}`", member.name),
                "archives named like n01440764.tar",
            ));
        }
        if !ids.insert(id.clone()) {
            return Err(invalid(path, format!("holds `{}` twice", member.name), "each class once"));
        }
        inner.push((id, member));
    }
    if let Some(kit) = kit.filter(|kit| !kit.words.keys().eq(ids.iter())) {
        let problem =
            format!("has {} classes, the development kit {}, not the same", ids.len(), kit.words.len());
        return Err(invalid(path, problem, "archives of the same year, complete"));
    }
    inner.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut samples = Vec::new();
    for (label, (id, member)) in inner.into_iter().enumerate() {
        let inner_path = path.join(&member.name);
        let window = Window { file: &opened, begin: member.offset, length: member.length, position: 0 };
        for image in members(&inner_path, window)? {
            samples.push(Sample {
                name: format!("{id}/{}", image.name).into(),
                label: label as u32,
                length: image.length,
                place: Place::Archive { offset: member.offset + image.offset },
            });
        }
        progress.advance(member.length);
    }
    progress.finish();
    samples.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(Listing {
        source: "imagenet train".into(),
        classes: class_names(ids.iter(), kit),
        samples,
        archive: Some(SourceArchive { path: path.into(), file: opened }),
    })
}

fn list_validation(path: &Path, kit: &Devkit, progress: &Progress) -> Result<Listing, DataError> {
    let (opened, length) = file::open(path)?;
    progress.stage("listing the validation images", length);
    let ids: Vec<&String> = kit.words.keys().collect();
    let mut samples = Vec::new();
    for member in members(path, Window { file: &opened, begin: 0, length, position: 0 })? {
        let number = member.name.strip_prefix("ILSVRC2012_val_").and_then(|rest| rest.split('.').next());
        let class = number.and_then(|number| {
            let place = number.parse::<usize>().ok()?.checked_sub(1)?;
            ids.binary_search(&kit.validation.get(place)?).ok()
        });
        let Some(label) = class else {
            let expected = format!("ILSVRC2012_val_00000001.JPEG to {:08}", kit.validation.len());
            return Err(invalid(path, format!("holds `{}`", member.name), expected));
        };
        samples.push(Sample {
            name: member.name.into(),
            label: label as u32,
            length: member.length,
            place: Place::Archive { offset: member.offset },
        });
    }
    progress.finish();
    samples.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let distinct = samples.windows(2).filter(|pair| pair[0].name == pair[1].name).count() == 0;
    if samples.len() != kit.validation.len() || !distinct {
        let problem = format!("holds {} images", samples.len());
        return Err(invalid(path, problem, format!("each of {}, as the kit has", kit.validation.len())));
    }
    Ok(Listing {
        source: "imagenet val".into(),
        classes: class_names(ids.into_iter(), Some(kit)),
        samples,
        archive: Some(SourceArchive { path: path.into(), file: opened }),
    })
}

fn is_wordnet_id(id: &str) -> bool {
    id.strip_prefix('n')
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A file in a tar archive, with the place of its contents in the window.
struct Member {
    name: String,
    offset: u64,
    length: u64,
}

/// The files in a tar archive, without reading their contents.
fn members(path: &Path, window: Window<'_>) -> Result<Vec<Member>, DataError> {
    let length = window.length;
    let damaged = |error: io::Error| invalid(path, format!("is damaged: {error}"), "a whole tar file");
    let mut archive = Archive::new(window);
    let mut members = Vec::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = PathBuf::from(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let member = Member { name, offset: entry.raw_file_position(), length: entry.size() };
        let end = member.offset.saturating_add(member.length);
        if end > length {
            let problem = format!("`{}` ends at byte {end}, behind the end", member.name);
            return Err(invalid(path, problem, "a complete archive"));
        }
        members.push(member);
    }
    if members.is_empty() {
        return Err(invalid(path, "holds no files", "a tar file with images"));
    }
    Ok(members)
}

fn invalid(path: &Path, problem: impl Into<String>, expected: impl Into<String>) -> DataError {
    DataError::Invalid { path: path.into(), problem: problem.into(), expected: expected.into() }
}

/// A part of a file, which reads and seeks like a file of its own.
struct Window<'a> {
    file: &'a File,
    begin: u64,
    length: u64,
    position: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.length.saturating_sub(self.position);
        if rest == 0 {
            return Ok(0);
        }
        let wanted = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.begin + self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| io::Error::other("a seek to nowhere"))?;
        Ok(self.position)
    }
}
