//! Whether a checkpoint's counters are such as its run can have. A state whose checksum fits may still say anything.

use crate::checkpoint::RunState;
use crate::config::LossScaleConfig;
use crate::config::ranges::LARGEST_WINDOW;
use crate::health::HealthState;
use crate::health::roll_back::lowers_the_rate;
use crate::plan::Plan;

/// What a run's counters cannot exceed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    total_steps: u64,
    steps_per_epoch: u64,
    /// Samples of a step.
    global_batch: u64,
    /// Under fp16.
    loss_scale: Option<LossScaleConfig>,
}

impl Bounds {
    pub(super) fn of(plan: &Plan) -> Self {
        Bounds {
            total_steps: plan.total_steps(),
            steps_per_epoch: plan.steps_per_epoch,
            global_batch: plan.config.train.global_batch as u64,
            loss_scale: plan.config.precision.loss_scale,
        }
    }

    /// The first thing that no run of this size says of itself.
    pub(super) fn check(&self, state: &RunState) -> Result<(), String> {
        let Bounds { total_steps, steps_per_epoch, global_batch, .. } = *self;
        let RunState { epoch, step, .. } = *state;
        let begin = u64::from(epoch).saturating_mul(steps_per_epoch);
        // After the last step of an epoch its evaluation may be outstanding.
        if step > total_steps || !(begin..=begin.saturating_add(steps_per_epoch)).contains(&step) {
            return Err(format!(
                "state.json says step {step} and epoch {epoch}, but the run has {total_steps} steps, {steps_per_epoch} an epoch"
            ));
        }
        let done = step - begin;
        let counts = |(name, count, most): &(&str, u64, u64)| {
            (count > most).then(|| format!("state.json says {name} {count}, expected at most {most}"))
        };
        let samples = self.samples(state);
        let counted = if knows_counted(state) { state.epoch_counted } else { samples };
        let most_skipped_samples = (done * global_batch).saturating_sub(state.epoch_counted);
        let too_many = [
            ("epoch_skipped", state.epoch_skipped, done),
            ("epoch_counted", state.epoch_counted, samples),
            ("epoch_correct", state.epoch_correct, counted),
            ("epoch_skipped_samples", state.epoch_skipped_samples, most_skipped_samples),
            ("health.skipped_in_a_row", state.health.skipped_in_a_row, step),
        ];
        if let Some(reason) = too_many.iter().find_map(counts) {
            return Err(reason);
        }
        let share = 0.0..=1.0;
        let most_loss = samples as f64 / global_batch as f64 * f64::from(f32::MAX);
        let numbers = [
            ("epoch_loss_sum", Some(state.epoch_loss_sum), 0.0..=most_loss),
            ("top1_error", state.top1_error, share.clone()),
            ("best_top1_error", state.best_top1_error, share),
        ];
        for (name, number, range) in numbers {
            if let Some(number) = number
                && !range.contains(&number)
            {
                let (least, most) = (range.start(), range.end());
                return Err(format!("state.json says {name} {number}, expected {least} to {most}"));
            }
        }
        self.check_health(&state.health)
    }

    fn check_health(&self, health: &HealthState) -> Result<(), String> {
        match (&self.loss_scale, &health.loss_scale) {
            (None, None) => {}
            (None, Some(_)) => {
                // Every step that is not finite would be left out as one of too large a scale, whatever train.on_nan says.
                return Err("state.json has a health.loss_scale, which only a run in fp16 has".into());
            }
            (Some(_), None) => {
                return Err("state.json has no health.loss_scale, without which fp16 does not go on".into());
            }
            (Some(config), Some(found)) => {
                // Versions that knew no least scale went far below 1.
                if !(f32::MIN_POSITIVE..=f32::MAX).contains(&found.scale) {
                    return Err(format!(
                        "state.json says health.loss_scale.scale {}, expected a number above 0",
                        found.scale
                    ));
                }
                if found.good_steps() >= config.growth_interval {
                    return Err(format!(
                        "state.json says health.loss_scale.good_steps {}, expected less than {}, where the scale grows",
                        found.good_steps(),
                        config.growth_interval
                    ));
                }
            }
        }
        let losses = health.losses.recent();
        // train.loss_spike.window may be another one than in the run that saved.
        if losses.len() > LARGEST_WINDOW as usize {
            return Err(format!(
                "state.json has {} losses in health.losses, expected at most {LARGEST_WINDOW}",
                losses.len()
            ));
        }
        for loss in losses {
            if !loss.is_finite() {
                return Err(format!("state.json says {loss} in health.losses, expected finite numbers"));
            }
        }
        for roll_back in &health.roll_backs {
            let factor = roll_back.rate_factor;
            if !lowers_the_rate(factor) {
                return Err(format!(
                    "state.json says {factor} times the scheduled learning rate; expected more than 0, at most 1"
                ));
            }
        }
        Ok(())
    }

    /// Writes down what versions that did not count samples left at 0, in a state that [`Bounds::check`] finds right.
    pub(super) fn complete(&self, mut state: RunState) -> RunState {
        if !knows_counted(&state) {
            let counted = self.samples(&state).saturating_sub(state.epoch_skipped_samples);
            // Some of the skipped ones may be of steps that were left out.
            state.epoch_counted = counted.max(state.epoch_correct);
        }
        state
    }

    /// Of the steps of the epoch under way that were not left out.
    fn samples(&self, state: &RunState) -> u64 {
        let begin = u64::from(state.epoch).saturating_mul(self.steps_per_epoch);
        let done = state.step.saturating_sub(begin);
        done.saturating_sub(state.epoch_skipped).saturating_mul(self.global_batch)
    }
}

/// Every step that is not left out counts a sample.
fn knows_counted(state: &RunState) -> bool {
    state.epoch_counted > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::roll_back::RollBack;
    use crate::health::spike::LossWatch;
    use crate::loss_scale::LossScale;

    const BOUNDS: Bounds = Bounds { total_steps: 30, steps_per_epoch: 10, global_batch: 8, loss_scale: None };

    fn in_fp16() -> Bounds {
        Bounds {
            loss_scale: Some(LossScaleConfig { growth_interval: 7, ..LossScaleConfig::default() }),
            ..BOUNDS
        }
    }

    fn loss_scale(scale: f64, good_steps: u32) -> Option<LossScale> {
        Some(serde_json::from_value(serde_json::json!({"scale": scale, "good_steps": good_steps})).unwrap())
    }

    fn losses(losses: &[f64]) -> LossWatch {
        serde_json::from_value(serde_json::json!({"recent": losses, "spiking": false})).unwrap()
    }

    /// Five steps into the second epoch, one of which was left out, and two samples in the others.
    fn sound() -> RunState {
        RunState {
            epoch: 1,
            step: 15,
            epoch_skipped: 1,
            epoch_counted: 30,
            epoch_correct: 20,
            epoch_skipped_samples: 2,
            epoch_loss_sum: 4.0,
            top1_error: Some(1.0),
            best_top1_error: Some(0.0),
            ..RunState::default()
        }
    }

    #[test]
    fn counters_that_a_run_can_have_pass() {
        for state in [
            sound(),
            RunState::default(),
            RunState { epoch: 3, step: 30, ..RunState::default() },
            // The evaluation is outstanding.
            RunState { epoch: 1, step: 20, ..RunState::default() },
            RunState { epoch_counted: 0, ..sound() },
            RunState { epoch_counted: 32, epoch_skipped_samples: 8, ..sound() },
        ] {
            assert_eq!(BOUNDS.check(&state), Ok(()), "{state:?}");
        }
    }

    #[test]
    fn a_state_without_the_number_of_counted_samples_is_sound_at_the_next_save_too() {
        for (correct, skipped_samples, counted) in [(20, 2, 30), (0, 0, 32), (31, 8, 31)] {
            let old = RunState {
                epoch_counted: 0,
                epoch_correct: correct,
                epoch_skipped_samples: skipped_samples,
                ..sound()
            };
            assert_eq!(BOUNDS.check(&old), Ok(()), "{old:?}");
            let mut state = BOUNDS.complete(old);
            assert_eq!(state.epoch_counted, counted);
            assert_eq!(BOUNDS.check(&state), Ok(()), "{state:?}");
            // A step all of whose predictions are right.
            state.step += 1;
            state.epoch_counted += 8;
            state.epoch_correct += 8;
            assert_eq!(BOUNDS.check(&state), Ok(()), "{state:?}");
        }
        assert_eq!(BOUNDS.complete(sound()), sound());
        assert_eq!(BOUNDS.complete(RunState::default()), RunState::default());
    }

    #[test]
    fn a_loss_scale_is_there_in_fp16_alone_and_one_that_can_be() {
        for (bounds, loss_scale, part) in [
            (BOUNDS, None, None),
            (in_fp16(), loss_scale(65_536.0, 6), None),
            (in_fp16(), loss_scale(1.0, 0), None),
            // As versions left it that knew no least scale.
            (in_fp16(), loss_scale(1e-30, 0), None),
            (BOUNDS, loss_scale(65_536.0, 0), Some("which only a run in fp16 has")),
            (in_fp16(), None, Some("no health.loss_scale")),
            (in_fp16(), loss_scale(65_536.0, 7), Some("good_steps 7, expected less than 7")),
            (in_fp16(), loss_scale(0.0, 0), Some("loss_scale.scale 0")),
            (in_fp16(), loss_scale(-2.0, 0), Some("loss_scale.scale -2")),
            (in_fp16(), loss_scale(1e39, 0), Some("loss_scale.scale inf")),
        ] {
            let mut state = sound();
            state.health.loss_scale = loss_scale;
            match (bounds.check(&state), part) {
                (Ok(()), None) => {}
                (Err(reason), Some(part)) if reason.contains(part) => {}
                (found, part) => panic!("{loss_scale:?}: {found:?} instead of {part:?}"),
            }
        }
    }

    #[test]
    fn counters_that_no_run_has_are_named() {
        type Change = fn(&mut RunState);
        let cases: [(Change, &str); 18] = [
            (|state| state.step = 31, "step 31 and epoch 1"),
            (|state| state.step = 9, "step 9 and epoch 1"),
            (|state| state.step = 21, "step 21 and epoch 1"),
            (|state| state.epoch = u32::MAX, "step 15 and epoch 4294967295"),
            (|state| state.epoch_skipped = 6, "epoch_skipped 6, expected at most 5"),
            (|state| state.epoch_counted = 33, "epoch_counted 33, expected at most 32"),
            (|state| state.epoch_correct = 31, "epoch_correct 31, expected at most 30"),
            (
                |state| (state.epoch_counted, state.epoch_correct) = (0, 33),
                "epoch_correct 33, expected at most 32",
            ),
            (|state| state.epoch_skipped_samples = 11, "epoch_skipped_samples 11, expected at most 10"),
            (|state| state.epoch_skipped_samples = u64::MAX, "epoch_skipped_samples"),
            (|state| state.health.losses = losses(&[0.5, -1e39]), "-inf in health.losses"),
            (|state| state.health.losses = losses(&[0.5; 10_001]), "10001 losses"),
            (|state| state.epoch_loss_sum = -1.0, "epoch_loss_sum -1"),
            (|state| state.epoch_loss_sum = f64::NAN, "epoch_loss_sum NaN"),
            (|state| state.epoch_loss_sum = 1e300, "epoch_loss_sum 1"),
            (|state| state.top1_error = Some(1.5), "top1_error 1.5, expected 0 to 1"),
            (|state| state.best_top1_error = Some(-0.5), "best_top1_error -0.5, expected 0 to 1"),
            (
                |state| {
                    state.health.roll_backs =
                        vec![RollBack { from_step: 3, to_step: 2, reason: String::new(), rate_factor: 2.0 }];
                },
                "2 times the scheduled learning rate",
            ),
        ];
        for (change, part) in cases {
            let mut state = sound();
            change(&mut state);
            let reason = BOUNDS.check(&state).unwrap_err();
            assert!(reason.contains(part), "`{reason}` lacks `{part}`");
        }
    }
}
