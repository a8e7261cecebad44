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
    /// A sentence, where there are not as many sound ones as the configuration counts back.
    pub(crate) fewer: Option<String>,
}

/// On rank 0, for a run that has completed `step` steps: the checkpoint to go back to below `folder`: the newest one up
/// to there, or as many before it as `config` says if there are so many. Those that are damaged, or larger than those of a
/// network of so many `parameters`, or that `check` finds to be no good or another run's, are passed over and not counted.
pub(crate) fn find(
    folder: &Path,
    step: u64,
    config: &RollBackConfig,
    parameters: u64,
    check: impl Fn(&Path, &Checkpoint) -> Result<(), CheckpointError>,
) -> Result<Found, Error> {
    let (mut passed_over, mut newer) = (Vec::new(), 0);
    let (mut found, mut sound) = (None, 0);
    for path in checkpoint::candidates_up_to(folder, step)? {
        match checkpoint::load_all(&path, parameters).and_then(|saved| check(&path, &saved).map(|()| saved)) {
            Ok(saved) => {
                found = Some((path, saved));
                newer = passed_over.len();
                sound += 1;
                if sound == config.checkpoints_back {
                    break;
                }
            }
            Err(error) => passed_over.push(error),
        }
    }
    if let Some((path, checkpoint)) = found {
        // Nothing is done with those before it.
        passed_over.truncate(newer);
        let wanted = config.checkpoints_back;
        let fewer = (sound < wanted).then(|| {
            format!(
                "train.roll_back.checkpoints_back is {wanted}, but there are not so many sound checkpoints in {} ({sound}); \
                 the oldest of them is taken",
                folder.display()
            )
        });
        return Ok(Found { path, checkpoint, passed_over, fewer });
    }
    let reasons: Vec<String> = passed_over.iter().map(|error| format!("{error}; ")).collect();
    Err(Error::Other(format!(
        "{}there is no checkpoint in {} to roll back to; begin another run with a lower schedule.rate or a longer warm-up",
        reasons.concat(),
        folder.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{FORMAT, Imported, NamedTensor, RunState, save_weights};

    /// Those of steps 1 to 4, and what is wrong with these.
    fn folder(damaged: &[u64]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for step in 1..=4_u64 {
            // Without an optimizer, which nothing here looks for.
            let imported = Imported {
                file: String::new(),
                sha256: String::new(),
                naming: String::new(),
                classifier: true,
            };
            let state = RunState { format: FORMAT, step, imported: Some(imported), ..RunState::default() };
            let place = folder.path().join(format!("step-{step:09}"));
            let weights = vec![NamedTensor { name: "a".into(), shape: vec![1], values: vec![1.0] }];
            save_weights(&place, &state, weights).unwrap();
            if damaged.contains(&step) {
                std::fs::remove_file(place.join("SHA256SUMS")).unwrap();
            }
        }
        folder
    }

    #[test]
    fn sound_checkpoints_are_counted_back_and_newer_ones_alone_are_told_of() {
        /// Damaged ones, how far back, the one that is found, those that are passed over, and whether there are fewer.
        type Case = (&'static [u64], u32, u64, &'static [u64], bool);
        let cases: [Case; 6] = [
            (&[], 1, 4, &[], false),
            (&[], 4, 1, &[], false),
            (&[4], 1, 3, &[4], false),
            (&[3], 2, 2, &[3], false),
            (&[1, 2, 3], 2, 4, &[], true),
            (&[4, 2, 1], 2, 3, &[4], true),
        ];
        for (damaged, checkpoints_back, step, passed_over, fewer) in cases {
            let folder = folder(damaged);
            let config = RollBackConfig { checkpoints_back, ..RollBackConfig::default() };
            let found = find(folder.path(), 9, &config, 1, |_, _| Ok(())).unwrap();
            assert_eq!(found.checkpoint.state.step, step, "{damaged:?} {checkpoints_back}");
            let told: Vec<String> = found.passed_over.iter().map(ToString::to_string).collect();
            assert_eq!(told.len(), passed_over.len(), "{told:?}");
            for (told, step) in told.iter().zip(passed_over) {
                assert!(told.contains(&format!("step-{step:09}")), "{told}");
            }
            assert_eq!(found.fewer.is_some(), fewer, "{damaged:?} {checkpoints_back}");
        }
        let none = find(folder(&[1, 2, 3, 4]).path(), 9, &RollBackConfig::default(), 1, |_, _| Ok(()));
        let sentence = none.err().unwrap().to_string();
        assert!(sentence.contains("step-000000001") && sentence.contains("no checkpoint"), "{sentence}");
    }
}
