//! Faults that happen to a rank on demand ([`crate::fault`]), as far as they concern what a step computes.

use std::ops::RangeInclusive;

use tch::{Kind, Tensor};

use super::Engine;
use crate::error::Error;
use crate::fault::{Fault, FaultKind, Stage};

impl Engine<'_> {
    /// Lets `fault` happen when its step comes, if it is this rank's. `steps` are to be done, counted from 1.
    pub(crate) fn rehearse(&mut self, fault: Option<Fault>, steps: RangeInclusive<u64>) -> Result<(), Error> {
        let Some(fault) = fault else { return Ok(()) };
        fault.check(&Stage {
            config: &self.plan.config,
            steps,
            ranks: self.comm.topology().world_size,
            buckets: self.state.layout.buckets(&self.plan.config.comm).len(),
        })?;
        self.fault = Some(fault).filter(|fault| fault.rank == self.comm.topology().rank);
        Ok(())
    }

    /// A fault happens once: no repetition of its step brings it again.
    pub(crate) fn forget_fault(&mut self) {
        self.fault = None;
    }

    /// A gradient that is not a number.
    pub(crate) fn spoil_gradient(&mut self) -> Result<(), Error> {
        let _ = self.state.gradients()?.f_narrow(0, 0, 1)?.f_fill_(f64::NAN)?;
        Ok(())
    }

    /// A loss that is far too high, on this rank alone. The weights do not notice.
    pub(crate) fn spoil_loss(&mut self) -> Result<(), Error> {
        // The average over all micro batches is to be as much higher however many there are.
        let excess = 1e3 * self.plan.batches.micro_batches() as f64;
        self.tell_loss(&Tensor::from(excess).f_to_device(self.device())?)
    }

    /// Another bit in one weight.
    pub(super) fn flip_bit(&mut self) -> Result<(), Error> {
        self.state.optimizer.await_weights()?;
        let _no_grad = tch::no_grad_guard();
        let _ = self
            .state
            .flat_parameters
            .f_narrow(0, 0, 1)?
            .f_view_dtype(Kind::Int)?
            .f_bitwise_xor_(1_i64 << 16)?;
        Ok(())
    }

    pub(super) fn fault_of(&self, step: u64) -> Option<FaultKind> {
        self.fault.filter(|fault| fault.step == step + 1).map(|fault| fault.kind)
    }
}
