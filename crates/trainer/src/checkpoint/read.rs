//! Reading and verifying. Nothing is used whose checksum was not found right.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::content::{checksum, decode, decode_checksums};
use super::retention::{checkpoint_name, list, step_of};
use super::{
    BEST, CHECKSUMS, Checkpoint, CheckpointError, FILES, FORMAT, LATEST, Part, RunState, STATE, file_error,
};
use crate::files;

/// Longest of the small files: those of names and checksums, and the state with its 10,000 latest losses.
const MOST_SMALL_BYTES: u64 = 16 << 20;

/// Reads and verifies parts of a checkpoint. `path` is its folder, or its file of weights or of averaged weights, which
/// then are the weights, or a run directory or `checkpoints` folder, meaning the latest one there, or `latest` or `best`
/// in it. Files that are longer than those of a network of so many `parameters` are not read.
pub(crate) fn load(path: &Path, parts: &[Part], parameters: u64) -> Result<Checkpoint, CheckpointError> {
    load_parts(&resolve(path)?, weights_file(path), Some(parts), parameters)
}

/// As [`load`], with every part that it has.
pub(crate) fn load_all(path: &Path, parameters: u64) -> Result<Checkpoint, CheckpointError> {
    load_parts(&resolve(path)?, Part::Weights.file(), None, parameters)
}

fn load_parts(
    folder: &Path,
    weights_file: &str,
    wanted: Option<&[Part]>,
    parameters: u64,
) -> Result<Checkpoint, CheckpointError> {
    let checksums = read_checksums(folder)?;
    let state = read_state(folder, &checksums)?;
    let known = |name: &String| name == STATE || FILES.iter().any(|(_, file)| file == name);
    if let Some(unknown) = checksums.keys().find(|name| !known(name)) {
        return Err(damaged(folder, format!("{CHECKSUMS} names {unknown}, which no checkpoint has")));
    }
    let optimizer = Part::Optimizer.file();
    if wanted.is_none() && state.imported.is_none() && !checksums.contains_key(optimizer) {
        return Err(damaged(folder, format!("it has no {optimizer}, which a run needs to go on")));
    }
    // Weights are always there.
    let all = |part, file| part == Part::Weights || checksums.contains_key(file);
    let mut parts = BTreeMap::new();
    for (part, file) in FILES {
        if wanted.map_or_else(|| all(part, file), |wanted| wanted.contains(&part)) {
            let file = if part == Part::Weights { weights_file } else { file };
            let bytes = read_verified(folder, file, &checksums, files::most_bytes_of(parameters))?;
            let tensors = decode(&bytes).map_err(|reason| damaged(folder, format!("{file}: {reason}")))?;
            parts.insert(part, tensors);
        }
    }
    Ok(Checkpoint { state, parts })
}

/// Where a checkpoint lies and what is known of it without its tensors. `path` as for [`load`].
pub(crate) fn load_state(path: &Path) -> Result<(PathBuf, RunState), CheckpointError> {
    let folder = resolve(path)?;
    let checksums = read_checksums(&folder)?;
    let state = read_state(&folder, &checksums)?;
    Ok((folder, state))
}

/// Which file of weights `path` means.
fn weights_file(path: &Path) -> &'static str {
    let averaged = Part::Averaged.file();
    if path.file_name().is_some_and(|name| name == averaged) { averaged } else { Part::Weights.file() }
}

/// SHA-256 of a checkpoint's weights, as it was saved. `path` as for [`load`].
pub(crate) fn weights_checksum(path: &Path) -> Result<String, CheckpointError> {
    let folder = resolve(path)?;
    let mut checksums = read_checksums(&folder)?;
    let file = weights_file(path);
    checksums.remove(file).ok_or_else(|| damaged(&folder, format!("{CHECKSUMS} does not name {file}")))
}

fn damaged(folder: &Path, reason: String) -> CheckpointError {
    CheckpointError::Damaged { path: folder.to_owned(), reason }
}

fn read_checksums(folder: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let path = folder.join(CHECKSUMS);
    if !path.exists() {
        return Err(damaged(folder, format!("it has no {CHECKSUMS}, which is written last")));
    }
    decode_checksums(&read_file(&path, MOST_SMALL_BYTES)?).ok_or_else(|| {
        damaged(
            folder,
            format!("{CHECKSUMS} is not a line a file as sha256sum writes it, in the order of their names"),
        )
    })
}

fn read_state(folder: &Path, checksums: &BTreeMap<String, String>) -> Result<RunState, CheckpointError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let json = read_verified(folder, STATE, checksums, MOST_SMALL_BYTES)?;
    let unreadable = |error: serde_json::Error| damaged(folder, format!("{STATE} does not parse: {error}"));
    let Version { format } = serde_json::from_slice(&json).map_err(unreadable)?;
    if format != FORMAT {
        let reason = format!("its format is {format}, this version reads {FORMAT}");
        return Err(CheckpointError::Foreign { path: folder.to_owned(), reason });
    }
    let state: RunState = serde_json::from_slice(&json).map_err(unreadable)?;
    let named = folder.file_name().and_then(|name| step_of(name.to_str()?));
    match named.filter(|named| state.imported.is_none() && *named != state.step) {
        Some(_) => {
            Err(damaged(folder, format!("{STATE} says step {}, unlike the folder's name", state.step)))
        }
        None => Ok(state),
    }
}

fn read_verified(
    folder: &Path,
    file: &str,
    checksums: &BTreeMap<String, String>,
    most: u64,
) -> Result<Vec<u8>, CheckpointError> {
    let expected = (checksums.get(file))
        .ok_or_else(|| damaged(folder, format!("{CHECKSUMS} does not name {file}, which is expected")))?;
    let bytes = match files::read(&folder.join(file), most) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(damaged(folder, format!("{file} is missing")));
        }
        bytes => bytes.map_err(file_error("read", &folder.join(file)))?,
    };
    let found = checksum(&bytes);
    if found != *expected {
        let reason = format!(
            "{file} has {} bytes with SHA-256 {found}, {CHECKSUMS} says it should be {expected}",
            bytes.len()
        );
        return Err(damaged(folder, reason));
    }
    Ok(bytes)
}

fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, CheckpointError> {
    files::read(path, most).map_err(file_error("read", path))
}

/// The name in a pointer file, if it is that of a checkpoint beside it.
fn pointed_at(pointer: &Path) -> Result<Option<u64>, CheckpointError> {
    let name = match files::read(pointer, MOST_SMALL_BYTES) {
        Ok(name) => name,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error("read", pointer)(error)),
    };
    let step = step_of(String::from_utf8_lossy(&name).trim());
    Ok(step.filter(|&step| pointer.with_file_name(checkpoint_name(step)).is_dir()))
}

/// The checkpoints of a folder that a run can go on from, the one to try first in front: the one that `latest`
/// names and those of earlier steps, or, should the pointer be lost, all, from the highest step down.
pub(crate) fn candidates(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    candidates_up_to(folder, u64::MAX)
}

/// Those of [`candidates`] after at most `most` steps.
pub(crate) fn candidates_up_to(folder: &Path, most: u64) -> Result<Vec<PathBuf>, CheckpointError> {
    let (steps, _) = list(folder)?;
    let newest = pointed_at(&folder.join(LATEST))?.unwrap_or(u64::MAX).min(most);
    let steps = steps.into_iter().rev().filter(|&step| step <= newest);
    Ok(steps.map(|step| folder.join(checkpoint_name(step))).collect())
}

/// Path of the newest checkpoint below `folder`, if there is one.
pub(super) fn latest(folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    Ok(candidates(folder)?.into_iter().find(|path| path.join(CHECKSUMS).is_file()))
}

/// Where `path`, as for [`load`], leaves it to the pointer which checkpoint is meant, and that names none: which one is
/// taken instead, as a sentence.
pub(crate) fn pointer_warning(path: &Path) -> Option<String> {
    let taken = resolve(path).ok()?;
    let pointer = taken.with_file_name(LATEST);
    // A checkpoint, or a file in one.
    if path.starts_with(&taken) || !pointer.exists() {
        return None;
    }
    match pointed_at(&pointer) {
        Ok(None) => Some(format!(
            "{} names no checkpoint that is there; the one of the highest step is taken: {}",
            pointer.display(),
            taken.display()
        )),
        _ => None,
    }
}

/// The newest whole checkpoint below `folder` that `check` finds no damage in either, with what is wrong with each newer
/// one; `None` where there is not one checkpoint.
#[allow(clippy::type_complexity, reason = "a name for what is taken apart at once would say less")]
pub(crate) fn newest_whole(
    folder: &Path,
    parameters: u64,
    check: impl Fn(&Path, &Checkpoint) -> Result<(), CheckpointError>,
) -> Result<Option<(PathBuf, Checkpoint, Vec<CheckpointError>)>, CheckpointError> {
    let mut passed_over = Vec::new();
    for path in candidates(folder)? {
        let loaded =
            load_all(&path, parameters).and_then(|checkpoint| check(&path, &checkpoint).map(|()| checkpoint));
        match loaded {
            Ok(checkpoint) => return Ok(Some((path, checkpoint, passed_over))),
            Err(error @ (CheckpointError::Damaged { .. } | CheckpointError::File { .. })) => {
                passed_over.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    match passed_over.is_empty() {
        true => Ok(None),
        false => Err(CheckpointError::NoneWhole {
            path: folder.to_owned(),
            reasons: passed_over.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// Whether `folder` holds a checkpoint, or what is left of one.
fn is_checkpoint(folder: &Path) -> bool {
    [STATE, CHECKSUMS].iter().any(|file| folder.join(file).exists())
}

fn resolve(path: &Path) -> Result<PathBuf, CheckpointError> {
    let absent = || CheckpointError::Absent { path: path.to_owned() };
    let name = path.file_name().unwrap_or_default();
    // The file of weights stands for the checkpoint that it lies in, a pointer for the one that it names.
    if name == Part::Weights.file() || name == Part::Averaged.file() {
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        // A run need not average its weights. Where one has, they are missing for damage alone.
        let never_was = name == Part::Averaged.file()
            && !path.exists()
            && read_checksums(folder).is_ok_and(|sums| !sums.contains_key(Part::Averaged.file()));
        return if is_checkpoint(folder) && !never_was { Ok(folder.to_owned()) } else { Err(absent()) };
    }
    if (name == LATEST || name == BEST) && path.is_file() {
        return match pointed_at(path)? {
            Some(step) => Ok(path.with_file_name(checkpoint_name(step))),
            None => Err(file_error("find the checkpoint that is named in", path)(ErrorKind::NotFound.into())),
        };
    }
    if is_checkpoint(path) {
        return Ok(path.to_owned());
    }
    if path.exists() && !path.is_dir() {
        return Err(absent());
    }
    for folder in [path.to_owned(), path.join("checkpoints")] {
        if let Some(found) = latest(&folder)? {
            return Ok(found);
        }
    }
    Err(absent())
}
