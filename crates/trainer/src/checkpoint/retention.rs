//! Which checkpoints stay, and the names by which they are found.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::read::load_state;
use super::write::{remove_folder, replace_file};
use super::{BEST, CheckpointError, file_error};

/// How many checkpoints stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Of the newest, the one just saved among them; 1 or more.
    pub(crate) last: usize,
    /// Of those with the lowest test error.
    pub(crate) best: usize,
}

/// Name of the folder of the checkpoint after `step` steps.
pub(super) fn checkpoint_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// The step of a checkpoint's folder; `None` for names of anything else.
pub(super) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

/// Names of interrupted saves.
fn is_partial(name: &str) -> bool {
    let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial")) else {
        return false;
    };
    step_of(name.strip_prefix("former-").unwrap_or(name)).is_some()
}

/// The steps of all checkpoints of a folder, and the names of interrupted saves.
pub(super) fn list(folder: &Path) -> Result<(Vec<u64>, Vec<String>), CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        entries => entries.map_err(file_error("list", folder))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let (mut steps, mut partial) = (Vec::new(), Vec::new());
    for name in names {
        match step_of(&name) {
            Some(step) => steps.push(step),
            None if is_partial(&name) => partial.push(name),
            None => {}
        }
    }
    steps.sort_unstable();
    Ok((steps, partial))
}

/// Removes the checkpoints of steps after `step`, for a run that goes on from there by another way.
pub(crate) fn remove_newer(folder: &Path, step: u64) -> Result<(), CheckpointError> {
    let (steps, _) = list(folder)?;
    steps
        .into_iter()
        .rev()
        .take_while(|&found| found > step)
        .try_for_each(|found| remove_folder(&folder.join(checkpoint_name(found))))
}

/// After the save of `step`: points `best` at the best checkpoint, and removes what interrupted saves left and
/// the checkpoints that are not kept. Those of later steps are left alone: the run went back, and will pass them.
pub(super) fn tidy(folder: &Path, step: u64, keep: Keep) -> Result<(), CheckpointError> {
    let (mut steps, partial) = list(folder)?;
    for name in partial {
        remove_folder(&folder.join(name))?;
    }
    steps.retain(|&found| found <= step);
    let mut by_error: Vec<(f64, u64)> = (steps.iter())
        .filter_map(|&step| {
            let (_, state) = load_state(&folder.join(checkpoint_name(step))).ok()?;
            Some((state.top1_error?, step))
        })
        .collect();
    by_error.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    by_error.truncate(keep.best);
    let pointer = folder.join(BEST);
    match by_error.first() {
        Some(&(_, step)) => {
            let name = checkpoint_name(step);
            if fs::read_to_string(&pointer).ok().as_ref() != Some(&name) {
                replace_file(&pointer, name.as_bytes())?;
            }
        }
        None => match fs::remove_file(&pointer) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(file_error("remove", &pointer)(error));
            }
            _ => {}
        },
    }
    let older = steps.len().saturating_sub(keep.last);
    for &step in steps[..older].iter().filter(|&step| by_error.iter().all(|(_, best)| best != step)) {
        remove_folder(&folder.join(checkpoint_name(step)))?;
    }
    Ok(())
}
