//! The exchange of a bucket whose gradients lie in the memory of a device: the host only says what follows what.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use super::BucketWork;
use crate::communicator::{Communicator, DeviceTask};
use crate::nccl::{Moment, Ready, device_failed};
use crate::on_device::{begin, end_for_two};
use crate::{CommError, Wire};

impl BucketWork {
    /// Queues the averaging of the bucket, once the device has `computed` it. Its end, for two who wait for it.
    pub(super) fn exchange_on_device(
        &mut self,
        computed: Result<Ready, String>,
        communicator: &mut dyn Communicator,
    ) -> Result<[Box<dyn Moment>; 2], CommError> {
        let core = &*self.core;
        let (bucket, region) = &core.buckets[self.bucket];
        let mut device = begin(region, computed)?;
        let (len, scale) = (region.len(), core.scale);
        let (sharded, compressed) = (core.sharded_len(bucket), core.compressed_len(bucket));
        if core.hook_exchanges && compressed > 0 {
            return Err(CommError::Hook("this way of exchange works in host memory only".into()));
        }
        self.bytes = core.bytes(self.bucket);
        let place = |count: usize| core.gradients.slice(count..count + 1).start();
        let count = core.not_finite.map(place);
        // SAFETY: the region's memory is the device's, by `Region::on_device`, and this work's alone until who hears of
        // its end has waited for it; so is the count, which the caller leaves alone; the stream waits for what filled
        // them, by `begin`.
        unsafe {
            if let Some(mark) = core.own_not_finite {
                device.count_not_finite(region.start(), len, place(mark)).map_err(device_failed)?;
            }
            if sharded > 0 {
                communicator.on_device(&mut *device, &region.slice(0..sharded), DeviceTask::ReduceScatter)?;
                let own = core.sharding.of(sharded);
                if !own.is_empty() {
                    let start = region.start().add(own.start);
                    device.scale(start, own.len(), scale).map_err(device_failed)?;
                    if let Some(count) = count {
                        device.count_not_finite(start, own.len(), count).map_err(device_failed)?;
                    }
                }
            }
            // What is sharded is never compressed.
            let whole = region.slice(sharded..len);
            if compressed > 0 {
                let rounded = whole.slice(0..compressed);
                // What is rounded is scaled before, as on the host.
                device.scale(rounded.start(), compressed, scale).map_err(device_failed)?;
                communicator.on_device(&mut *device, &rounded, DeviceTask::AllReduce(core.wire))?;
            }
            if compressed < whole.len() {
                let plain = whole.slice(compressed..whole.len());
                communicator.on_device(&mut *device, &plain, DeviceTask::AllReduce(Wire::Fp32))?;
                device.scale(plain.start(), plain.len(), scale).map_err(device_failed)?;
            }
            if let (Some(count), 1..) = (count, whole.len()) {
                device.count_not_finite(whole.start(), whole.len(), count).map_err(device_failed)?;
            }
        }
        end_for_two(&mut *device)
    }

    /// Waits for the device to hear whether all averages so far are finite.
    pub(super) fn read_whether_finite(&self) -> Result<(), CommError> {
        let core = &*self.core;
        let (Some(device), Some(count)) = (core.gradients.device(), core.not_finite) else { return Ok(()) };
        let count = core.gradients.slice(count..count + 1);
        // SAFETY: memory of the device, by `Region::on_device`.
        let not_finite = unsafe { device.lock().read(count.start()) }.map_err(device_failed)?;
        core.finite_so_far.fetch_and(not_finite == 0.0, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
