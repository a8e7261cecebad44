//! Which checkpoints stay, and the names by which they are found.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::read::load_state;
use super::write::{remove_folder, replace_file};
use super::{BEST, CheckpointError, LATEST, file_error};
use crate::files;

/// Folder within that of the checkpoints for those that a run has turned away from.
pub(crate) const ABANDONED: &str = "abandoned";

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
    files::expect_folder(folder).map_err(file_error("list", folder))?;
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

/// What becomes of checkpoints of steps after the one that a run goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Later {
    /// Their numbers are no good.
    Removed,
    /// Moved to the folder `abandoned`, out of which nothing is taken again by itself. One of the same step that lies
    /// there already is replaced.
    SetAside,
}

/// For a run that goes on from `step`: checkpoints of later steps are of another course of it, and must not be taken
/// for its own. `latest` turns to one that stays first, so that none of them is gone on from, whatever interrupts this.
/// The steps of those that went.
pub(crate) fn drop_later(
    folder: &Path,
    step: u64,
    later: Later,
    keep: Keep,
) -> Result<Vec<u64>, CheckpointError> {
    let (mut steps, _) = list(folder)?;
    let gone = steps.split_off(steps.partition_point(|&found| found <= step));
    if gone.is_empty() {
        return Ok(gone);
    }
    if let Some(&newest) = steps.last() {
        replace_file(&folder.join(LATEST), checkpoint_name(newest).as_bytes())?;
    }
    let place = folder.join(ABANDONED);
    if later == Later::SetAside {
        files::create_folder(&place).map_err(file_error("create", &place))?;
    }
    for &step in gone.iter().rev() {
        match later {
            Later::Removed => remove_checkpoint(folder, step)?,
            Later::SetAside => {
                let (path, aside) = (folder.join(checkpoint_name(step)), place.join(checkpoint_name(step)));
                remove_folder(&aside)?;
                fs::rename(&path, aside).map_err(file_error("set aside", &path))?;
            }
        }
    }
    point_at_best(folder, &steps, keep)?;
    Ok(gone)
}

/// Points `best` at the best of the checkpoints of `steps`; the steps of all those that are kept for their test error.
fn point_at_best(folder: &Path, steps: &[u64], keep: Keep) -> Result<Vec<u64>, CheckpointError> {
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
            if files::read(&pointer, name.len() as u64).ok().as_deref() != Some(name.as_bytes()) {
                replace_file(&pointer, name.as_bytes())?;
            }
        }
        None => match files::expect_file(&pointer).and_then(|()| fs::remove_file(&pointer)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(file_error("remove", &pointer)(error));
            }
            _ => {}
        },
    }
    Ok(by_error.into_iter().map(|(_, step)| step).collect())
}

/// After the save of `step`: points `best` at the best checkpoint, and removes what interrupted saves left and
/// the checkpoints that are not kept. Those of later steps are left alone: [`drop_later`] is for them. What cannot be
/// removed keeps nothing else from it; the first such failure.
pub(super) fn tidy(folder: &Path, step: u64, keep: Keep) -> Result<(), CheckpointError> {
    let (mut steps, partial) = list(folder)?;
    let mut result = Ok(());
    let mut note = |removed: Result<(), CheckpointError>| {
        if result.is_ok() {
            result = removed;
        }
    };
    for name in partial {
        note(remove_folder(&folder.join(name)));
    }
    steps.retain(|&found| found <= step);
    match point_at_best(folder, &steps, keep) {
        Ok(best) => {
            let older = steps.len().saturating_sub(keep.last);
            for &step in steps[..older].iter().filter(|step| !best.contains(step)) {
                note(remove_checkpoint(folder, step));
            }
        }
        Err(error) => note(Err(error)),
    }
    result
}

/// Under another name first, so that what is left of an interrupted removal is no damaged checkpoint.
fn remove_checkpoint(folder: &Path, step: u64) -> Result<(), CheckpointError> {
    let path = folder.join(checkpoint_name(step));
    let former = former(folder, step);
    remove_folder(&former)?;
    fs::rename(&path, &former).map_err(file_error("remove", &path))?;
    remove_folder(&former)
}

/// Where the checkpoint of `step` waits for its end.
pub(super) fn former(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!(".former-{}.partial", checkpoint_name(step)))
}
