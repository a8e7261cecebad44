//! Back to an earlier checkpoint of the same run with a lower learning rate, when a step's numbers are not finite or
//! its loss jumps. Finds the checkpoint; the run itself takes it from there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoint, CheckpointError};
use crate::config::{ConfigError, LoadedConfig, OnNan, OnSpike, RollBackConfig, TrainConfig};
use crate::error::Error;

/// One way back; part of a checkpoint's state and a line of the metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RollBack {
    /// The step that went wrong, counted from 1.
    pub(crate) from_step: u64,
    /// Completed steps of the checkpoint.
    pub(crate) to_step: u64,
    /// What went wrong.
    pub(crate) reason: String,
    /// What the schedule's rate is multiplied by from then on.
    pub(crate) rate_factor: f64,
}

/// Refuses values that make no sense, or without the policy that they belong to.
pub(super) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let train = &loaded.config.train;
    let checkpoints_back = train.roll_back.checkpoints_back;
    let error = |key: &str, message: String| Err(loaded.error(&format!("train.roll_back.{key}"), message));
    let kept = loaded.config.checkpoint.keep_last;
    if checkpoints_back as usize > kept {
        return error(
            "checkpoints_back",
            format!("{checkpoints_back} is out of range; expected 1 to checkpoint.keep_last ({kept})"),
        );
    }
    if !is_policy(train) && train.roll_back != RollBackConfig::default() {
        let message = "has no meaning without train.on_nan: roll-back or train.loss_spike.action: roll-back";
        return Err(loaded.error("train.roll_back", message));
    }
    Ok(())
}

/// Whether a way back may multiply the learning rate by `factor`.
pub(crate) fn lowers_the_rate(factor: f64) -> bool {
    factor > 0.0 && factor <= 1.0
}

/// Whether something may lead a run back to an earlier checkpoint.
pub(crate) fn is_policy(train: &TrainConfig) -> bool {
    train.on_nan == OnNan::RollBack || train.loss_spike.action == OnSpike::RollBack
}

/// Where a run goes back to.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) checkpoint: Checkpoint,
    /// What is wrong with newer ones.
    pub(crate) passed_over: Vec<CheckpointError>,
}

/// On rank 0, for a run that has completed `step` steps: the checkpoint to go back to below `folder`: the newest one up
/// to there, or as many before it as `config` says if there are so many, of a network of so many `parameters`. Those that are damaged, or that `check` finds to
/// be no good or another run's, are passed over and not counted.
pub(crate) fn find(
    folder: &Path,
    step: u64,
    config: &RollBackConfig,
    check: impl Fn(&Path, &Checkpoint) -> Result<(), CheckpointError>,
) -> Result<Found, Error> {
    parameters: u64,
    let mut passed_over = Vec::new();
    let (mut found, mut sound) = (None, 0);
    for path in checkpoint::candidates_up_to(folder, step)? {
        match checkpoint::load_all(&path, parameters).and_then(|saved| check(&path, &saved).map(|()| saved)) {
            Ok(saved) => {
                found = Some((path, saved));
                sound += 1;
                if sound == config.checkpoints_back {
                    break;
                }
            }
            Err(error) => passed_over.push(error),
        }
    }
    if let Some((path, checkpoint)) = found {
        return Ok(Found { path, checkpoint, passed_over });
    }
    let reasons: Vec<String> = passed_over.iter().map(|error| format!("{error}; ")).collect();
    Err(Error::Other(format!(
        "{}there is no checkpoint in {} to roll back to; begin another run with a lower schedule.rate or a longer warm-up",
        reasons.concat(),
        folder.display()
    )))
}
