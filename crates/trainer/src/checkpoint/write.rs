//! Writing: everything becomes visible under its name at once and whole, or not at all. Until then it is its owner's
//! alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use data_sharding::own_file;

use super::content::{checksum, encode, encode_checksums};
use super::retention::{self, Keep, checkpoint_name};
use super::{CHECKSUMS, CheckpointError, LATEST, NamedTensor, Part, RunState, STATE, file_error};
use crate::files;

/// What a save brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The checkpoint's folder.
    pub(crate) path: PathBuf,
    /// Size of its files.
    pub(crate) bytes: u64,
    /// Why something that should have gone is still there, if it is; the next save tries again.
    pub(crate) untidy: Option<String>,
}

/// Writes a checkpoint below `folder`, which is made if the folder above is there; points `latest` at it and
/// removes those that `keep` does not keep, which may fail without harm to it. `parts` are asked for one after the other.
pub(super) fn save(
    folder: &Path,
    state: &RunState,
    parts: impl IntoIterator<Item = (Part, Result<Vec<NamedTensor>, CheckpointError>)>,
    keep: Keep,
) -> Result<Written, CheckpointError> {
    files::expect_folder(folder).map_err(file_error("create", folder))?;
    // Not the folders above: where a file system is gone, nothing must fill the one below it.
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(file_error("create", folder)(error));
        }
        _ => {}
    }
    let name = checkpoint_name(state.step);
    let place = folder.join(&name);
    let partial = folder.join(format!(".{name}.partial"));
    let bytes = write_folder(&partial, state, parts)?;
    if place.exists() {
        // Of the same step, damaged or from before the run went back: moved out of the way first, so that no
        // moment has half of it.
        let former = retention::former(folder, state.step);
        remove_folder(&former)?;
        fs::rename(&place, &former).map_err(file_error("replace", &place))?;
    }
    fs::rename(&partial, &place).map_err(file_error("rename", &partial))?;
    sync_folder(folder)?;
    replace_file(&folder.join(LATEST), name.as_bytes())?;
    let untidy = retention::tidy(folder, state.step, keep).err().map(|error| error.to_string());
    Ok(Written { path: place, bytes, untidy })
}

/// Writes a checkpoint without optimizer as the new folder `place`.
pub(crate) fn save_weights(
    place: &Path,
    state: &RunState,
    weights: Vec<NamedTensor>,
) -> Result<(), CheckpointError> {
    refuse_existing(place)?;
    let parent = parent(place);
    fs::create_dir_all(parent).map_err(file_error("create", parent))?;
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.partial"));
    write_folder(&partial, state, [(Part::Weights, Ok(weights))])?;
    fs::rename(&partial, place).map_err(file_error("rename", &partial))?;
    sync_folder(parent)
}

/// For output that must not replace anything.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), CheckpointError> {
    match path.symlink_metadata() {
        Ok(_) => {
            let reason = "it exists already and is not overwritten; name another or remove it";
            Err(file_error("write", path)(std::io::Error::new(ErrorKind::AlreadyExists, reason)))
        }
        Err(_) => Ok(()),
    }
}

/// A new folder with tensors, state and, last, their checksums; the sum of their sizes. After a failure nothing
/// of it takes up space.
fn write_folder(
    folder: &Path,
    state: &RunState,
    parts: impl IntoIterator<Item = (Part, Result<Vec<NamedTensor>, CheckpointError>)>,
) -> Result<u64, CheckpointError> {
    remove_folder(folder)?;
    let (handle, usual) = own_file::create_folder_privately(folder).map_err(file_error("create", folder))?;
    let written = write_files(folder, state, parts).and_then(|bytes| {
        let durable = usual.give_to(&handle).and_then(|()| handle.sync_all());
        durable.map_err(file_error("sync", folder)).map(|()| bytes)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(folder);
    }
    written
}

fn write_files(
    folder: &Path,
    state: &RunState,
    parts: impl IntoIterator<Item = (Part, Result<Vec<NamedTensor>, CheckpointError>)>,
) -> Result<u64, CheckpointError> {
    let mut checksums = BTreeMap::new();
    let mut total = 0;
    let mut write = |file: &str, bytes: &[u8]| {
        checksums.insert(file.to_owned(), checksum(bytes));
        total += bytes.len() as u64;
        write_synced(&folder.join(file), bytes)
    };
    for (part, tensors) in parts {
        let bytes = encode(&tensors?).map_err(CheckpointError::Tensors)?;
        write(part.file(), &bytes)?;
    }
    let json =
        serde_json::to_vec_pretty(state).map_err(|error| CheckpointError::Tensors(error.to_string()))?;
    write(STATE, &json)?;
    write_synced(&folder.join(CHECKSUMS), encode_checksums(&checksums).as_bytes())?;
    Ok(total)
}

/// Writes a small file so that its name always holds either the old or the new content.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    replace_file_by(&path.with_extension("partial"), path, bytes)
}

/// As [`replace_file`], by way of the file `partial` of the same folder.
pub(crate) fn replace_file_by(partial: &Path, path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    files::expect_file(path).map_err(file_error("replace", path))?;
    write_synced(partial, bytes)
        .and_then(|()| fs::rename(partial, path).map_err(file_error("rename", partial)))
        .inspect_err(|_| {
            let _ = fs::remove_file(partial);
        })?;
    sync_folder(parent(path))
}

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let created = files::expect_file(path).and_then(|()| own_file::create_privately(path));
    let (mut file, usual) = created.map_err(file_error("create", path))?;
    file.write_all(bytes)
        .and_then(|()| usual.give_to(&file))
        .and_then(|()| file.sync_all())
        .map_err(file_error("write", path))
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(file_error("sync", folder))
}

/// Removes a folder if it is there.
pub(super) fn remove_folder(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error("remove", folder)(error)),
        _ => Ok(()),
    }
}
