//! Where gradients are when they are exchanged: in host memory, on the device they were computed on, or in a copy on
//! the host.

use allreduce::{CommThread, Region};
use tch::{Device, Tensor};

use crate::backend::host_memory_needed;
use crate::config::Backend;
use crate::device::Compute;
use crate::error::Error;
use crate::memory::region_of;
use crate::plan::Plan;
use crate::state::State;
use crate::tensor_device::{exchange_device, region_on_device};

/// The memory of the exchange.
pub(crate) struct ExchangeMemory {
    pub(crate) gradients: Region,
    /// Where gradients of a GPU are exchanged in host memory: their copy there.
    pub(crate) host_copy: Option<Tensor>,
    /// Where gradients are exchanged on their device: the flat parameters, of which ranks with shards give each other
    /// their parts.
    pub(crate) weights: Option<Region>,
}

/// The memory that fits what the communicator sums, and what the configuration does to gradients beside the sum.
///
/// # Errors
/// When the communicator cannot sum where this run computes.
pub(crate) fn choose(
    plan: &Plan,
    compute: Compute,
    state: &State,
    comm: &CommThread,
) -> Result<ExchangeMemory, Error> {
    let (on_gpu, alone) = (compute.device.is_cuda(), comm.topology().world_size == 1);
    let needs_host = host_memory_needed(&plan.config, Some(plan.batches.local_micro_batches().len()));
    // What sums both kinds of memory is no GPU's, unless nothing is sent at all.
    let fits = match on_gpu {
        true => alone || !comm.sums_host_memory(),
        false => !alone && comm.sums_host_memory(),
    };
    if comm.sums_device_memory() && fits && needs_host.is_none() {
        let device = exchange_device(compute.device)?;
        return Ok(ExchangeMemory {
            gradients: region_on_device(&state.exchange, &device)?,
            host_copy: None,
            weights: Some(region_on_device(&state.flat_parameters, &device)?),
        });
    }
    if comm.sums_host_memory() {
        if !on_gpu {
            return Ok(ExchangeMemory {
                gradients: region_of(&state.exchange)?,
                host_copy: None,
                weights: None,
            });
        }
        let copy = Tensor::f_zeros_like(&state.exchange)?.f_to_device(Device::Cpu)?;
        return Ok(ExchangeMemory { gradients: region_of(&copy)?, host_copy: Some(copy), weights: None });
    }
    let why = needs_host.filter(|_| on_gpu).unwrap_or("this run computes on the CPU");
    Err(Error::Other(format!(
        "{why}, but {} sums the memory of GPUs only; expected comm.backend: {}",
        comm.description(),
        Backend::Mpi.name()
    )))
}
