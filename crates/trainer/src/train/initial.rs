//! Where the weights of a new run come from: drawn from the seed, or read from a checkpoint (`model.weights`).

use super::TrainOptions;
use super::resume::{recorded, refuse_other_keys};
use crate::checkpoint::{self, CheckpointError};
use crate::config::{ConfigError, LoadedConfig};
use crate::engine::Engine;
use crate::error::Error;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::telemetry::print_warning;
use crate::transfer::{self, Classifier, Part};

/// Refuses keys that say something about initial weights when there are none.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let model = &loaded.config.model;
    if model.weights.is_some() {
        return Ok(());
    }
    for (key, given) in [
        ("model.weights_sha256", model.weights_sha256.is_some()),
        ("model.new_classifier", model.new_classifier),
    ] {
        if given {
            return Err(loaded.error(key, "has no meaning without model.weights"));
        }
    }
    Ok(())
}

/// Collective: writes the checksum of the initial weights into the configuration, where it decides whether two
/// runs are the same. Only rank 0 reads the checkpoint. A run that goes on needs it no more: where it is gone, the
/// checksum is that of the run's own checkpoint.
pub(super) fn identify(
    session: &Session,
    loaded: &LoadedConfig,
    plan: &mut Plan,
    dir: &RunDir,
    options: &TrainOptions,
) -> Result<(), Error> {
    let model = &mut plan.config.model;
    let (Some(path), None) = (&model.weights, &model.weights_sha256) else { return Ok(()) };
    let checksum = match session.is_leader() {
        true => checkpoint::weights_checksum(path).or_else(|error| {
            recorded(dir, options, "model.weights_sha256")
                .ok_or_else(|| loaded.error("model.weights", error.to_string()).into())
        }),
        false => Ok(String::new()),
    };
    let checksum = session.leaders(session.agree(checksum)?.into_bytes())?;
    model.weights_sha256 = Some(String::from_utf8_lossy(&checksum).into_owned());
    Ok(())
}

/// On rank 0, for a run that begins: loads the initial weights where the configuration names some.
pub(super) fn load(plan: &Plan, engine: &Engine) -> Result<(), Error> {
    let model = &plan.config.model;
    let Some(path) = &model.weights else { return Ok(()) };
    let foreign = |reason: String| Error::from(CheckpointError::Foreign { path: path.clone(), reason });
    if let Some(warning) = checkpoint::pointer_warning(path) {
        print_warning(&warning);
    }
    let found = checkpoint::weights_checksum(path)?;
    if let Some(expected) = model.weights_sha256.as_ref().filter(|expected| **expected != found) {
        return Err(foreign(format!(
            "its weights have SHA-256 {found}, model.weights_sha256 says {expected}"
        )));
    }
    let saved = checkpoint::load(path, &[Part::Weights], plan.network.parameter_count())?;
    let architecture = plan.architecture.to_string();
    if saved.state.arch != architecture {
        return Err(foreign(format!("it holds {}, model.arch says {architecture}", saved.state.arch)));
    }
    // What the same weights would compute something else with.
    refuse_other_keys(plan, &saved.state, path, |key| key == "model.shortcut_input")?;
    let left_out = saved.state.imported.as_ref().is_some_and(|imported| !imported.classifier);
    let classifier = if left_out || model.new_classifier { Classifier::Fresh } else { Classifier::Saved };
    let classes = plan.network.classes();
    if classifier == Classifier::Saved && saved.state.classes != classes {
        return Err(foreign(format!(
            "its classifier is for {} classes, the run has {classes}; model.new_classifier: true begins with a new one",
            saved.state.classes
        )));
    }
    transfer::import(
        &plan.network,
        engine.state()?,
        Part::Weights,
        classifier,
        saved.tensors(Part::Weights),
        path,
    )
}
