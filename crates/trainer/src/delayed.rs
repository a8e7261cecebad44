//! A communicator whose sums take longer, as over a slower network: shows how much of an exchange backward
//! hides.
#![allow(unsafe_code)]

use std::time::Duration;

use allreduce::{
    AbortSignal, CommError, Communicator, DeviceTask, ExchangeDevice, Moment, Region, Sharding, Topology,
    Wire,
};

/// Sleeps before each sum, and half as long before each half of one; everything else is the inner communicator's.
pub(crate) struct Delayed {
    inner: Box<dyn Communicator>,
    delay: Duration,
}

impl Delayed {
    pub(crate) fn new(inner: Box<dyn Communicator>, delay: Duration) -> Self {
        Delayed { inner, delay }
    }
}

impl Communicator for Delayed {
    fn topology(&self) -> &Topology {
        self.inner.topology()
    }

    fn description(&self) -> String {
        format!("{}, {:?} added to each bucket", self.inner.description(), self.delay)
    }

    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.inner.interrupt_by(signal);
    }

    fn spin_for(&mut self, spin: Duration) {
        self.inner.spin_for(spin);
    }

    fn sums_host_memory(&self) -> bool {
        self.inner.sums_host_memory()
    }

    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError> {
        std::thread::sleep(self.delay);
        self.inner.all_reduce(values, wire)
    }

    fn sharding(&self) -> Sharding {
        self.inner.sharding()
    }

    fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        std::thread::sleep(self.delay / 2);
        self.inner.reduce_scatter(values)
    }

    fn gather_shards(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        std::thread::sleep(self.delay / 2);
        self.inner.gather_shards(values)
    }

    fn sums_device_memory(&self) -> bool {
        self.inner.sums_device_memory()
    }

    unsafe fn on_device(
        &mut self,
        device: &mut dyn ExchangeDevice,
        region: &Region,
        task: DeviceTask,
    ) -> Result<(), CommError> {
        // The device's stream is behind the host: the time of an exchange begins when what it needs is computed, which the
        // host has only queued.
        let mut begin = device.mark().map_err(CommError::Nccl)?;
        self.inner.await_moment(&mut *begin)?;
        std::thread::sleep(match task {
            DeviceTask::AllReduce(_) => self.delay,
            DeviceTask::ReduceScatter | DeviceTask::GatherShards => self.delay / 2,
        });
        // SAFETY: the caller's promise.
        unsafe { self.inner.on_device(device, region, task) }
    }

    fn has_come(&mut self, moment: &mut dyn Moment) -> Result<bool, CommError> {
        self.inner.has_come(moment)
    }

    fn await_moment(&mut self, moment: &mut dyn Moment) -> Result<(), CommError> {
        self.inner.await_moment(moment)
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError> {
        self.inner.broadcast(values, root)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.inner.all_gather(bytes)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.inner.barrier()
    }

    fn abort(&mut self, exit_code: i32) {
        self.inner.abort(exit_code);
    }

    fn finalize(&mut self) -> Result<(), CommError> {
        self.inner.finalize()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::time::Instant;

    use allreduce::Solo;

    use super::*;

    /// Is through with its computation at that time.
    struct Computing(Instant);

    struct Computed(Instant);

    impl Moment for Computed {
        fn has_come(&mut self) -> Result<bool, String> {
            Ok(Instant::now() >= self.0)
        }
        fn hold_caller(&mut self) -> Result<(), String> {
            unreachable!("the host waits")
        }
    }

    // SAFETY: nothing else is ever done there.
    unsafe impl ExchangeDevice for Computing {
        fn stream(&mut self) -> Result<*mut c_void, String> {
            unreachable!("a rank alone sends nothing")
        }
        unsafe fn round(&mut self, _: *const f32, _: *mut c_void, _: usize, _: Wire) -> Result<(), String> {
            unreachable!("a rank alone sends nothing")
        }
        unsafe fn widen(&mut self, _: *const c_void, _: *mut f32, _: usize, _: Wire) -> Result<(), String> {
            unreachable!("a rank alone sends nothing")
        }
        unsafe fn sum_rows(
            &mut self,
            _: *mut c_void,
            _: usize,
            _: usize,
            _: usize,
            _: Wire,
        ) -> Result<(), String> {
            unreachable!("a rank alone sends nothing")
        }
        unsafe fn scale(&mut self, _: *mut f32, _: usize, _: f32) -> Result<(), String> {
            unreachable!("a rank alone sends nothing")
        }
        unsafe fn count_not_finite(&mut self, _: *const f32, _: usize, _: *mut f32) -> Result<(), String> {
            unreachable!("a rank alone sends nothing")
        }
        unsafe fn read(&mut self, _: *const f32) -> Result<f32, String> {
            unreachable!("a rank alone sends nothing")
        }
        fn mark(&mut self) -> Result<Box<dyn Moment>, String> {
            Ok(Box::new(Computed(self.0)))
        }
    }

    #[test]
    fn on_a_device_the_delay_begins_when_the_values_are_computed() {
        let (computation, delay) = (Duration::from_millis(60), Duration::from_millis(40));
        let mut delayed = Delayed::new(Box::new(Solo::new()), delay);
        let values = allreduce::Region::from_vec(vec![1.0; 4]);
        for (task, least) in
            [(DeviceTask::AllReduce(Wire::Fp32), delay), (DeviceTask::ReduceScatter, delay / 2)]
        {
            let begin = Instant::now();
            let mut device = Computing(begin + computation);
            // SAFETY: a rank alone does nothing to the values.
            unsafe { delayed.on_device(&mut device, &values, task) }.unwrap();
            assert!(begin.elapsed() >= computation + least, "{task:?}: {:?}", begin.elapsed());
        }
    }
}
