//! The dynamic loss scale of fp16 (`precision.loss_scale`): gradients too small for fp16 are multiplied by a factor that
//! grows until they are too large, as PyTorch's `GradScaler` does it. Whether they were is seen from the averaged
//! gradient, which is the same on all ranks, so the scale is the same everywhere.

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Dtype, LoadedConfig, LossScaleConfig};

/// A step that is not finite with this scale or a smaller one has another reason than fp16's range.
const LEAST: f32 = 1.0;

/// Refuses a scale without fp16.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let precision = &loaded.config.precision;
    if precision.loss_scale.is_some() && precision.dtype != Dtype::Fp16 {
        let message = format!("has no meaning with precision.dtype: {}; expected fp16", precision.dtype);
        return Err(loaded.error("precision.loss_scale", message));
    }
    Ok(())
}

/// Where the scale stands; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    /// What the loss is multiplied by.
    pub(crate) scale: f32,
    /// Finite steps since it changed last.
    good_steps: u32,
}

impl LossScale {
    pub(crate) fn new(config: &LossScaleConfig) -> Self {
        LossScale { scale: config.initial, good_steps: 0 }
    }

    /// Finite steps since it changed last.
    pub(crate) fn good_steps(&self) -> u32 {
        self.good_steps
    }

    /// Whether a smaller scale may help a step that is not finite.
    pub(crate) fn can_shrink(&self) -> bool {
        self.scale > LEAST
    }

    /// Takes a step in: whether its averaged gradient was finite.
    pub(crate) fn step(&mut self, config: &LossScaleConfig, finite: bool) {
        if !finite {
            *self = LossScale { scale: times(self.scale, config.backoff_factor), good_steps: 0 };
            return;
        }
        self.good_steps += 1;
        if self.good_steps == config.growth_interval {
            self.good_steps = 0;
            let grown = times(self.scale, config.growth_factor);
            if grown.is_finite() {
                self.scale = grown;
            }
        }
    }
}

/// As PyTorch rounds it.
fn times(scale: f32, factor: f32) -> f32 {
    (f64::from(scale) * f64::from(factor)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    /// The scale after each step, by libtorch's own operation.
    fn of_libtorch(config: &LossScaleConfig, finite: &[bool]) -> Vec<f32> {
        let mut scale = Tensor::from_slice(&[config.initial]);
        let tracker = Tensor::zeros([1], (Kind::Int, tch::Device::Cpu));
        let step = |&finite: &bool| {
            let found = Tensor::from_slice(&[if finite { 0.0_f32 } else { 1.0 }]);
            let (growth, backoff) = (config.growth_factor.into(), config.backoff_factor.into());
            let _ = scale.internal_amp_update_scale_(
                &tracker,
                &found,
                growth,
                backoff,
                config.growth_interval.into(),
            );
            scale.double_value(&[0]) as f32
        };
        finite.iter().map(step).collect()
    }

    #[test]
    fn the_scale_moves_as_that_of_pytorch() {
        let configs = [
            LossScaleConfig::default(),
            LossScaleConfig { growth_interval: 3, ..LossScaleConfig::default() },
            LossScaleConfig { initial: 1e38, growth_factor: 3.0, backoff_factor: 0.25, growth_interval: 1 },
        ];
        // Bad at irregular places, at times several in a row.
        let finite: Vec<bool> = (0..200_u32).map(|step| step % 7 != 3 && step % 31 < 28).collect();
        for config in configs {
            let mut scale = LossScale::new(&config);
            let ours: Vec<f32> = (finite.iter())
                .map(|&finite| {
                    scale.step(&config, finite);
                    scale.scale
                })
                .collect();
            assert_eq!(ours, of_libtorch(&config, &finite), "{config:?}");
        }
    }
}
