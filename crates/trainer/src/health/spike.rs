//! Notices a loss that jumps out of the usual: further above the median of the latest losses than so many median
//! absolute deviations. All ranks see the same losses, so they all decide the same.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::config::LossSpikeConfig;

/// Makes the median absolute deviation comparable with a standard deviation, for normal noise.
const MAD_TO_DEVIATION: f64 = 1.4826;
/// Losses whose noise is smaller are judged as if it were this: late in training hardly anything is noise.
const LEAST_DEVIATION: f64 = 0.05;

/// The first step, counted from 1, whose loss is judged where none before it is left out.
pub(crate) fn first_judged(config: &LossSpikeConfig) -> u64 {
    config.window.div_ceil(2) as u64 + 1
}

/// The latest losses; part of a checkpoint, so that a resumed run decides as the uninterrupted one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossWatch {
    recent: VecDeque<f32>,
    /// The latest loss was a spike.
    spiking: bool,
}

/// A loss out of the usual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spike {
    pub(crate) loss: f32,
    /// Median of the losses before.
    pub(crate) usual: f64,
    /// Usual deviation from it.
    pub(crate) deviation: f64,
    /// The loss before was none: this is the beginning.
    pub(crate) begins: bool,
}

impl LossWatch {
    /// The losses that the next one is compared with, the oldest first.
    pub(crate) fn recent(&self) -> impl ExactSizeIterator<Item = f32> + '_ {
        self.recent.iter().copied()
    }

    /// Takes the loss of a step; whether it is a spike. The first half of a window is not judged.
    pub(crate) fn step(&mut self, config: &LossSpikeConfig, loss: f32) -> Option<Spike> {
        let spike =
            (2 * self.recent.len() >= config.window).then(|| self.judge(config.deviations, loss)).flatten();
        while self.recent.len() >= config.window {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        self.spiking = spike.is_some();
        spike
    }

    fn judge(&self, deviations: f64, loss: f32) -> Option<Spike> {
        let usual = median(self.recent.iter().copied().map(f64::from).collect());
        let mad = median(self.recent.iter().map(|&recent| (f64::from(recent) - usual).abs()).collect());
        let deviation = (MAD_TO_DEVIATION * mad).max(LEAST_DEVIATION);
        (f64::from(loss) > usual + deviations * deviation).then_some(Spike {
            loss,
            usual,
            deviation,
            begins: !self.spiking,
        })
    }
}

/// Of one value or more.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnSpike;

    const CONFIG: LossSpikeConfig = LossSpikeConfig { action: OnSpike::Warn, window: 20, deviations: 6.0 };

    /// A falling loss with some noise.
    fn usual(step: u32) -> f32 {
        2.3 * (-0.01 * step as f32).exp() + 0.1 * (step as f32 * 2.4).sin()
    }

    #[test]
    fn a_jump_is_noticed_and_noise_a_falling_loss_and_a_new_rate_are_not() {
        let mut watch = LossWatch::default();
        let mut spikes = Vec::new();
        for step in 0..300 {
            let loss = match step {
                5 => 50.0,                  // before there is anything to compare with
                150 | 151 => 6.0,           // a jump of two steps
                200.. => 0.2 * usual(step), // a lower rate
                _ => usual(step),
            };
            if let Some(spike) = watch.step(&CONFIG, loss) {
                spikes.push((step, spike.begins));
            }
        }
        assert_eq!(spikes, [(150, true), (151, false)]);
    }

    #[test]
    fn the_first_loss_that_is_judged_is_known() {
        for window in [8, 9, 50, 51] {
            let config = LossSpikeConfig { window, ..CONFIG };
            let first = (1..100).find(|&step| {
                let mut watch = LossWatch::default();
                (1..step).for_each(|_| assert!(watch.step(&config, 1.0).is_none()));
                watch.step(&config, 100.0).is_some()
            });
            assert_eq!(first, Some(first_judged(&config)), "window {window}");
        }
    }

    #[test]
    fn losses_that_stay_high_become_usual() {
        let mut watch = LossWatch::default();
        let found = (0..60).filter(|&step| watch.step(&CONFIG, if step < 30 { 1.0 } else { 3.0 }).is_some());
        assert_eq!(found.collect::<Vec<_>>(), (30..40).collect::<Vec<_>>());
    }

    #[test]
    fn a_watch_that_was_saved_goes_on_as_it_was() {
        let mut watch = LossWatch::default();
        for step in 0..37 {
            let _ = watch.step(&CONFIG, usual(step));
        }
        let json = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<LossWatch>(&json).unwrap(), watch);
    }
}
