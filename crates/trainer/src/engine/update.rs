//! What the averages of a step change of the run: weights, running statistics, averaged weights.

use tch::{Kind, Tensor};

use super::Engine;
use crate::error::Error;
use crate::flat::Tail;
use crate::skip::change_unless;

impl Engine<'_> {
    /// Uses the averages of step `step`, unless the device decides otherwise. Gives the norm of the gradient, `[1]` in fp64
    /// on the device, where it is clipped.
    pub(super) fn update(&mut self, step: u64, learning_rate: f64) -> Result<Option<Tensor>, Error> {
        let _no_grad = tch::no_grad_guard();
        let loss_scale = self.loss_scale.as_ref();
        let skip =
            self.decision.as_ref().map(|decision| decision.skip(&self.state, loss_scale)).transpose()?;
        let skip = skip.as_ref();
        if let Some(loss_scale) = loss_scale {
            let _ = self.state.gradients()?.f_mul_(&loss_scale.inverse()?)?;
        }
        let config = &self.plan.config.model;
        if !config.frozen_norm {
            let mut averaged = self.state.summed_statistics()?;
            let _ = averaged.f_mul_scalar_(config.norm_momentum)?;
            change_unless(skip, &self.state.running_statistics, |running| {
                let _ = running.f_mul_scalar_(1.0 - config.norm_momentum)?.f_add_(&averaged)?;
                Ok(())
            })?;
        }
        if skip.is_some() {
            self.forget_batch_statistics()?;
        }
        let norm = if self.updates_early { None } else { self.update_weights(learning_rate, skip)? };
        let state = &self.state;
        if let Some(averaged) = state.averaged.as_ref().filter(|averaged| averaged.moves_after(step + 1)) {
            state.optimizer.await_weights()?;
            averaged.update(step + 1, &state.flat_parameters, &state.running_statistics, skip)?;
        }
        let loss_scale_config = self.plan.config.precision.loss_scale.as_ref().filter(|_| skip.is_some());
        if let (Some(loss_scale), Some(config)) = (loss_scale, loss_scale_config) {
            let not_finite = state.tail(Tail::NotFinite)?.f_gt(0.0)?;
            loss_scale.step(config, &not_finite.f_to_kind(Kind::Float)?)?;
        }
        Ok(norm)
    }

    fn update_weights(&self, learning_rate: f64, skip: Option<&Tensor>) -> Result<Option<Tensor>, Error> {
        let norm = self.optimizer.step(learning_rate, skip)?;
        if let Some(shards) = self.state.optimizer.shards() {
            shards.gather_weights(&self.state.flat_parameters)?;
            if !self.plan.config.comm.overlap.exchanges_early() {
                self.state.optimizer.await_weights()?;
            }
        }
        Ok(norm)
    }

    /// After a step that may not have been finite: batch norm adds zero times what was there before, and zero times NaN is
    /// NaN.
    pub(super) fn forget_batch_statistics(&self) -> Result<(), Error> {
        let _ = self.state.batch_statistics.shallow_clone().f_zero_()?;
        Ok(())
    }
}
