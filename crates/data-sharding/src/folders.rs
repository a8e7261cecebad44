//! The folders that a command makes for what it is going to write.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic::unwritable;
use crate::error::DataError;

/// Makes `folder` for `work`. If that fails, the folders that it has left empty are taken away again, but none that was
/// there before. What is worth going on from stays, and its folder with it.
pub(crate) fn made_for<T>(
    folder: &Path,
    work: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| is_missing(path)).collect();
    let before: BTreeSet<OsString> = entries(folder).map(|(name, _)| name).collect();
    let result = fs::create_dir_all(folder).map_err(unwritable(folder)).and_then(|()| work());
    if result.is_err() {
        for (name, path) in entries(folder) {
            if !before.contains(&name) {
                // Only an empty folder can be removed.
                let _ = fs::remove_dir(path);
            }
        }
        for path in missing {
            let _ = fs::remove_dir(path);
        }
    }
    result
}

fn is_missing(path: &Path) -> bool {
    !path.as_os_str().is_empty() && matches!(path.try_exists(), Ok(false))
}

fn entries(folder: &Path) -> impl Iterator<Item = (OsString, PathBuf)> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| (entry.file_name(), entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail() -> Result<(), DataError> {
        Err(DataError::Augmentation("no luck"))
    }

    #[test]
    fn a_failure_leaves_no_empty_folder_and_touches_none_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        made_for(&at("a/b/c"), || {
            fs::create_dir(at("a/b/c/train")).map_err(unwritable(dir.path())).and(fail())
        })
        .unwrap_err();
        assert!(!at("a").exists());

        fs::create_dir_all(at("d/mine")).unwrap();
        made_for(&at("d"), || fs::create_dir(at("d/val")).map_err(unwritable(dir.path())).and(fail()))
            .unwrap_err();
        assert!(at("d/mine").exists() && !at("d/val").exists());

        made_for(&at("e/f"), || fs::write(at("e/f/begun"), "").map_err(unwritable(dir.path())).and(fail()))
            .unwrap_err();
        assert!(at("e/f/begun").exists());
        made_for(&at("g/h"), || Ok(())).unwrap();
        assert!(at("g/h").exists());
    }
}
