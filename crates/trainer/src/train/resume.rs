//! Where a run begins: at the start, or at a checkpoint that must be of the same run. Rank 0's business.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Resume, TrainOptions, initial};
use crate::checkpoint::{self, Checkpoint, CheckpointError, Part, RunState};
use crate::engine::Engine;
use crate::error::Error;
use crate::health::HealthState;
use crate::health::roll_back::lowers_the_rate;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::transfer::{self, Classifier};

/// Where a run begins.
pub(super) struct Start {
    pub(super) position: RunState,
    /// The checkpoint that it goes on from.
    pub(super) from: Option<PathBuf>,
    /// What is wrong with newer checkpoints.
    pub(super) passed_over: Vec<CheckpointError>,
}

/// The position of a run that has not begun.
pub(super) fn fresh_position(plan: &Plan) -> RunState {
    let version = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    RunState {
        format: checkpoint::FORMAT,
        arch: plan.architecture.to_string(),
        classes: plan.network.classes(),
        health: HealthState::new(&plan.config),
        meaning: plan.config.meaning().into_iter().collect(),
        meaning_hash: plan.config.meaning_hash(),
        data: plan.data.train.fingerprint().to_owned(),
        versions: BTreeMap::from([
            version("wrn-dist", env!("CARGO_PKG_VERSION")),
            version("libtorch", &torch_ext::runtime::versions().torch),
        ]),
        ..RunState::default()
    }
}

/// On rank 0: finds the checkpoint to go on from and loads its tensors.
pub(super) fn resume(
    plan: &Plan,
    engine: &Engine,
    dir: &RunDir,
    options: &TrainOptions,
    fresh: Start,
) -> Result<Start, Error> {
    let holds_a_run = dir.metrics().exists() || dir.checkpoints().exists();
    let found = match &options.resume {
        Resume::Path(path) => {
            let (path, _) = checkpoint::load_state(path)?;
            if holds_a_run && !lies_in(&path, &dir.checkpoints()) {
                return Err(Error::Usage(format!(
                    "{} already holds a run, and {} is not part of it; leave --resume out to go on with that run, or name \
                     another --out to go on from there",
                    dir.root().display(),
                    path.display()
                )));
            }
            let saved = checkpoint::load_all(&path)?;
            Some((path, saved, Vec::new()))
        }
        Resume::Auto => checkpoint::newest_whole(&dir.checkpoints())?,
        Resume::None if holds_a_run => {
            return Err(Error::Usage(format!(
                "{} already holds a run; name another --out, or leave --resume at auto to go on with it",
                dir.root().display()
            )));
        }
        Resume::None => None,
    };
    let Some((path, saved, passed_over)) = found else {
        initial::load(plan, engine)?;
        let state = engine.state()?;
        if let Some(averaged) = &state.averaged {
            averaged.begin(&state.flat_parameters, &state.running_statistics)?;
        }
        return Ok(fresh);
    };
    let foreign = |reason: String| Error::from(CheckpointError::Foreign { path: path.clone(), reason });
    if saved.state.imported.is_some() {
        return Err(foreign(
            "it holds imported weights alone; set model.weights to it instead of --resume".to_owned(),
        ));
    }
    refuse_other_architecture(plan, &saved.state, &path)?;
    refuse_other_keys(plan, &saved.state, &path, |_| true)?;
    let fresh = fresh.position;
    if saved.state.data != fresh.data {
        return Err(foreign(format!(
            "its training data had fingerprint {}, this has {}",
            saved.state.data, fresh.data
        )));
    }
    let RunState { epoch, step, .. } = saved.state;
    // After the last step of an epoch its evaluation may be outstanding.
    let begin = u64::from(epoch) * plan.steps_per_epoch;
    if step > plan.total_steps() || !(begin..=begin + plan.steps_per_epoch).contains(&step) {
        let reason = format!(
            "state.json says step {step} and epoch {epoch}, but the run has {} steps, {} an epoch",
            plan.total_steps(),
            plan.steps_per_epoch
        );
        return Err(CheckpointError::Damaged { path, reason }.into());
    }
    let factor = saved.state.health.rate_factor();
    if !lowers_the_rate(factor) {
        let reason = format!(
            "state.json says {factor} times the scheduled learning rate; expected more than 0, at most 1"
        );
        return Err(CheckpointError::Damaged { path, reason }.into());
    }
    let position = take_over(plan, engine, saved, &path, fresh.versions)?;
    Ok(Start { position, from: Some(path), passed_over })
}

/// Collective: what rank 0 knows, on every rank.
pub(super) fn share<T: Serialize + DeserializeOwned>(session: &Session, known: &T) -> Result<T, Error> {
    let json = |error: serde_json::Error| Error::Other(error.to_string());
    let bytes = serde_json::to_vec(known).map_err(json)?;
    serde_json::from_slice(&session.leaders(bytes)?).map_err(json)
}

/// On rank 0: puts a checkpoint's tensors in place; where the run then stands.
pub(super) fn take_over(
    plan: &Plan,
    engine: &Engine,
    saved: Checkpoint,
    path: &Path,
    versions: BTreeMap<String, String>,
) -> Result<RunState, Error> {
    for part in [Part::Weights, Part::Optimizer, Part::Averaged] {
        transfer::import(&plan.network, engine.state()?, part, Classifier::Saved, saved.tensors(part), path)?;
    }
    Ok(RunState { versions, ..saved.state })
}

/// On rank 0: the value that a key had in the run that this one goes on with; `None` for a run that begins.
pub(super) fn recorded<T: DeserializeOwned>(dir: &RunDir, options: &TrainOptions, key: &str) -> Option<T> {
    let candidates = match &options.resume {
        Resume::Path(path) => vec![path.clone()],
        Resume::Auto => checkpoint::candidates(&dir.checkpoints()).ok()?,
        Resume::None => Vec::new(),
    };
    let (_, state) = candidates.iter().find_map(|path| checkpoint::load_state(path).ok())?;
    serde_yaml::from_str(state.meaning.get(key)?).ok()
}

/// Whether a checkpoint is one of those of the run whose checkpoints are in `folder`.
pub(super) fn lies_in(checkpoint: &Path, folder: &Path) -> bool {
    match (checkpoint.canonicalize(), folder.canonicalize()) {
        (Ok(checkpoint), Ok(folder)) => checkpoint.parent() == Some(&folder),
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
        .map(|(key, then, now)| {
            let advice = if key == DERIVED { advice(&then) } else { String::new() };
            format!("{key} was {then}, is {now}{advice}")
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("{}; a run of its own needs another --out", differences.join("; "));
    Err(CheckpointError::Foreign { path: origin.to_owned(), reason }.into())
}

/// The key that changes with the number of ranks where it is not set.
pub(super) const DERIVED: &str = "train.micro_batch";

/// What to do where nobody has changed the key.
fn advice(then: &str) -> String {
    format!(
        " (without this key it is the global batch divided by the number of ranks; --set {DERIVED}={then} goes on as \
         before, on any number of ranks whose product with it divides the global batch)"
    )
}
