//! Where gradients are when they are exchanged: in host memory, on the device they were computed on, or in a copy on
//! the host.

use allreduce::{CommThread, Region};
use tch::{Device, Tensor};

use crate::config::{Backend, Determinism};
use crate::device::Compute;
use crate::error::Error;
use crate::memory::region_of;
use crate::plan::Plan;
use crate::state::State;
use crate::tensor_device::region_on_device;

/// The memory of the exchange, and the host's copy where that is it.
///
/// # Errors
/// When the communicator cannot sum where this run computes.
pub(crate) fn choose(
    plan: &Plan,
    compute: Compute,
    state: &State,
    comm: &CommThread,
) -> Result<(Region, Option<Tensor>), Error> {
    let (on_gpu, alone) = (compute.device.is_cuda(), comm.topology().world_size == 1);
    // The binary tree over a rank's micro batches adds them up in host memory.
    let tree_on_host =
        plan.config.train.determinism == Determinism::World && plan.batches.local_micro_batches().len() > 1;
    // What sums both kinds of memory is no GPU's, unless nothing is sent at all.
    let fits = match on_gpu {
        true => alone || !comm.sums_host_memory(),
        false => !alone && comm.sums_host_memory(),
    };
    if comm.sums_device_memory() && fits && !tree_on_host {
        return Ok((region_on_device(&state.exchange)?, None));
    }
    if comm.sums_host_memory() {
        if !on_gpu {
            return Ok((region_of(&state.exchange)?, None));
        }
        let copy = Tensor::f_zeros_like(&state.exchange)?.f_to_device(Device::Cpu)?;
        return Ok((region_of(&copy)?, Some(copy)));
    }
    let why = match (on_gpu, tree_on_host) {
        (false, _) => "this run computes on the CPU",
        (true, true) => "train.determinism: world adds up several micro batches a rank in host memory",
        (true, false) => "sums are delayed in host memory",
    };
    Err(Error::Other(format!(
        "{why}, but {} sums the memory of GPUs only; expected comm.backend: {}",
        comm.description(),
        Backend::Mpi.name()
    )))
}
