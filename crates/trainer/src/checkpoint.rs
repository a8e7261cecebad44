//! Checkpoints on disk: weights and optimizer as safetensors by name, the run's position as JSON.
//!
//! ```text
//! checkpoints/step-000000390/{weights.safetensors, optimizer.safetensors, averaged.safetensors, state.json}
//! checkpoints/latest           name of the newest complete one
//! ```
//! What `wrn-dist model import` makes of another program's weights has no optimizer, and a run without `train.averaging`
//! no averaged weights. Averaged weights have the names of the weights, and their file can be named in place of a
//! checkpoint wherever weights are read.
//!
//! A checkpoint is written beside its final place, synced and renamed, so that a name that exists is
//! complete; `state.json` holds the checksum of the other files. Tensors are stored contiguous in their
//! logical order (`[O, I, H, W]`), whatever the layout in memory, so other tools read them as they are. Only
//! rank 0 comes here; it broadcasts what it reads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::health::HealthState;

/// Version of the layout that this module documents.
pub(crate) const FORMAT: u32 = 1;
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const AVERAGED: &str = "averaged.safetensors";
const STATE: &str = "state.json";
const LATEST: &str = "latest";

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The content is not what was written.
    #[error("the checkpoint {} is damaged: {reason}", path.display())]
    Damaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A whole checkpoint, but of another network or run.
    #[error("the checkpoint {} does not belong to this run: {reason}", path.display())]
    Foreign {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
}

/// Where a run stands, beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Version of the checkpoint's layout.
    pub(crate) format: u32,
    /// Architecture string.
    pub(crate) arch: String,
    /// Number of classes.
    pub(crate) classes: u32,
    /// Completed epochs.
    pub(crate) epoch: u32,
    /// Completed steps of the whole run.
    pub(crate) step: u64,
    /// Sum of the losses of the steps of the epoch under way.
    pub(crate) epoch_loss_sum: f64,
    /// Correct predictions of the epoch under way.
    pub(crate) epoch_correct: u64,
    /// Steps of the epoch under way that were skipped, and are in neither sum.
    #[serde(default)]
    pub(crate) epoch_skipped: u64,
    /// Lowest test error so far, 0 to 1.
    pub(crate) best_top1_error: Option<f64>,
    /// Losses, loss scale, and ways back to earlier checkpoints.
    #[serde(default)]
    pub(crate) health: HealthState,
    /// Keys of the configuration that decide what the run computes.
    pub(crate) meaning: BTreeMap<String, String>,
    /// Fingerprint of the training data.
    pub(crate) data: String,
    /// Where weights came from that no run of ours made. Then there is no optimizer, and nothing above but
    /// architecture and classes has a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) imported: Option<Imported>,
    /// SHA-256 of the other files, filled in when saving.
    #[serde(default)]
    pub(crate) checksums: BTreeMap<String, String>,
}

/// The origin of weights that another program wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// Name of the file, without its folder.
    pub(crate) file: String,
    /// SHA-256 of the file.
    pub(crate) sha256: String,
    /// Whose names its tensors had.
    pub(crate) naming: String,
    /// Whether the classifier was taken over.
    pub(crate) classifier: bool,
}

/// A tensor by its logical shape and contiguous values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// A checkpoint in memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) state: RunState,
    pub(crate) weights: Vec<NamedTensor>,
    pub(crate) optimizer: Vec<NamedTensor>,
    /// Empty where none are averaged.
    pub(crate) averaged: Vec<NamedTensor>,
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError + use<> {
    let path = path.to_owned();
    move |source| CheckpointError::File { action, path, source }
}

/// Writes `checkpoint` below `folder`, points `latest` at it and removes the oldest beyond `keep_last`.
/// Returns its path.
pub(crate) fn save(
    folder: &Path,
    checkpoint: &Checkpoint,
    keep_last: usize,
) -> Result<PathBuf, CheckpointError> {
    fs::create_dir_all(folder).map_err(file_error("create", folder))?;
    let name = format!("step-{:09}", checkpoint.state.step);
    let place = folder.join(&name);
    let partial = folder.join(format!(".{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(file_error("remove", &partial))?;
    }
    fs::create_dir(&partial).map_err(file_error("create", &partial))?;
    let mut files = vec![(WEIGHTS, checkpoint.weights.as_slice()), (OPTIMIZER, &checkpoint.optimizer)];
    if !checkpoint.averaged.is_empty() {
        files.push((AVERAGED, &checkpoint.averaged));
    }
    write_files(&partial, checkpoint.state.clone(), &files)?;
    if place.exists() {
        // Of the same step, from an earlier resume: moved out of the way first, so that no moment has half of
        // it.
        let former = folder.join(format!(".former-{name}.partial"));
        fs::rename(&place, &former).map_err(file_error("replace", &place))?;
    }
    fs::rename(&partial, &place).map_err(file_error("rename", &partial))?;
    sync_folder(folder)?;
    replace_file(&folder.join(LATEST), name.as_bytes())?;
    remove_old(folder, keep_last, &name)?;
    Ok(place)
}

/// Writes a checkpoint without optimizer as the new folder `place`.
pub(crate) fn save_weights(
    place: &Path,
    state: RunState,
    weights: &[NamedTensor],
) -> Result<(), CheckpointError> {
    refuse_existing(place)?;
    let parent = parent(place);
    fs::create_dir_all(parent).map_err(file_error("create", parent))?;
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(file_error("remove", &partial))?;
    }
    fs::create_dir(&partial).map_err(file_error("create", &partial))?;
    write_files(&partial, state, &[(WEIGHTS, weights)])?;
    fs::rename(&partial, place).map_err(file_error("rename", &partial))?;
    sync_folder(parent)
}

/// For output that must not replace anything.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), CheckpointError> {
    match path.symlink_metadata() {
        Ok(_) => Err(file_error("write", path)(std::io::ErrorKind::AlreadyExists.into())),
        Err(_) => Ok(()),
    }
}

/// Tensors, and behind them the state with their checksums.
fn write_files(
    folder: &Path,
    mut state: RunState,
    files: &[(&str, &[NamedTensor])],
) -> Result<(), CheckpointError> {
    let damaged = |reason| CheckpointError::Damaged { path: folder.to_owned(), reason };
    for &(file, tensors) in files {
        let bytes = encode(tensors).map_err(damaged)?;
        state.checksums.insert(file.to_owned(), checksum(&bytes));
        write_synced(&folder.join(file), &bytes)?;
    }
    let json = serde_json::to_vec_pretty(&state).map_err(|error| damaged(error.to_string()))?;
    write_synced(&folder.join(STATE), &json)?;
    sync_folder(folder)
}

/// Writes a small file so that its name always holds either the old or the new content.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let partial = path.with_extension("partial");
    write_synced(&partial, bytes)?;
    fs::rename(&partial, path).map_err(file_error("rename", &partial))?;
    sync_folder(parent(path))
}

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(file_error("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(file_error("write", path))
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(file_error("sync", folder))
}

/// Removes older checkpoints beyond `keep_last`, and what an interrupted save left.
fn remove_old(folder: &Path, keep_last: usize, newest: &str) -> Result<(), CheckpointError> {
    let mut complete = Vec::new();
    for name in names(folder)? {
        let place = folder.join(&name);
        if is_partial(&name) {
            fs::remove_dir_all(&place).map_err(file_error("remove", &place))?;
        } else if is_complete(folder, &name) && name != newest {
            complete.push(name);
        }
    }
    complete.sort_unstable();
    for name in complete.iter().rev().skip(keep_last - 1) {
        let old = folder.join(name);
        fs::remove_dir_all(&old).map_err(file_error("remove", &old))?;
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file_error("list", folder))?,
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn is_checkpoint_name(name: &str) -> bool {
    name.strip_prefix("step-")
        .is_some_and(|step| step.len() >= 9 && step.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_partial(name: &str) -> bool {
    let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial")) else {
        return false;
    };
    is_checkpoint_name(name.strip_prefix("former-").unwrap_or(name))
}

fn is_complete(folder: &Path, name: &str) -> bool {
    is_checkpoint_name(name) && folder.join(name).join(STATE).is_file()
}

/// Path of the newest complete checkpoint below `folder`, if there is one: the one that `latest` names, or,
/// should that be lost, the one of the highest step.
pub(crate) fn latest(folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let pointer = folder.join(LATEST);
    let named = match fs::read_to_string(&pointer) {
        Ok(name) => Some(name.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(file_error("read", &pointer)(error)),
    };
    if let Some(name) = named.filter(|name| is_complete(folder, name)) {
        return Ok(Some(folder.join(name)));
    }
    let newest = names(folder)?.into_iter().filter(|name| is_complete(folder, name)).max();
    Ok(newest.map(|name| folder.join(name)))
}

/// Reads and verifies a checkpoint; `with_optimizer` false reads weights alone. `path` may also be its file of weights
/// or of averaged weights, which then are the weights, or a run directory or its `checkpoints` folder, meaning the latest
/// one there.
pub(crate) fn load(path: &Path, with_optimizer: bool) -> Result<Checkpoint, CheckpointError> {
    let (folder, state) = load_state(path)?;
    let damaged = |reason: String| CheckpointError::Damaged { path: folder.clone(), reason };
    if with_optimizer && state.imported.is_some() {
        let reason =
            "it holds imported weights alone; set model.weights to it instead of --resume".to_owned();
        return Err(CheckpointError::Foreign { path: folder, reason });
    }
    let tensors = |file: &str| -> Result<Vec<NamedTensor>, CheckpointError> {
        let bytes = read_file(&folder.join(file))?;
        let expected =
            state.checksums.get(file).ok_or_else(|| damaged(format!("{STATE} has no checksum of {file}")))?;
        let found = checksum(&bytes);
        if found != *expected {
            return Err(damaged(format!("{file} has SHA-256 {found}, {STATE} says {expected}")));
        }
        decode(&bytes).map_err(|reason| damaged(format!("{file}: {reason}")))
    };
    let weights = tensors(weights_file(path))?;
    let (optimizer, averaged) = match (with_optimizer, state.checksums.contains_key(AVERAGED)) {
        (true, true) => (tensors(OPTIMIZER)?, tensors(AVERAGED)?),
        (true, false) => (tensors(OPTIMIZER)?, Vec::new()),
        (false, _) => (Vec::new(), Vec::new()),
    };
    Ok(Checkpoint { state, weights, optimizer, averaged })
}

/// Where a checkpoint lies and what is known of it without its tensors.
fn load_state(path: &Path) -> Result<(PathBuf, RunState), CheckpointError> {
    let folder = resolve(path)?;
    let json = read_file(&folder.join(STATE))?;
    let state: RunState = serde_json::from_slice(&json).map_err(|error| CheckpointError::Damaged {
        path: folder.clone(),
        reason: format!("{STATE} does not parse: {error}"),
    })?;
    if state.format != FORMAT {
        let reason = format!("its format is {}, this version reads {FORMAT}", state.format);
        return Err(CheckpointError::Foreign { path: folder, reason });
    }
    Ok((folder, state))
}

/// SHA-256 of a checkpoint's weights, as it was saved. `named` as the path of [`load`].
pub(crate) fn weights_checksum(named: &Path) -> Result<String, CheckpointError> {
    let (path, state) = load_state(named)?;
    let file = weights_file(named);
    state.checksums.get(file).cloned().ok_or_else(|| CheckpointError::Damaged {
        path,
        reason: format!("{STATE} has no checksum of {file}"),
    })
}

/// Which file of weights `path` means.
fn weights_file(path: &Path) -> &'static str {
    if path.file_name().is_some_and(|name| name == AVERAGED) { AVERAGED } else { WEIGHTS }
}

fn resolve(path: &Path) -> Result<PathBuf, CheckpointError> {
    // The file of weights stands for the checkpoint that it lies in.
    let path = match path.file_name() {
        Some(name) if name == WEIGHTS || name == AVERAGED => path.parent().unwrap_or(path),
        _ => path,
    };
    if path.join(STATE).exists() {
        return Ok(path.to_owned());
    }
    for folder in [path.to_owned(), path.join("checkpoints")] {
        if let Some(found) = latest(&folder)? {
            return Ok(found);
        }
    }
    Err(CheckpointError::File {
        action: "find a checkpoint (a folder with state.json, or a run directory) at",
        path: path.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(file_error("read", path))?;
    Ok(bytes)
}

pub(crate) fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode(tensors: &[NamedTensor]) -> Result<Vec<u8>, String> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|(tensor, bytes)| {
            TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)
                .map(|view| (tensor.name.as_str(), view))
                .map_err(|error| format!("{}: {error}", tensor.name))
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

fn decode(bytes: &[u8]) -> Result<Vec<NamedTensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(format!("{name} is {:?}, expected F32", view.dtype()));
            }
            let values = view
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            Ok(NamedTensor { name: name.to_owned(), shape: view.shape().to_vec(), values })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        let tensor = |name: &str, values: Vec<f32>| NamedTensor {
            name: name.into(),
            shape: vec![values.len()],
            values,
        };
        Checkpoint {
            state: RunState {
                format: FORMAT,
                arch: "wrn-10-1".into(),
                classes: 10,
                epoch: 1,
                step,
                epoch_loss_sum: 0.1 + 0.2,
                epoch_correct: 5,
                epoch_skipped: 1,
                best_top1_error: Some(1.0 / 3.0),
                health: HealthState::default(),
                meaning: [("seed".to_owned(), "1".to_owned())].into(),
                data: "abc".into(),
                imported: None,
                checksums: BTreeMap::new(),
            },
            weights: vec![tensor("a", vec![1.0, -0.0, f32::MIN_POSITIVE]), tensor("b", vec![])],
            optimizer: vec![tensor("a", vec![0.5; 3])],
            averaged: vec![tensor("a", vec![0.25; 3])],
        }
    }

    #[test]
    fn what_is_saved_is_read_back_and_only_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoints");
        assert_eq!(latest(&folder).unwrap(), None);
        for step in [10, 200, 3000] {
            save(&folder, &checkpoint(step), 2).unwrap();
        }
        let newest = latest(&folder).unwrap().unwrap();
        for path in [newest.as_path(), folder.as_path(), dir.path()] {
            let mut read = load(path, true).unwrap();
            assert_eq!(read.state.checksums.len(), 3);
            read.state.checksums.clear();
            // A file may hold its tensors in any order.
            read.weights.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(read, checkpoint(3000), "floats are read back bit for bit");
        }
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["latest", "step-000000200", "step-000003000"]);
    }

    #[test]
    fn a_lost_or_wrong_pointer_falls_back_to_the_highest_complete_step_and_strangers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        for step in [1, 2] {
            save(folder, &checkpoint(step), 2).unwrap();
        }
        fs::create_dir(folder.join("step-mine")).unwrap();
        fs::create_dir(folder.join("step-000000009")).unwrap();
        fs::create_dir(folder.join(".step-000000007.partial")).unwrap();
        for pointer in [Some("step-000000009"), Some("../elsewhere"), Some(""), None] {
            match pointer {
                Some(name) => fs::write(folder.join(LATEST), name).unwrap(),
                None => fs::remove_file(folder.join(LATEST)).unwrap(),
            }
            assert_eq!(latest(folder).unwrap().unwrap(), folder.join("step-000000002"), "{pointer:?}");
        }
        save(folder, &checkpoint(3), 1).unwrap();
        let mut left = names(folder).unwrap();
        left.sort();
        assert_eq!(left, ["latest", "step-000000003", "step-000000009", "step-mine"]);
    }

    #[test]
    fn any_damage_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        for file in [WEIGHTS, OPTIMIZER, AVERAGED, STATE] {
            let path = save(dir.path(), &checkpoint(1), 1).unwrap();
            let whole = fs::read(path.join(file)).unwrap();
            for damage in 0..3 {
                let bytes = match damage {
                    0 => whole[..whole.len() / 2].to_vec(),
                    1 => Vec::new(),
                    _ => {
                        let mut flipped = whole.clone();
                        flipped[0] ^= 1;
                        flipped
                    }
                };
                fs::write(path.join(file), bytes).unwrap();
                let message = load(&path, true).unwrap_err().to_string();
                assert!(message.contains(file) && message.contains("damaged"), "{file} {damage}: {message}");
            }
        }
    }

    #[test]
    fn a_place_without_a_checkpoint_says_what_it_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let message = load(dir.path(), true).unwrap_err().to_string();
        assert!(
            message.contains("state.json") && message.contains(dir.path().to_str().unwrap()),
            "{message}"
        );
    }
}
