//! Where a run begins: at the start, or at a checkpoint that must be of the same run. Rank 0's business.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::position::Bounds;
use super::{Resume, TrainOptions, initial};
use crate::checkpoint::{self, Checkpoint, CheckpointError, Part, RunState};
use crate::engine::Engine;
use crate::error::Error;
use crate::health::HealthState;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::transfer::{self, Classifier};

/// Where a run begins.
pub(super) struct Start {
    pub(super) position: RunState,
    /// The checkpoint that it goes on from.
    pub(super) from: Option<PathBuf>,
    /// What is wrong with newer checkpoints and the pointer to them.
    pub(super) warnings: Vec<String>,
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
    let pointer = match &options.resume {
        Resume::Path(path) => checkpoint::pointer_warning(path),
        Resume::Auto => checkpoint::pointer_warning(&dir.checkpoints()),
        Resume::None => None,
    };
    let parameters = plan.network.parameter_count();
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
            let saved = checkpoint::load_all(&path, parameters)?;
            require_own(plan, &path, &saved)?;
            Some((path, saved, Vec::new()))
        }
        Resume::Auto => {
            let check = |path: &Path, saved: &Checkpoint| require_own(plan, path, saved);
            checkpoint::newest_whole(&dir.checkpoints(), parameters, check)?
        }
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
    let position = take_over(plan, engine, saved, &path, fresh.position.versions)?;
    let told = passed_over.iter().map(told_as_passed_over);
    Ok(Start { position, from: Some(path), warnings: pointer.into_iter().chain(told).collect() })
}

/// A checkpoint that is passed over, as a warning.
pub(super) fn told_as_passed_over(error: &CheckpointError) -> String {
    format!("{error}; it is passed over for the one before it")
}

/// Refuses a checkpoint that is not of the run that `plan` is, or says of itself what no such run does.
pub(super) fn require_own(plan: &Plan, path: &Path, saved: &Checkpoint) -> Result<(), CheckpointError> {
    let state = &saved.state;
    let foreign = |reason: String| CheckpointError::Foreign { path: path.to_owned(), reason };
    if state.imported.is_some() {
        return Err(foreign(
            "it holds imported weights alone; set model.weights to it instead of --resume".to_owned(),
        ));
    }
    refuse_other_architecture(plan, state, path)?;
    refuse_other_keys(plan, state, path, |_| true)?;
    let data = plan.data.train.fingerprint();
    if state.data != data {
        return Err(foreign(format!("its training data had fingerprint {}, this has {data}", state.data)));
    }
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
    Bounds::of(plan).check(state).map_err(damaged)?;
    let averaged = Part::Averaged;
    if plan.config.train.averaging.is_some() && !saved.parts.contains_key(&averaged) {
        return Err(damaged(format!("it has no {}, which train.averaging needs to go on", averaged.file())));
    }
    Ok(())
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
    Ok(Bounds::of(plan).complete(RunState { versions, ..saved.state }))
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
pub(super) fn refuse_other_architecture(
    plan: &Plan,
    saved: &RunState,
    origin: &Path,
) -> Result<(), CheckpointError> {
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
    })
}

/// Names every key, of those that `matters`, that had another value in the run that saved. Of imported weights
/// no key is known.
pub(super) fn refuse_other_keys(
    plan: &Plan,
    saved: &RunState,
    origin: &Path,
    matters: impl Fn(&str) -> bool,
) -> Result<(), CheckpointError> {
    if saved.imported.is_some() {
        return Ok(());
    }
    let now: BTreeMap<String, String> = plan.config.meaning().into_iter().collect();
    // A version that did not know a key did what the key's default does.
    let mut then = saved.meaning.clone();
    let new: Vec<&str> = now.keys().filter(|key| !then.contains_key(*key)).map(String::as_str).collect();
    then.extend(plan.default_meaning(&new));
    let keys: BTreeSet<&String> = now.keys().chain(then.keys()).filter(|key| matters(key)).collect();
    let differences: Vec<String> = keys
        .into_iter()
        .filter(|key| now.get(*key) != then.get(*key))
        .map(|key| {
            let value = |values: &BTreeMap<String, String>| {
                values.get(key).map_or("absent", String::as_str).to_owned()
            };
            let (then, now) = (value(&then), value(&now));
            match key.as_str() {
                _ if !plan.config.knows(key) => {
                    format!("{key} was {then}, and this version does not know that key")
                }
                DERIVED => format!("{key} was {then}, is {now}{}", advice(&then)),
                _ => format!("{key} was {then}, is {now}"),
            }
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("{}; a run of its own needs another --out", differences.join("; "));
    Err(CheckpointError::Foreign { path: origin.to_owned(), reason })
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
