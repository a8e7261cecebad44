//! The exchange of a bucket whose gradients lie in the memory of a device: the host only says what follows what.
#![allow(unsafe_code)]

use super::BucketWork;
use crate::communicator::Communicator;
use crate::nccl::Ready;
use crate::{CommError, Wire};

impl BucketWork {
    /// Averages the bucket, once the device has `computed` it.
    pub(super) fn exchange_on_device(
        &mut self,
        computed: Result<Ready, String>,
        communicator: &mut dyn Communicator,
    ) -> Result<(), CommError> {
        let failed =
            |sentence: String| CommError::Nccl(format!("the device of the exchange failed: {sentence}"));
        let (bucket, region) = &self.core.buckets[self.bucket];
        let Some(device) = region.device() else { return Err(CommError::HostMemoryOnly) };
        computed.and_then(|wait| wait()).map_err(failed)?;
        let mut device = device.lock();
        let (start, len, scale) = (region.start(), region.len(), self.core.scale);
        let compressed = self.core.compressed_len(bucket);
        self.bytes = compressed * self.core.wire.bytes() + (len - compressed) * Wire::Fp32.bytes();
        // SAFETY: the region's memory is the device's, by `Region::on_device`, and this work's alone until it is
        // reported; the stream waits for what filled it, by `computed`.
        unsafe {
            if compressed > 0 {
                // What is rounded is scaled before, as on the host.
                device.scale(start, compressed, scale).map_err(failed)?;
                communicator.all_reduce_on_device(&mut *device, start, compressed, self.core.wire)?;
            }
            if compressed < len {
                let (start, len) = (start.add(compressed), len - compressed);
                communicator.all_reduce_on_device(&mut *device, start, len, Wire::Fp32)?;
                device.scale(start, len, scale).map_err(failed)?;
            }
            self.finite = device.all_finite(start, len).map_err(failed)?;
        }
        Ok(())
    }
}
