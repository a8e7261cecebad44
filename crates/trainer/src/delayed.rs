//! A communicator whose sums take longer, as over a slower network: shows how much of an exchange backward
//! hides.

use std::time::Duration;

use allreduce::{AbortSignal, CommError, Communicator, Topology, Wire};

/// Sleeps before each sum; everything else is the inner communicator's.
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

    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError> {
        std::thread::sleep(self.delay);
        self.inner.all_reduce(values, wire)
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
