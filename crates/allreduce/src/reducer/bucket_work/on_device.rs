//! The exchange of a bucket whose gradients lie in the memory of a device: the host only says what follows what.
#![allow(unsafe_code)]

use super::BucketWork;
use crate::communicator::{Communicator, DeviceTask};
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
                communicator.on_device(&mut *device, start, sharded, DeviceTask::ReduceScatter)?;
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
                communicator.on_device(&mut *device, start, compressed, DeviceTask::AllReduce(core.wire))?;
            }
            if compressed < len {
                let (start, len) = (start.add(compressed), len - compressed);
                communicator.on_device(&mut *device, start, len, DeviceTask::AllReduce(Wire::Fp32))?;
                device.scale(start, len, scale).map_err(device_failed)?;
            }
            if len > 0 {
                self.finite &= device.all_finite(start, len).map_err(device_failed)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;
    use std::sync::Arc;

    use super::*;
    use crate::nccl::{HostMemory, RegionDevice};
    use crate::{
        Accumulation, BucketHook, CommThread, Reducer, ReducerOptions, Region, Segment, Solo, plan_buckets,
    };

    /// Host memory that goes as a device's.
    fn on_device(values: Vec<f32>) -> Region {
        let device = RegionDevice::new(HostMemory::default(), || Ok(Box::new(|| Ok(())) as Ready));
        let values = Arc::new(values);
        let start = NonNull::new(values.as_ptr().cast_mut()).unwrap();
        let len = values.len();
        // SAFETY: kept alive as the owner, and read by nobody else.
        unsafe { Region::on_device(start, len, values, device) }
    }

    struct Exchanges;

    impl BucketHook for Exchanges {
        fn exchanges(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_hook_that_exchanges_in_host_memory_is_refused_rather_than_ignored() {
        let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
        let segments = vec![Segment { name: "weight".into(), range: 0..64 }];
        let reducer = |hook: Option<Exchanges>| {
            let buckets = plan_buckets(&segments, 64, 1 << 9, 1 << 9);
            let options = ReducerOptions {
                overlap: true,
                scale: 0.5,
                accumulation: Accumulation::InPlace,
                wire: Wire::Fp32,
                sharded: 0,
            };
            let gradients = on_device(vec![2.0; 64]);
            let reducer = Reducer::new(comm.clone(), gradients, segments.clone(), buckets, options);
            match hook {
                Some(hook) => reducer.with_hook(Box::new(hook)),
                None => reducer,
            }
        };
        for (hook, refused) in [(None, false), (Some(Exchanges), true)] {
            let reducer = reducer(hook);
            reducer.begin_step(1);
            let result = reducer.finish();
            assert_eq!(matches!(result, Err(CommError::Hook(_))), refused, "{result:?}");
            assert_eq!(result.is_ok(), !refused, "{result:?}");
        }
    }
}
