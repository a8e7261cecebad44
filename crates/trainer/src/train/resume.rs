//! Where a run begins: at the start, or at a checkpoint that must be of the same run. Rank 0's business.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Resume, TrainOptions, initial};
use crate::checkpoint::{self, Checkpoint, CheckpointError, RunState};
use crate::engine::Engine;
use crate::error::Error;
use crate::health::HealthState;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::transfer::{self, Classifier, Part};

/// The position of a run that has not begun.
pub(super) fn fresh_position(plan: &Plan) -> RunState {
    RunState {
        format: checkpoint::FORMAT,
        arch: plan.architecture.to_string(),
        classes: plan.network.classes(),
        epoch: 0,
        step: 0,
        epoch_loss_sum: 0.0,
        epoch_correct: 0,
        epoch_skipped: 0,
        best_top1_error: None,
        health: HealthState::new(&plan.config),
        meaning: plan.config.meaning().into_iter().collect(),
        data: plan.data.train.fingerprint().to_owned(),
        imported: None,
        checksums: BTreeMap::new(),
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
    let holds_a_run = dir.metrics().exists() || dir.checkpoints().exists();
    let found = match &options.resume {
        Resume::Path(path) if holds_a_run && !is_inside(path, dir.root()) => {
            return Err(Error::Other(format!(
                "{} already holds a run, and {} is not part of it; name another --out to go on from there",
                dir.root().display(),
                path.display()
            )));
        }
        Resume::Path(path) => Some(path.clone()),
        Resume::Auto => checkpoint::latest(&dir.checkpoints())?,
        Resume::None if holds_a_run => {
            return Err(Error::Other(format!(
                "{} already holds a run; name another --out, or leave --resume at auto to go on with it",
                dir.root().display()
            )));
        }
        Resume::None => None,
    };
    let Some(path) = found else {
        initial::load(plan, engine)?;
        let state = &engine.state;
        if let Some(averaged) = &state.averaged {
            averaged.begin(&state.flat_parameters, &state.running_statistics)?;
        }
        return Ok(fresh);
    };
    let saved = checkpoint::load(&path, true)?;
    refuse_other_architecture(plan, &saved.state, &path)?;
    refuse_other_keys(plan, &saved.state, &path, |_| true)?;
    if saved.state.data != fresh.data {
        let reason =
            format!("its training data had fingerprint {}, this has {}", saved.state.data, fresh.data);
        return Err(CheckpointError::Foreign { path, reason }.into());
    }
    let RunState { epoch, step, .. } = saved.state;
    if step > plan.total_steps() || u64::from(epoch) != step / plan.steps_per_epoch {
        let reason = format!(
            "state.json says step {step} and epoch {epoch}, but the run has {} steps, {} an epoch",
            plan.total_steps(),
            plan.steps_per_epoch
        );
        return Err(CheckpointError::Damaged { path, reason }.into());
    }
    take_over(plan, engine, saved, &path)
}

/// Collective: rank 0's position on every rank, unless a rank failed to find its own.
pub(super) fn share_position(session: &Session, local: Result<RunState, Error>) -> Result<RunState, Error> {
    let json = |error: serde_json::Error| Error::Other(error.to_string());
    let bytes = serde_json::to_vec(&session.agree(local)?).map_err(json)?;
    serde_json::from_slice(&session.leaders(bytes)?).map_err(json)
}

/// On rank 0: puts a checkpoint's tensors in place; where the run then stands.
pub(super) fn take_over(
    plan: &Plan,
    engine: &Engine,
    saved: Checkpoint,
    path: &Path,
) -> Result<RunState, Error> {
    for (part, tensors) in [
        (Part::Weights, &saved.weights),
        (Part::Optimizer, &saved.optimizer),
        (Part::Averaged, &saved.averaged),
    ] {
        transfer::import(&plan.network, &engine.state, part, Classifier::Saved, tensors, path)?;
    }
    Ok(RunState { checksums: BTreeMap::new(), ..saved.state })
}

fn is_inside(path: &Path, folder: &Path) -> bool {
    match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => false,
    }
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

/// Names every key, of those that `matters`, that had another value in the run that saved. Of imported weights
/// no key is known.
pub(super) fn refuse_other_keys(
    plan: &Plan,
    saved: &RunState,
    origin: &Path,
    matters: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    if saved.imported.is_some() {
        return Ok(());
    }
    let now: BTreeMap<String, String> = plan.config.meaning().into_iter().collect();
    let keys: BTreeSet<&String> = now.keys().chain(saved.meaning.keys()).filter(|key| matters(key)).collect();
    let value =
        |values: &BTreeMap<String, String>, key| values.get(key).map_or("absent".to_owned(), String::clone);
    let differences: Vec<String> = keys
        .into_iter()
        .map(|key| (key, value(&saved.meaning, key), value(&now, key)))
        .filter(|(_, then, now)| then != now)
        .map(|(key, then, now)| format!("{key} was {then}, is {now}"))
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("{}; a run of its own needs another --out", differences.join("; "));
    Err(CheckpointError::Foreign { path: origin.to_owned(), reason }.into())
}
