//! Whether a checkpoint's counters are such as its run can have. A state whose checksum fits may still say anything.

use crate::checkpoint::RunState;
use crate::health::roll_back::lowers_the_rate;

/// What a run's counters cannot exceed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) total_steps: u64,
    pub(super) steps_per_epoch: u64,
    /// Samples of a step.
    pub(super) global_batch: u64,
}

impl Bounds {
    /// The first thing that no run of this size says of itself.
    pub(super) fn check(&self, state: &RunState) -> Result<(), String> {
        let Bounds { total_steps, steps_per_epoch, global_batch } = *self;
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
        let updates = done.saturating_sub(state.epoch_skipped);
        let samples = updates * global_batch;
        // Versions that did not write the number of counted samples left it at 0.
        let counted = if state.epoch_counted == 0 { samples } else { state.epoch_counted };
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
        let loss_scale = state.health.loss_scale.map(|loss_scale| f64::from(loss_scale.scale));
        let numbers = [
            ("epoch_loss_sum", Some(state.epoch_loss_sum), 0.0..=updates as f64 * f64::from(f32::MAX)),
            ("top1_error", state.top1_error, share.clone()),
            ("best_top1_error", state.best_top1_error, share),
            ("health.loss_scale.scale", loss_scale, f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)),
        ];
        for (name, number, range) in numbers {
            if let Some(number) = number
                && !range.contains(&number)
            {
                let (least, most) = (range.start(), range.end());
                return Err(format!("state.json says {name} {number}, expected {least} to {most}"));
            }
        }
        for roll_back in &state.health.roll_backs {
            let factor = roll_back.rate_factor;
            if !lowers_the_rate(factor) {
                return Err(format!(
                    "state.json says {factor} times the scheduled learning rate; expected more than 0, at most 1"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::roll_back::RollBack;

    const BOUNDS: Bounds = Bounds { total_steps: 30, steps_per_epoch: 10, global_batch: 8 };

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
    fn counters_that_no_run_has_are_named() {
        type Change = fn(&mut RunState);
        let cases: [(Change, &str); 16] = [
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
