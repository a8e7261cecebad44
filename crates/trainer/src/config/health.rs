//! Keys about what happens when numbers go wrong, the averaged weights and the loss scale.

use serde::{Deserialize, Serialize};

/// `train.on_nan:` all ranks see the same average, so they all do the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNan {
    /// End the run, name the rank and the layer it comes from, and write `evidence/` in the run's folder.
    #[default]
    Stop,
    /// Leave weights, momentum and running statistics as they are and go on with the next batch. Many such steps
    /// in a row end the run all the same, and so do weights that are themselves found not finite when they are saved.
    Skip,
    /// Go back to an earlier checkpoint with a lower learning rate, as `train.roll_back` says.
    RollBack,
}

/// `train.roll_back:` the way back to an earlier checkpoint. A run that may have to take it saves one before its first
/// step, too. Damaged checkpoints are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RollBackConfig {
    /// How often, over the whole run; one time more ends it.
    pub most: u32,
    /// What the learning rate is multiplied by each time, from then on.
    pub rate_factor: f64,
    /// 1 for the newest sound checkpoint, 2 for the one before it, and so on; the oldest where there are fewer.
    pub checkpoints_back: u32,
}

impl Default for RollBackConfig {
    fn default() -> Self {
        RollBackConfig { most: 3, rate_factor: 0.5, checkpoints_back: 1 }
    }
}

/// `train.loss_spike:` what to do when the loss of a step jumps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossSpikeConfig {
    /// What happens then.
    pub action: OnSpike,
    /// Latest steps whose losses are usual.
    pub window: usize,
    /// A loss further above their median than so many deviations is a spike. A deviation is 1.4826 times the median
    /// absolute deviation, and at least 0.05.
    pub deviations: f64,
}

impl Default for LossSpikeConfig {
    fn default() -> Self {
        LossSpikeConfig { action: OnSpike::Warn, window: 50, deviations: 10.0 }
    }
}

/// `train.loss_spike.action:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnSpike {
    /// Nothing.
    Ignore,
    /// Say so, once for a jump.
    #[default]
    Warn,
    /// Go back to an earlier checkpoint with a lower learning rate, as `train.roll_back` says.
    RollBack,
}

/// `train.averaging:` an exponential moving average of the weights and of batch norm's running statistics, evaluated
/// and saved beside the weights. Torchvision's references: decay 0.99998 at an update every 32 steps, adapted to the
/// batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AveragingConfig {
    /// Share of the average that an update keeps.
    pub decay: f64,
    /// Steps between updates.
    #[serde(default = "super::defaults::one")]
    pub every_steps: u32,
    /// For so many epochs an update copies the weights, and so does the first one after them.
    #[serde(default)]
    pub warmup_epochs: f64,
}

/// `precision.loss_scale:` the factor of the loss under fp16. Defaults of PyTorch's `GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossScaleConfig {
    /// The first factor.
    pub initial: f32,
    /// What it is multiplied by after `growth_interval` finite steps in a row.
    pub growth_factor: f32,
    /// What it is multiplied by after a step whose averaged gradient is not finite; that step is left out.
    pub backoff_factor: f32,
    /// See `growth_factor`.
    pub growth_interval: u32,
}

impl Default for LossScaleConfig {
    fn default() -> Self {
        LossScaleConfig { initial: 65_536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 }
    }
}
