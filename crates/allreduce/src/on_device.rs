//! Work of the communication thread on a [`Region`] that lies on a device: the host only says what follows what. What
//! the work is for is the caller's business.
#![allow(unsafe_code)]

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use crate::communicator::{Communicator, DeviceTask};
use crate::nccl::{ExchangeDevice, Moment, Ready, device_failed};
use crate::{CommError, Region, Wire};

/// The region's device, whose stream waits for what was `computed`.
pub(crate) fn begin(
    region: &Region,
    computed: Result<Ready, String>,
) -> Result<MutexGuard<'_, dyn ExchangeDevice + 'static>, CommError> {
    let device = region.device().ok_or(CommError::HostMemoryOnly)?;
    computed.and_then(|wait| wait()).map_err(device_failed)?;
    Ok(device.lock())
}

/// The end of what is queued, for two who wait for it.
pub(crate) fn end_for_two(device: &mut dyn ExchangeDevice) -> Result<[Box<dyn Moment>; 2], CommError> {
    let mut mark = || device.mark().map_err(device_failed);
    Ok([mark()?, mark()?])
}

/// Queues [`Communicator::gather_shards`]. Its end, for two who wait for it.
pub(crate) fn gather_shards(
    communicator: &mut dyn Communicator,
    region: &Region,
    computed: Result<Ready, String>,
) -> Result<[Box<dyn Moment>; 2], CommError> {
    let mut device = begin(region, computed)?;
    // SAFETY: the region's memory is the device's, by `Region::on_device`, and this work's alone until the caller
    // has waited for its end; the stream waits for what filled it, by `begin`.
    unsafe { communicator.on_device(&mut *device, region, DeviceTask::GatherShards) }?;
    end_for_two(&mut *device)
}

/// How long an all-reduce of `values` takes, which all ranks begin together, once they are those of `source`.
pub(crate) fn time_all_reduce(
    communicator: &mut dyn Communicator,
    [source, values]: [&Region; 2],
    computed: Result<Ready, String>,
    wire: Wire,
) -> Result<Duration, CommError> {
    let mut device = begin(values, computed)?;
    // SAFETY: both are the device's memory, by `Region::on_device`, equally long, and this work's alone until the caller
    // hears of its end; the stream waits for what filled them, by `begin`.
    unsafe { device.widen(source.start().cast(), values.start(), values.len(), Wire::Fp32) }
        .map_err(device_failed)?;
    communicator.await_moment(&mut *device.mark().map_err(device_failed)?)?;
    communicator.barrier()?;
    let begin = Instant::now();
    // SAFETY: as above.
    unsafe { communicator.on_device(&mut *device, values, DeviceTask::AllReduce(wire)) }?;
    communicator.await_moment(&mut *device.mark().map_err(device_failed)?)?;
    Ok(begin.elapsed())
}
