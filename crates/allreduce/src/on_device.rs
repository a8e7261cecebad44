//! Work of the communication thread on a [`Region`] that lies on a device: the host only says what follows what. What
//! the work is for is the caller's business.
#![allow(unsafe_code)]

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use crate::communicator::{Communicator, DeviceTask};
use crate::nccl::{ExchangeDevice, Ready, device_failed};
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

/// As [`Communicator::gather_shards`].
pub(crate) fn gather_shards(
    communicator: &mut dyn Communicator,
    region: &Region,
    computed: Result<Ready, String>,
) -> Result<(), CommError> {
    let mut device = begin(region, computed)?;
    // SAFETY: the region's memory is the device's, by `Region::on_device`, and this work's alone until the caller
    // hears of its end; the stream waits for what filled it, by `begin`.
    unsafe { communicator.on_device(&mut *device, region.start(), region.len(), DeviceTask::GatherShards) }
}

/// Between looks at whether a device is through.
const LOOK: Duration = Duration::from_micros(50);

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
    while !device.is_done().map_err(device_failed)? {
        std::thread::sleep(LOOK);
    }
    communicator.barrier()?;
    let begin = Instant::now();
    // SAFETY: as above.
    unsafe {
        communicator.on_device(&mut *device, values.start(), values.len(), DeviceTask::AllReduce(wire))
    }?;
    Ok(begin.elapsed())
}
