//! LARS and LAMB: rules whose rate adapts to the norms of each tensor. All else is [`super`]'s.

use tch::{Kind, Tensor};
use torch_ext::optimizer::Sgd;

use super::memory::narrow;
use super::rule::Adam;
use super::{Group, Optimizer, refs};
use crate::error::Error;

impl Optimizer {
    /// You, Gitman & Ginsburg 2017, algorithm 1: `v = momentum * v + rate * local * (g + decay * w)`; `w -= v`, with
    /// `local = trust * |w| / (|g| + decay * |w|)`, or 1 where a norm is zero or the tensor does not adapt.
    pub(super) fn lars(&self, rate: f64, momentum: f64, trust_coefficient: f64) -> Result<(), Error> {
        let sums = self.norms.square_sums(&[&self.parameters, &self.gradients])?;
        for group in &self.groups {
            let decay = group.weight_decay;
            let local = group.adapts_to.map_or(1.0, |segment| {
                let (weights, gradient) = (sums[0][segment].sqrt(), sums[1][segment].sqrt());
                ratio(trust_coefficient * weights, gradient, gradient + decay * weights)
            });
            let scale = rate * local;
            for gradient in &group.gradients {
                let _ = gradient.shallow_clone().f_mul_scalar_(scale)?;
            }
            // The rate is in the momentum already, and has to be in the decay.
            let sgd = Sgd {
                learning_rate: 1.0,
                momentum,
                dampening: 0.0,
                weight_decay: scale * decay,
                nesterov: false,
            };
            group.sgd(&sgd, None)?;
        }
        Ok(())
    }

    /// You et al. 2019, algorithm 2: `w -= rate * ratio * u` with Adam's `u = m / (sqrt(v) + epsilon) + decay * w`, both
    /// moments corrected for their start at zero, and `ratio = |w| / |u|`, or 1 where a norm is zero or the tensor does
    /// not adapt.
    pub(super) fn lamb(&self, rate: f64, adam: Adam) -> Result<(), Error> {
        let step = self.count_update()?;
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
            group.adamw(&refs(&negative), &adamw, step)?;
            for ((gradient, negative), weights) in
                group.gradients.iter().zip(&negative).zip(&group.parameters)
            {
                // One rounding an operation: no bit depends on where a share ends.
                let mut direction = gradient.shallow_clone();
                direction.f_copy_(weights)?;
                let _ = direction.f_mul_scalar_(group.weight_decay)?.f_sub_(negative)?;
            }
        }
        let sums = self.norms.square_sums(&[&self.parameters, &self.gradients])?;
        for group in &self.groups {
            let ratio = group.adapts_to.map_or(1.0, |segment| {
                let (weights, direction) = (sums[0][segment].sqrt(), sums[1][segment].sqrt());
                ratio(weights, direction, direction)
            });
            for (weights, direction) in group.parameters.iter().zip(&group.gradients) {
                let update = direction.shallow_clone().f_mul_scalar_(rate * ratio)?;
                let _ = weights.shallow_clone().f_sub_(&update)?;
            }
        }
        Ok(())
    }
}

/// `above / below`, or 1 where `above` or `norm` is zero.
fn ratio(above: f64, norm: f64, below: f64) -> f64 {
    if above > 0.0 && norm > 0.0 { above / below } else { 1.0 }
}
