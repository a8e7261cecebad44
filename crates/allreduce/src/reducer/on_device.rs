//! The exchange of a bucket whose gradients lie in the memory of a device: the host only says what follows what.
#![allow(unsafe_code)]

use super::BucketWork;
use crate::communicator::Communicator;
use crate::nccl::{Ready, device_failed};
use crate::on_device::begin;
use crate::{CommError, Wire};

impl BucketWork {
    /// Averages the bucket, once the device has `computed` it.
    pub(super) fn exchange_on_device(
        &mut self,
        computed: Result<Ready, String>,
        communicator: &mut dyn Communicator,
    ) -> Result<(), CommError> {
        let core = &*self.core;
        let (bucket, region) = &core.buckets[self.bucket];
        let mut device = begin(region, computed)?;
        let (start, len, scale) = (region.start(), region.len(), core.scale);
        let (sharded, compressed) = (core.sharded_len(bucket), core.compressed_len(bucket));
        if core.hook_exchanges && compressed > 0 {
            return Err(CommError::Hook("this way of exchange works in host memory only".into()));
        }
        self.bytes = core.bytes(self.bucket);
        self.finite = true;
        // SAFETY: the region's memory is the device's, by `Region::on_device`, and this work's alone until it is
        // reported; the stream waits for what filled it, by `begin`.
        unsafe {
            if sharded > 0 {
                communicator.reduce_scatter_on_device(&mut *device, start, sharded)?;
                let own = core.sharding.of(sharded);
                if !own.is_empty() {
                    let start = start.add(own.start);
                    device.scale(start, own.len(), scale).map_err(device_failed)?;
                    self.finite &= device.all_finite(start, own.len()).map_err(device_failed)?;
                }
            }
            // What is sharded is never compressed.
            let (start, len) = (start.add(sharded), len - sharded);
            if compressed > 0 {
                // What is rounded is scaled before, as on the host.
                device.scale(start, compressed, scale).map_err(device_failed)?;
                communicator.all_reduce_on_device(&mut *device, start, compressed, core.wire)?;
            }
            if compressed < len {
                let (start, len) = (start.add(compressed), len - compressed);
                communicator.all_reduce_on_device(&mut *device, start, len, Wire::Fp32)?;
                device.scale(start, len, scale).map_err(device_failed)?;
            }
            if len > 0 {
                self.finite &= device.all_finite(start, len).map_err(device_failed)?;
            }
        }
        Ok(())
    }
}
