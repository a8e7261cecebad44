//! Where a run begins: at the start, or at a checkpoint that must be of the same run. Rank 0's business.

use std::path::Path;

use super::{Resume, TrainOptions};
use crate::checkpoint::{self, CheckpointError, RunState};
use crate::engine::Engine;
use crate::error::Error;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::transfer::{self, Part};

/// The position of a run that has not begun.
pub(super) fn fresh_position(plan: &Plan) -> RunState {
    RunState {
        format: RunState::FORMAT,
        arch: plan.architecture.to_string(),
        classes: plan.network.classes(),
        epoch: 0,
        step: 0,
        epoch_loss_sum: 0.0,
        epoch_correct: 0,
        best_top1_error: None,
        meaning: plan.config.meaning().into_iter().collect(),
        data: plan.train.fingerprint().to_owned(),
        checksums: std::collections::BTreeMap::new(),
    }
}

/// On rank 0: finds the checkpoint to go on from and loads its tensors.
pub(super) fn resume(
    plan: &Plan,
    engine: &Engine,
    dir: &RunDir,
    options: &TrainOptions,
    fresh: RunState,
) -> Result<RunState, Error> {
    let found = match &options.resume {
        Resume::Path(path) => Some(path.clone()),
        Resume::Auto => checkpoint::latest(&dir.checkpoints())?,
        Resume::None if dir.metrics().exists() || dir.checkpoints().exists() => {
            return Err(Error::Other(format!(
                "{} already holds a run; name another --out, or leave --resume at auto to go on with it",
                dir.root().display()
            )));
        }
        Resume::None => None,
    };
    let Some(path) = found else { return Ok(fresh) };
    let saved = checkpoint::load(&path, true)?;
    refuse_other_architecture(plan, &saved.state, &path)?;
    let foreign = |reason: String| Error::from(CheckpointError::Foreign { path: path.clone(), reason });
    let mut differences: Vec<String> = Vec::new();
    for (key, value) in &fresh.meaning {
        let then = saved.state.meaning.get(key).map_or("absent", String::as_str);
        if then != value {
            differences.push(format!("{key} was {then}, is {value}"));
        }
    }
    if !differences.is_empty() {
        return Err(foreign(format!(
            "{}; name another --out to start a run of its own",
            differences.join("; ")
        )));
    }
    if saved.state.data != fresh.data {
        return Err(foreign(format!(
            "its training data had fingerprint {}, this has {}",
            saved.state.data, fresh.data
        )));
    }
    transfer::import(&plan.network, &engine.state, Part::Weights, &saved.weights, &path)?;
    transfer::import(&plan.network, &engine.state, Part::Optimizer, &saved.optimizer, &path)?;
    Ok(RunState { checksums: fresh.checksums, ..saved.state })
}

/// Names both when a checkpoint is of another network.
pub(super) fn refuse_other_architecture(plan: &Plan, saved: &RunState, origin: &Path) -> Result<(), Error> {
    let classes = plan.network.classes();
    let arch = plan.architecture.to_string();
    if saved.arch == arch && saved.classes == classes {
        return Ok(());
    }
    Err(CheckpointError::Foreign {
        path: origin.to_owned(),
        reason: format!(
            "it holds {} for {} classes, the configuration says {arch} for {classes}",
            saved.arch, saved.classes
        ),
    }
    .into())
}
