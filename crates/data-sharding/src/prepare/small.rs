//! Data sets of small images, which are trained on from memory. They are kept without loss in the files that their
//! readers open: CIFAR's binary version, IDX files, and for SVHN records of CIFAR-10's form.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::Archive;

use super::check::Checker;
use super::files::Files;
use super::svhn;
use crate::atomic::{AtomicFile, unwritable};
use crate::cifar;
use crate::error::DataError;
use crate::file;
use crate::kind::{SourceKind, Split};
use crate::progress::Progress;
use crate::published;
use crate::shards::build::Lock;
use crate::shards::manifest;
use crate::source::{Adapt, open};

/// Makes the files of `kind` in `destination`, and reads them once to see that they are right.
pub(crate) fn prepare(
    kind: SourceKind,
    source: &Path,
    destination: &Path,
    checker: &mut Checker<'_>,
    progress: &Progress,
) -> Result<(), DataError> {
    let _lock = Lock::wait(destination)?;
    if manifest::exists(destination) {
        return match Files::read(destination) {
            Some(files) if files.source == kind.to_string() => files.check_sizes(destination),
            _ => Err(DataError::Invalid {
                path: destination.into(),
                problem: "holds another data set".into(),
                expected: format!("an empty folder, or {kind} prepared earlier"),
            }),
        };
    }
    let files = match kind {
        SourceKind::FashionMnist => copy_idx(kind, source, destination)?,
        SourceKind::Cifar10 | SourceKind::Cifar100 => cifar_files(kind, source, destination, checker)?,
        SourceKind::Svhn | SourceKind::SvhnWithoutExtra => {
            svhn_files(kind, source, destination, checker, progress)?
        }
    };
    if kind != SourceKind::Svhn {
        for split in [Split::Train, Split::Test] {
            open(kind, destination, split, Adapt::default())?;
        }
    }
    Files::of(destination, &kind.to_string(), &files)?.write(destination)
}

/// The four files, plain or compressed as they are.
fn copy_idx(kind: SourceKind, source: &Path, destination: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for prefix in ["train", "t10k"] {
        for content in ["images-idx3-ubyte", "labels-idx1-ubyte"] {
            let accepted = ["", ".gz"].map(|suffix| format!("{prefix}-{content}{suffix}"));
            let found = file::first_existing(source, &accepted);
            let name =
                found.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            let name = name.ok_or_else(|| missing(kind, source, accepted.join(" or ")))?;
            copy(&source.join(&name), &destination.join(&name))?;
            names.push(name);
        }
    }
    Ok(names)
}

/// From the archive as published, or from the folder that it unpacks to.
fn cifar_files(
    kind: SourceKind,
    source: &Path,
    destination: &Path,
    checker: &mut Checker<'_>,
) -> Result<Vec<String>, DataError> {
    let (Some(layout), [published, ..]) = (cifar::archive(kind), published::archives(kind)) else {
        return Ok(Vec::new());
    };
    let folder = destination.join(layout.folder);
    fs::create_dir_all(&folder).map_err(unwritable(&folder))?;
    let mut wanted: Vec<&str> = layout.train.iter().chain(layout.test).map(|&(name, _)| name).collect();
    let records = wanted.len();
    wanted.push(layout.class_names);

    let archive = if source.is_file() { source.to_path_buf() } else { source.join(published.file) };
    if archive.try_exists().unwrap_or(true) {
        checker.check(&archive, published)?;
        extract(&archive, &wanted, &folder)?;
    } else {
        let inside = [source.join(layout.folder), source.to_path_buf()];
        let from = inside.iter().find(|folder| folder.join(wanted[0]).exists());
        let expected = || format!("{} or its folder {}", published.file, layout.folder);
        let from = from.ok_or_else(|| missing(kind, source, expected()))?;
        for name in wanted.iter().filter(|name| from.join(name).exists()) {
            copy(&from.join(name), &folder.join(name))?;
        }
    }
    let there = wanted.iter().enumerate().filter(|(at, name)| *at < records || folder.join(name).exists());
    Ok(there.map(|(_, name)| format!("{}/{name}", layout.folder)).collect())
}

/// Takes the `wanted` files out of a `.tar.gz`, whatever folder they are in.
fn extract(archive_path: &Path, wanted: &[&str], folder: &Path) -> Result<(), DataError> {
    let (opened, _) = file::open(archive_path)?;
    let damaged = |error: io::Error| DataError::Invalid {
        path: archive_path.into(),
        problem: format!("is damaged: {error}"),
        expected: "a whole .tar.gz".into(),
    };
    let mut archive = Archive::new(MultiGzDecoder::new(io::BufReader::new(opened)));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = PathBuf::from(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
        let base = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = wanted.iter().find(|name| **name == base) else { continue };
        let target = folder.join(name);
        if entry.header().entry_type().is_file() && !target.exists() {
            let mut output = AtomicFile::create(&target)?;
            let size = entry.size();
            let copied = io::copy(&mut entry, &mut output).map_err(damaged)?;
            if copied != size {
                return Err(damaged(io::Error::other(format!("`{base}` is cut off"))));
            }
            output.commit()?;
        }
    }
    Ok(())
}

fn svhn_files(
    kind: SourceKind,
    source: &Path,
    destination: &Path,
    checker: &mut Checker<'_>,
    progress: &Progress,
) -> Result<Vec<String>, DataError> {
    let Some(layout) = cifar::archive(kind) else { return Ok(Vec::new()) };
    let folder = destination.join(layout.folder);
    fs::create_dir_all(&folder).map_err(unwritable(&folder))?;
    let mut names = Vec::new();
    for &(name, _) in layout.train.iter().chain(layout.test) {
        let stem = name.trim_end_matches(".bin");
        let archives = published::archives(kind);
        let Some(published) = archives.iter().find(|published| published.file.starts_with(stem)) else {
            continue;
        };
        let from = source.join(published.file);
        if !from.try_exists().unwrap_or(true) {
            let expected = archives.iter().map(|published| published.file).collect::<Vec<_>>().join(", ");
            return Err(missing(kind, source, expected));
        }
        let target = folder.join(name);
        if !target.exists() {
            checker.check(&from, published)?;
            svhn::convert(&from, &target, progress)?;
        }
        names.push(format!("{}/{name}", layout.folder));
    }
    Ok(names)
}

fn copy(from: &Path, to: &Path) -> Result<(), DataError> {
    if to.exists() {
        return Ok(());
    }
    let (mut opened, _) = file::open(from)?;
    let mut output = AtomicFile::create(to)?;
    io::copy(&mut opened, &mut output).map_err(output.failed())?;
    output.commit()
}

fn missing(kind: SourceKind, folder: &Path, expected: String) -> DataError {
    DataError::MissingFile {
        folder: folder.into(),
        content: format!("{kind} data"),
        expected,
        origin: "as its authors publish it",
    }
}
