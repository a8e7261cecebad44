//! The learning rate as a pure function of the step. Knows neither optimizer nor data.

use crate::config::{ConfigError, LoadedConfig, ScaleRate, ScaleRule, ScheduleConfig, ScheduleKind};

/// A checked schedule over a known number of steps.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    curve: Curve,
    rate: f64,
    warmup_steps: f64,
    warmup_from: f64,
    steps_per_epoch: u64,
    total_steps: u64,
}

#[derive(Clone, Debug)]
enum Curve {
    Constant,
    Step { milestones: Vec<u32>, factor: f64 },
    Cosine { final_rate: f64 },
    Polynomial { power: f64, final_rate: f64 },
    OneCycle { peak_at: f64, initial_divisor: f64, final_divisor: f64 },
}

/// Which kinds use which optional key.
const OPTIONAL_KEYS: &[(&str, &[ScheduleKind])] = &[
    ("milestones", &[ScheduleKind::Step]),
    ("factor", &[ScheduleKind::Step]),
    ("power", &[ScheduleKind::Polynomial]),
    ("final_rate", &[ScheduleKind::Cosine, ScheduleKind::Polynomial]),
    ("peak_at", &[ScheduleKind::OneCycle]),
    ("initial_divisor", &[ScheduleKind::OneCycle]),
    ("final_divisor", &[ScheduleKind::OneCycle]),
];

impl Schedule {
    /// Checks the section without knowing the length of an epoch.
    pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
        Self::new(loaded, 1).map(|_| ())
    }

    /// # Errors
    /// When a key is missing or belongs to another kind, or epochs lie outside the run.
    pub(crate) fn new(loaded: &LoadedConfig, steps_per_epoch: u64) -> Result<Self, ConfigError> {
        let config = &loaded.config.schedule;
        let epochs = loaded.config.train.epochs;
        let error = |key: &str, message: String| loaded.error(&format!("schedule.{key}"), message);
        let present = present_keys(config);
        for (key, kinds) in OPTIONAL_KEYS {
            if present.contains(key) && !kinds.contains(&config.kind) {
                return Err(error(key, format!("is not used by kind {}", kind_name(config.kind))));
            }
        }
        if !(0.0..=f64::from(epochs)).contains(&config.warmup_epochs) {
            return Err(error(
                "warmup_epochs",
                format!("{} is outside 0 to train.epochs ({epochs})", config.warmup_epochs),
            ));
        }
        let warmup_from = config.warmup_from.unwrap_or_default();
        if config.kind == ScheduleKind::OneCycle && config.warmup_epochs > 0.0 {
            return Err(error("warmup_epochs", "one-cycle rises by itself until peak_at; expected 0".into()));
        }
        let scale = rate_scale(config, loaded.config.train.global_batch);
        let curve = match config.kind {
            ScheduleKind::Constant => Curve::Constant,
            ScheduleKind::Step => {
                let milestones = config.milestones.clone().ok_or_else(|| {
                    error("milestones", "kind step needs a list of epochs, such as [60, 120, 160]".into())
                })?;
                if milestones.windows(2).any(|pair| pair[0] >= pair[1]) {
                    return Err(error(
                        "milestones",
                        format!("{milestones:?}: expected ascending epochs, counted from 1"),
                    ));
                }
                let factor = config
                    .factor
                    .ok_or_else(|| error("factor", "kind step needs a factor, such as 0.2".into()))?;
                Curve::Step { milestones, factor }
            }
            ScheduleKind::Cosine => Curve::Cosine { final_rate: scale * config.final_rate.unwrap_or(0.0) },
            ScheduleKind::Polynomial => Curve::Polynomial {
                power: config.power.unwrap_or(2.0),
                final_rate: scale * config.final_rate.unwrap_or(0.0),
            },
            ScheduleKind::OneCycle => Curve::OneCycle {
                peak_at: config.peak_at.unwrap_or(0.3),
                initial_divisor: config.initial_divisor.unwrap_or(25.0),
                final_divisor: config.final_divisor.unwrap_or(1e4),
            },
        };
        Ok(Schedule {
            curve,
            rate: scale * config.rate,
            warmup_steps: (config.warmup_epochs * steps_per_epoch as f64).round(),
            warmup_from,
            steps_per_epoch,
            total_steps: steps_per_epoch * u64::from(epochs),
        })
    }

    /// Learning rate of `step`, counted from 0 over the whole run.
    pub(crate) fn rate(&self, step: u64) -> f64 {
        let at = step as f64;
        if at < self.warmup_steps {
            // Goyal et al. §2.2: linear, one increment a step, reaching the base rate when the warm-up ends.
            return self.warmup_from + (self.rate - self.warmup_from) * at / self.warmup_steps;
        }
        // From the first step after the warm-up (0) to the last step of the run (1).
        let remaining = (self.total_steps as f64 - 1.0 - self.warmup_steps).max(1.0);
        let progress = ((at - self.warmup_steps) / remaining).clamp(0.0, 1.0);
        match &self.curve {
            Curve::Constant => self.rate,
            Curve::Step { factor, .. } => self.rate * factor.powi(self.milestones_passed(step) as i32),
            Curve::Cosine { final_rate } => cosine(self.rate, *final_rate, progress),
            Curve::Polynomial { power, final_rate } => {
                final_rate + (self.rate - final_rate) * (1.0 - progress).powf(*power)
            }
            Curve::OneCycle { peak_at, initial_divisor, final_divisor } => {
                // PyTorch's OneCycleLR: the peak lies at step `pct_start * total_steps - 1`.
                let first = self.rate / initial_divisor;
                let last_step = self.total_steps as f64 - 1.0;
                let peak_step = (peak_at * self.total_steps as f64 - 1.0).max(0.0);
                if at < peak_step {
                    cosine(first, self.rate, at / peak_step)
                } else {
                    let share = (at - peak_step) / (last_step - peak_step).max(1.0);
                    cosine(self.rate, first / final_divisor, share.min(1.0))
                }
            }
        }
    }

    /// Whether the rate falls by a milestone just at `step`.
    pub(crate) fn milestone_begins(&self, step: u64) -> bool {
        step > 0 && self.milestones_passed(step) > self.milestones_passed(step - 1)
    }

    fn milestones_passed(&self, step: u64) -> usize {
        let Curve::Step { milestones, .. } = &self.curve else { return 0 };
        let epoch = step / self.steps_per_epoch + 1;
        milestones.iter().filter(|&&milestone| epoch >= u64::from(milestone)).count()
    }
}

/// What the configured rates are multiplied by.
pub(crate) fn rate_scale(config: &ScheduleConfig, global_batch: usize) -> f64 {
    let Some(ScaleRate { reference_batch, rule }) = config.scale_rate else { return 1.0 };
    let larger = global_batch as f64 / reference_batch as f64;
    match rule {
        ScaleRule::Linear => larger,
        ScaleRule::SquareRoot => larger.sqrt(),
    }
}

fn cosine(from: f64, to: f64, progress: f64) -> f64 {
    to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

fn present_keys(config: &ScheduleConfig) -> Vec<&'static str> {
    [
        ("milestones", config.milestones.is_some()),
        ("factor", config.factor.is_some()),
        ("power", config.power.is_some()),
        ("final_rate", config.final_rate.is_some()),
        ("peak_at", config.peak_at.is_some()),
        ("initial_divisor", config.initial_divisor.is_some()),
        ("final_divisor", config.final_divisor.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, present)| present.then_some(key))
    .collect()
}

fn kind_name(kind: ScheduleKind) -> &'static str {
    match kind {
        ScheduleKind::Constant => "constant",
        ScheduleKind::Step => "step",
        ScheduleKind::Cosine => "cosine",
        ScheduleKind::Polynomial => "polynomial",
        ScheduleKind::OneCycle => "one-cycle",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn loaded(epochs: u32, schedule: &str) -> LoadedConfig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = format!(
            "model: {{arch: wrn-10-1}}\ndata: {{kind: cifar10, path: d}}\ntrain: {{epochs: {epochs}, global_batch: 8}}\nschedule: {schedule}\n"
        );
        std::fs::write(&path, text).unwrap();
        load(&path, &[]).unwrap()
    }

    fn schedule(epochs: u32, steps_per_epoch: u64, text: &str) -> Schedule {
        Schedule::new(&loaded(epochs, text), steps_per_epoch).unwrap()
    }

    #[test]
    fn the_papers_drops_come_at_the_start_of_epochs_60_120_160() {
        let schedule = schedule(200, 390, "{kind: step, rate: 0.1, milestones: [60, 120, 160], factor: 0.2}");
        let mut epochs_per_rate = [0; 4];
        for epoch in 0..200_u64 {
            let rate = schedule.rate(epoch * 390);
            assert_eq!(rate, schedule.rate(epoch * 390 + 389), "constant within an epoch");
            let drop = (0..4).find(|&drop| (rate - 0.1 * 0.2_f64.powi(drop)).abs() < 1e-12).unwrap();
            epochs_per_rate[drop as usize] += 1;
        }
        assert_eq!(epochs_per_rate, [59, 60, 40, 41], "wrn-facts §0, trap 8");
        assert!(schedule.milestone_begins(59 * 390) && !schedule.milestone_begins(59 * 390 + 1));
    }

    #[test]
    fn curves_pass_through_their_fixed_points() {
        let cases: &[(&str, &[(u64, f64)])] = &[
            (
                "{kind: constant, rate: 0.4, warmup_epochs: 2, warmup_from: 0.1}",
                &[(0, 0.1), (10, 0.25), (20, 0.4), (99, 0.4)],
            ),
            ("{kind: cosine, rate: 1.0, final_rate: 0.2}", &[(0, 1.0), (99, 0.2)]),
            ("{kind: cosine, rate: 1.0, warmup_epochs: 1}", &[(5, 0.5), (10, 1.0), (99, 0.0)]),
            ("{kind: polynomial, rate: 1.0, power: 2}", &[(0, 1.0), (99, 0.0)]),
            ("{kind: one-cycle, rate: 0.2, peak_at: 0.3}", &[(0, 0.008), (29, 0.2), (99, 8e-7)]),
        ];
        for (text, points) in cases {
            let schedule = schedule(10, 10, text);
            for (step, rate) in *points {
                assert!(
                    (schedule.rate(*step) - rate).abs() < 1e-9,
                    "{text} at {step}: {}",
                    schedule.rate(*step)
                );
            }
        }
    }

    /// The global batch is 8.
    #[test]
    fn scaled_rates_follow_the_batch_and_warm_up_from_the_unscaled_one() {
        let cases: &[(&str, &[(u64, f64)])] = &[
            (
                "{kind: constant, rate: 0.1, scale_rate: {reference_batch: 2}, warmup_epochs: 1}",
                &[(0, 0.1), (5, 0.25), (10, 0.4), (99, 0.4)],
            ),
            (
                "{kind: cosine, rate: 0.1, final_rate: 0.01, scale_rate: {reference_batch: 2, rule: square-root}}",
                &[(0, 0.2), (99, 0.02)],
            ),
            (
                "{kind: constant, rate: 0.1, scale_rate: {reference_batch: 16}, warmup_epochs: 1, warmup_from: 0}",
                &[(0, 0.0), (10, 0.05)],
            ),
        ];
        for (text, points) in cases {
            let schedule = schedule(10, 10, text);
            for (step, rate) in *points {
                assert!(
                    (schedule.rate(*step) - rate).abs() < 1e-12,
                    "{text} at {step}: {}",
                    schedule.rate(*step)
                );
            }
        }
    }

    #[test]
    fn impossible_schedules_name_their_key() {
        for (text, key) in [
            ("{kind: step, rate: 0.1, factor: 0.2}", "schedule.milestones"),
            ("{kind: step, rate: 0.1, milestones: [3]}", "schedule.factor"),
            ("{kind: step, rate: 0.1, milestones: [3, 3], factor: 0.1}", "schedule.milestones"),
            ("{kind: cosine, rate: 0.1, milestones: [3]}", "schedule.milestones"),
            ("{kind: constant, rate: 1, warmup_epochs: 11}", "schedule.warmup_epochs"),
            ("{kind: one-cycle, rate: 1, warmup_epochs: 1}", "schedule.warmup_epochs"),
        ] {
            let message = Schedule::check(&loaded(10, text)).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains("c.yaml:4"), "{text}: {message}");
        }
    }
}
