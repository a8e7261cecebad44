//! The dynamic loss scale of fp16 (`precision.loss_scale`): gradients too small for fp16 are multiplied by a factor that
//! grows until they are too large, as PyTorch's `GradScaler` does it. Whether they were is seen from the averaged
//! gradient, which is the same on all ranks, so the scale is the same everywhere.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::config::{ConfigError, Dtype, LoadedConfig, LossScaleConfig};
use crate::error::Error;

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
            let scale = times(self.scale, config.backoff_factor).max(LEAST);
            *self = LossScale { scale, good_steps: 0 };
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

/// The scale on the device that computes with it, where steps follow each other without the host.
pub(crate) struct ScaleOnDevice {
    /// `[]`, fp32.
    scale: Tensor,
    /// `[]`, int32.
    good_steps: Tensor,
}

impl ScaleOnDevice {
    /// A scale of 1, until it is [set](ScaleOnDevice::set).
    pub(crate) fn new(device: Device) -> Result<Self, Error> {
        let number = |kind| Tensor::f_ones([0_i64; 0], (kind, device));
        Ok(ScaleOnDevice { scale: number(Kind::Float)?, good_steps: number(Kind::Int)? })
    }

    /// What the host knows.
    pub(crate) fn set(&self, scale: &LossScale) -> Result<(), Error> {
        let _ = self.scale.shallow_clone().f_fill_(f64::from(scale.scale))?;
        let _ = self.good_steps.shallow_clone().f_fill_(f64::from(scale.good_steps))?;
        Ok(())
    }

    /// What the loss is multiplied by, `[]`.
    pub(crate) fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// What gradients of such a loss are multiplied by, `[]`.
    pub(crate) fn inverse(&self) -> Result<Tensor, Error> {
        Ok(self.scale.f_to_kind(Kind::Double)?.f_reciprocal()?.f_to_kind(Kind::Float)?)
    }

    /// `[]`: whether a smaller scale may help a step that is not finite.
    pub(crate) fn can_shrink(&self) -> Result<Tensor, Error> {
        Ok(self.scale.f_gt(f64::from(LEAST))?)
    }

    /// As [`LossScale::step`]; `not_finite`, `[1]`, is 1 where the averaged gradient was not finite, else 0.
    pub(crate) fn step(&self, config: &LossScaleConfig, not_finite: &Tensor) -> Result<(), Error> {
        let (growth, backoff) = (config.growth_factor.into(), config.backoff_factor.into());
        let interval = config.growth_interval.into();
        let mut scale = self.scale.shallow_clone();
        let _ =
            scale.f_internal_amp_update_scale_(&self.good_steps, not_finite, growth, backoff, interval)?;
        let _ = scale.f_clamp_min_(f64::from(LEAST))?;
        Ok(())
    }
}

/// As PyTorch rounds it.
fn times(scale: f32, factor: f32) -> f32 {
    (f64::from(scale) * f64::from(factor)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scale before each step, where it is stepped by libtorch's own operation.
    fn on_device(config: &LossScaleConfig, finite: &[bool]) -> Vec<f32> {
        let scale = ScaleOnDevice::new(Device::Cpu).unwrap();
        scale.set(&LossScale::new(config)).unwrap();
        let step = |&finite: &bool| {
            let (before, inverse) = (scale.scale().double_value(&[]) as f32, scale.inverse().unwrap());
            assert_eq!(inverse.double_value(&[]) as f32, (1.0 / f64::from(before)) as f32);
            assert_eq!(scale.can_shrink().unwrap().int64_value(&[]) == 1, before > LEAST);
            scale.step(config, &Tensor::from_slice(&[if finite { 0.0_f32 } else { 1.0 }])).unwrap();
            before
        };
        finite.iter().map(step).collect()
    }

    #[test]
    fn the_scale_moves_as_that_of_pytorch_down_to_its_least() {
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
                    let before = scale.scale;
                    scale.step(&config, finite);
                    before
                })
                .collect();
            assert_eq!(ours, on_device(&config, &finite), "{config:?}");
            assert!(ours.iter().all(|&scale| scale >= LEAST), "{config:?}: {ours:?}");
        }
    }
}
