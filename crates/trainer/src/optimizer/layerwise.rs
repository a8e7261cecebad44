//! LARS and LAMB: rules whose rate adapts to the norms of each tensor. All else is [`super`]'s.

use tch::{Device, Kind, Tensor};
use torch_ext::optimizer::Sgd;

use super::memory::narrow;
use super::rule::Adam;
use super::{Group, Optimizer, refs};
use crate::error::Error;

impl Optimizer {
    /// You, Gitman & Ginsburg 2017, algorithm 1: `v = momentum * v + rate * local * (g + decay * w)`; `w -= v`, with
    /// `local = trust * |w| / (|g| + decay * |w|)`, or 1 where a norm is zero or the tensor does not adapt.
    pub(super) fn lars(
        &self,
        rate: f64,
        momentum: f64,
        trust_coefficient: f64,
        skip: Option<&Tensor>,
    ) -> Result<(), Error> {
        let [weights, gradients] = self.norms.square_sums([&self.parameters, &self.gradients])?;
        let (weights, gradients) = (weights.f_sqrt()?, gradients.f_sqrt()?);
        let decayed = gradients.f_add(&weights.f_mul(&self.layers.decays)?)?;
        let local = weights.f_mul_scalar(trust_coefficient)?.f_div(&decayed)?;
        let rates = self.layers.rates(rate, &local, [&weights, &gradients])?;
        // The rate is in the momentum already, and the decay in the gradient.
        let sgd = Sgd { learning_rate: 1.0, momentum, dampening: 0.0, weight_decay: 0.0, nesterov: false };
        for group in &self.groups {
            let rate = rates.f_get(group.segment as i64)?;
            for (weights, gradient) in group.parameters.iter().zip(&group.gradients) {
                // One rounding an operation: no bit depends on where a share ends.
                let mut gradient = gradient.shallow_clone();
                if group.weight_decay != 0.0 {
                    let _ = gradient.f_add_(&weights.f_mul_scalar(group.weight_decay)?)?;
                }
                let _ = gradient.f_mul_(&rate)?;
            }
            group.sgd(&sgd, skip)?;
        }
        Ok(())
    }

    /// You et al. 2019, algorithm 2: `w -= rate * ratio * u` with Adam's `u = m / (sqrt(v) + epsilon) + decay * w`, both
    /// moments corrected for their start at zero, and `ratio = |w| / |u|`, or 1 where a norm is zero or the tensor does
    /// not adapt.
    pub(super) fn lamb(&self, rate: f64, adam: Adam, skip: Option<&Tensor>) -> Result<(), Error> {
        let step = self.count_update(skip)?;
        let len = |group: &Group| group.gradients.iter().map(Tensor::numel).sum::<usize>();
        let longest = self.groups.iter().map(len).max().unwrap_or(0);
        let scratch = Tensor::f_zeros([longest as i64], (Kind::Float, self.parameters.device()))?;
        // Directions take the place of gradients.
        for group in &self.groups {
            // Subtracted from zero at a rate of 1 and without decay: what AdamW subtracts is left, negative.
            let adamw = adam.with(1.0, 0.0);
            let mut begin = 0;
            let mut negative = Vec::with_capacity(group.gradients.len());
            for gradient in &group.gradients {
                negative.push(narrow(&scratch, &(begin..begin + gradient.numel()))?.f_zero_()?);
                begin += gradient.numel();
            }
            group.adamw(&refs(&negative), &adamw, &step, skip)?;
            for ((gradient, negative), weights) in
                group.gradients.iter().zip(&negative).zip(&group.parameters)
            {
                // As in LARS, one rounding an operation.
                let mut direction = gradient.shallow_clone();
                direction.f_copy_(weights)?;
                let _ = direction.f_mul_scalar_(group.weight_decay)?.f_sub_(negative)?;
            }
        }
        let [weights, directions] = self.norms.square_sums([&self.parameters, &self.gradients])?;
        let (weights, directions) = (weights.f_sqrt()?, directions.f_sqrt()?);
        let rates = self.layers.rates(rate, &weights.f_div(&directions)?, [&weights, &directions])?;
        let skip = skip.map(|skip| skip.f_gt(0.0)).transpose()?;
        for group in &self.groups {
            let rate = rates.f_get(group.segment as i64)?;
            for (weights, direction) in group.parameters.iter().zip(&group.gradients) {
                let mut update = direction.shallow_clone().f_mul_(&rate)?;
                if let Some(skip) = &skip {
                    update = update.f_masked_fill_(skip, 0.0)?;
                }
                let _ = weights.shallow_clone().f_sub_(&update)?;
            }
        }
        Ok(())
    }
}

/// What a layerwise rule knows of each segment, beside the tensors.
pub(super) struct Layers {
    /// `[segments]`, fp64: its weight decay.
    decays: Tensor,
    /// `[segments]`: whether its rate adapts to its norms.
    adapts: Tensor,
}

impl Layers {
    /// Of each segment, its weight decay and whether it adapts.
    pub(super) fn new(segments: &[(f64, bool)], device: Device) -> Result<Self, Error> {
        let (decays, adapts): (Vec<f64>, Vec<bool>) = segments.iter().copied().unzip();
        let on_device = |tensor: Tensor| tensor.f_to_device(device);
        Ok(Layers {
            decays: on_device(Tensor::f_from_slice(&decays)?)?,
            adapts: on_device(Tensor::f_from_slice(&adapts)?)?,
        })
    }

    /// `[segments]`, fp32: `rate` times `ratios`, or `rate` itself where one of `norms` is zero or the segment does not
    /// adapt.
    fn rates(&self, rate: f64, ratios: &Tensor, norms: [&Tensor; 2]) -> Result<Tensor, Error> {
        let [first, second] = norms;
        let counts = first.f_gt(0.0)?.f_logical_and(&second.f_gt(0.0)?)?.f_logical_and(&self.adapts)?;
        let ratios = ratios.f_where_self(&counts, &ratios.f_ones_like()?)?;
        Ok(ratios.f_mul_scalar(rate)?.f_to_kind(Kind::Float)?)
    }
}
