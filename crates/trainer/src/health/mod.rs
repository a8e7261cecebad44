//! The health of a run while it goes on: ranks that are slow ([`straggler`]), ranks that no longer hold the same
//! numbers ([`desync`]), losses that jump ([`spike`]), the way back to an earlier checkpoint ([`roll_back`]) and
//! what is kept of a run that had to end ([`evidence`]). What a dead or silent rank means is decided elsewhere, in
//! the control plane.

pub(crate) mod desync;
pub(crate) mod evidence;
pub(crate) mod hosts;
pub(crate) mod roll_back;
pub(crate) mod spike;
pub(crate) mod straggler;

use serde::{Deserialize, Serialize};

use self::roll_back::RollBack;
use self::spike::LossWatch;
use crate::config::{Config, ConfigError, LoadedConfig};
use crate::loss_scale::LossScale;

/// What a checkpoint keeps of a run's health, so that a resumed run decides as the uninterrupted one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HealthState {
    /// Under fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<LossScale>,
    /// The latest losses.
    #[serde(default)]
    pub(crate) losses: LossWatch,
    /// Latest steps in a row that were left out since their gradient was not finite, but for those of a loss scale that
    /// was too large.
    #[serde(default)]
    pub(crate) skipped_in_a_row: u64,
    /// Ways back to earlier checkpoints, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) roll_backs: Vec<RollBack>,
}

impl HealthState {
    /// Of a run that has not begun.
    pub(crate) fn new(config: &Config) -> Self {
        HealthState {
            loss_scale: config.precision.loss_scale.as_ref().map(LossScale::new),
            ..Self::default()
        }
    }

    /// What the schedule's learning rate is multiplied by.
    pub(crate) fn rate_factor(&self) -> f64 {
        self.roll_backs.last().map_or(1.0, |roll_back| roll_back.rate_factor)
    }
}

/// Refuses values of the configuration that make no sense.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    roll_back::check(loaded)
}
