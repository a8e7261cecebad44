//! A folder of class folders, as torchvision's `ImageFolder` reads it: classes are the names of the folders in order,
//! images lie in them at any depth.

use std::fs;
use std::path::Path;

use walkdir::WalkDir;

use super::listing::{Listing, Place, Sample};
use crate::error::DataError;
use crate::file;
use crate::progress::Progress;
use crate::shards::archive::IMAGE_EXTENSIONS;

/// Lists `root`. Files with other extensions than those of JPEG and PNG are left out, which is said.
pub(crate) fn list(root: &Path, source: String, progress: &Progress) -> Result<Listing, DataError> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(root).map_err(|e| file::unreadable(root, e))? {
        let path = entry.map_err(|e| file::unreadable(root, e))?.path();
        if !path.is_dir() {
            continue;
        }
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.starts_with('.') => {}
            Some(name) => classes.push(name.to_owned()),
            None => return Err(invalid(&path, "has a name that is not UTF-8", "names of classes in UTF-8")),
        }
    }
    classes.sort_unstable();
    if classes.is_empty() {
        return Err(invalid(root, "has no folders", "a folder for each class, with its images"));
    }
    let mut samples = Vec::new();
    let mut others = 0_u64;
    for (label, class) in classes.iter().enumerate() {
        let folder = root.join(class);
        let before = samples.len();
        for entry in WalkDir::new(&folder).follow_links(true) {
            let entry = entry.map_err(|e| {
                let path = e.path().unwrap_or(&folder).to_path_buf();
                let source = e.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links"));
                DataError::Io { path, source }
            })?;
            if entry.file_type().is_dir() {
                continue;
            }
            let path = entry.path();
            let extension =
                path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
            if !extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&&*extension)) {
                others += 1;
                continue;
            }
            let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
            let length = entry.metadata().map_err(|e| file::unreadable(path, e.into()))?.len();
            samples.push(Sample {
                name: name.into(),
                label: label as u32,
                length,
                place: Place::File(path.into()),
            });
        }
        if samples.len() == before {
            progress.warn(&format!("{}: holds no .jpg, .jpeg or .png", folder.display()));
        }
    }
    if others > 0 {
        let sentence =
            format!("{}: left out {others} file(s) other than .jpg, .jpeg and .png", root.display());
        progress.warn(&sentence);
    }
    samples.sort_unstable_by(|a, b| (a.label, &a.name).cmp(&(b.label, &b.name)));
    Ok(Listing { source, classes, samples, archive: None })
}

fn invalid(path: &Path, problem: &str, expected: &str) -> DataError {
    DataError::Invalid { path: path.into(), problem: problem.into(), expected: expected.into() }
}

/// A label is the place of a class among its half's folders, so both halves must have the same ones.
pub(crate) fn require_equal_classes(
    folder: &Path,
    first: &Listing,
    other: &Listing,
) -> Result<(), DataError> {
    let lacks = |of: &Listing, class: &String| !of.classes.contains(class);
    let missing: Vec<_> = first.classes.iter().filter(|class| lacks(other, class)).cloned().collect();
    let unknown: Vec<_> = other.classes.iter().filter(|class| lacks(first, class)).cloned().collect();
    if missing.is_empty() && unknown.is_empty() {
        return Ok(());
    }
    let name = |classes: &[String]| match classes {
        [] => "none".to_owned(),
        some => some.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", "),
    };
    let problem = format!(
        "has other class folders than {}: missing {}, additional {}",
        first.source.trim_start_matches("imagefolder "),
        name(&missing),
        name(&unknown)
    );
    Err(invalid(folder, &problem, "the same class folders in both, empty ones where a class has no images"))
}
