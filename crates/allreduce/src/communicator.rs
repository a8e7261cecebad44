//! What a group of ranks can do together, and the group of one. Which library carries the messages is another
//! module's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::nccl::{ExchangeDevice, Moment, device_failed};
use crate::sharding;
use crate::{CommError, Region, Sharding, Topology, Wire};

/// Between looks at whether a device is through.
pub(crate) const LOOK: Duration = Duration::from_micros(50);

/// Collective operations of one rank. All ranks call the same operations in the same order.
///
/// A communicator is made, used and finalised on one thread, so it need not be `Send`. It waits politely: it
/// spins for some microseconds and then sleeps between looks.
pub trait Communicator {
    /// Where this rank stands.
    fn topology(&self) -> &Topology;

    /// What carries the messages, for people: library, version, thread level.
    fn description(&self) -> String;

    /// From now on, every wait looks at `signal` too and ends with [`CommError::Aborted`] once it is raised.
    fn interrupt_by(&mut self, signal: AbortSignal);

    /// From now on, waits may take a whole core for up to `spin` before they sleep.
    fn spin_for(&mut self, spin: Duration) {
        let _ = spin;
    }

    /// Replaces `values` by their sum over all ranks, element by element, formed in fp32 of values that travel as
    /// `wire` says. The same length on every rank; the same bits afterwards on every rank.
    ///
    /// # Errors
    /// When the exchange failed or was aborted, or the library that sums does not know the format.
    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError>;

    /// Whether [`Communicator::all_reduce`] works; NCCL sums the memory of GPUs only.
    fn sums_host_memory(&self) -> bool {
        true
    }

    /// Whether [`Communicator::on_device`] works.
    fn sums_device_memory(&self) -> bool {
        false
    }

    /// Queues `task` with the values of `region`, which lie in the memory of `device`, on its stream.
    ///
    /// # Errors
    /// As the method of the same name for host memory; or when this communicator knows host memory only.
    ///
    /// # Safety
    /// The values are memory of the device, which nobody else uses from what the device's stream waits for until it has
    /// passed the task. Tasks share what memory they need beside the values, so a task on another stream than the one before
    /// is given only when that one is through.
    #[allow(unsafe_code)]
    unsafe fn on_device(
        &mut self,
        _device: &mut dyn ExchangeDevice,
        _region: &Region,
        _task: DeviceTask,
    ) -> Result<(), CommError> {
        Err(CommError::HostMemoryOnly)
    }

    /// Whether `moment` of a device has come, unless what was queued there cannot end. Never waits.
    ///
    /// # Errors
    /// When the device or a library that works on it failed.
    fn has_come(&mut self, moment: &mut dyn Moment) -> Result<bool, CommError> {
        moment.has_come().map_err(device_failed)
    }

    /// Waits until `moment` of a device has come.
    ///
    /// # Errors
    /// When the device or a library that works on it failed, the wait was aborted, or this communicator knows host memory
    /// only.
    fn await_moment(&mut self, _moment: &mut dyn Moment) -> Result<(), CommError> {
        Err(CommError::HostMemoryOnly)
    }

    /// Which part of any values this rank owns in [`Communicator::reduce_scatter`].
    fn sharding(&self) -> Sharding {
        Sharding::flat(self.topology().rank, self.topology().world_size)
    }

    /// Replaces this rank's shard of `values` by its sum over all ranks, formed as in [`Communicator::all_reduce`]
    /// with fp32. What the other elements become is left open. The same length on every rank.
    ///
    /// # Errors
    /// As there.
    fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        self.all_reduce(values, Wire::Fp32)
    }

    /// Replaces `values` by what each rank has in its own shard of them. The same length on every rank.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    fn gather_shards(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        sharding::gather_by_bytes(self, values)
    }

    /// Replaces `values` by those of rank `root`. The same length on every rank.
    ///
    /// # Errors
    /// When there is no such rank, or the exchange failed or was aborted.
    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError>;

    /// The bytes of every rank, by rank. Lengths may differ.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;

    /// Returns when every rank has come here.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    fn barrier(&mut self) -> Result<(), CommError>;

    /// Ends every rank with `exit_code`, without waiting for any. Where ranks are processes of their own it
    /// does not return.
    fn abort(&mut self, exit_code: i32);

    /// Leaves the group in an orderly way. All ranks come here, after their last operation.
    ///
    /// # Errors
    /// When the library failed.
    fn finalize(&mut self) -> Result<(), CommError>;
}

/// What is to become of values in a device's memory; each named after the method that does it in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceTask {
    /// [`Communicator::all_reduce`]
    AllReduce(Wire),
    /// [`Communicator::reduce_scatter`]
    ReduceScatter,
    /// [`Communicator::gather_shards`]
    GatherShards,
}

/// In which order the ranks' values are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// In a fixed binary tree over the ranks: the same bits however the data is cut into buckets. See
    /// [`Accumulation::Tree`](crate::Accumulation::Tree) for what that makes possible. Where each of several hosts
    /// has the same power of two of ranks, hosts exchange sums instead of every rank's values; in fp32 the bits
    /// are the same.
    Ordered,
    /// The same tree without regard to hosts.
    FlatOrdered,
    /// As the library likes; it may change with the length of the data and the number of ranks.
    Library,
}

/// A request to end the job, raised by any thread and seen by the one that communicates.
#[derive(Clone, Debug)]
pub struct AbortSignal(Arc<AtomicI64>);

impl AbortSignal {
    /// No exit code is that large.
    const NOT_RAISED: i64 = i64::MAX;

    pub(crate) fn new() -> Self {
        AbortSignal(Arc::new(AtomicI64::new(Self::NOT_RAISED)))
    }

    /// Raises the signal. The first exit code stays.
    pub(crate) fn raise(&self, exit_code: i32) {
        let _ =
            self.0.compare_exchange(Self::NOT_RAISED, exit_code.into(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// The exit code that was asked for, if any was.
    #[must_use]
    pub fn raised(&self) -> Option<i32> {
        i32::try_from(self.0.load(Ordering::Acquire)).ok()
    }
}

/// The group of one rank: nothing is sent.
#[derive(Debug)]
pub struct Solo {
    topology: Topology,
    signal: AbortSignal,
}

impl Solo {
    /// Rank 0 of 1.
    #[must_use]
    pub fn new() -> Self {
        let host = hostname();
        let topology = Topology { rank: 0, world_size: 1, local_rank: 0, local_size: 1, host };
        Solo { topology, signal: AbortSignal::new() }
    }
}

impl Default for Solo {
    fn default() -> Self {
        Self::new()
    }
}

pub(crate) fn hostname() -> String {
    let read = |path| std::fs::read_to_string(path).ok().map(|name| name.trim().to_owned());
    read("/proc/sys/kernel/hostname").or_else(|| read("/etc/hostname")).unwrap_or_else(|| "localhost".into())
}

impl Communicator for Solo {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn description(&self) -> String {
        "one process, no communication".into()
    }

    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.signal = signal;
    }

    fn all_reduce(&mut self, _values: &mut [f32], _wire: Wire) -> Result<(), CommError> {
        Ok(())
    }

    fn sums_device_memory(&self) -> bool {
        true
    }

    #[allow(unsafe_code)]
    unsafe fn on_device(
        &mut self,
        _device: &mut dyn ExchangeDevice,
        _region: &Region,
        _task: DeviceTask,
    ) -> Result<(), CommError> {
        Ok(())
    }

    fn await_moment(&mut self, moment: &mut dyn Moment) -> Result<(), CommError> {
        while !self.has_come(moment)? {
            if self.signal.raised().is_some() {
                return Err(CommError::Aborted);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn broadcast(&mut self, _values: &mut [f32], root: usize) -> Result<(), CommError> {
        match root {
            0 => Ok(()),
            _ => Err(CommError::NoSuchRank { root, world_size: 1 }),
        }
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![bytes.to_vec()])
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        Ok(())
    }

    fn abort(&mut self, _exit_code: i32) {}

    fn finalize(&mut self) -> Result<(), CommError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_exit_code_stays() {
        let signal = AbortSignal::new();
        assert_eq!(signal.raised(), None);
        signal.raise(7);
        signal.clone().raise(1);
        assert_eq!(signal.raised(), Some(7));
    }

    #[test]
    fn alone_every_operation_is_the_identity() {
        let mut solo = Solo::new();
        let mut values = [1.5, -2.0];
        solo.all_reduce(&mut values, Wire::Fp32).unwrap();
        solo.broadcast(&mut values, 0).unwrap();
        assert_eq!(values, [1.5, -2.0]);
        assert_eq!(solo.all_gather(b"x").unwrap(), [b"x"]);
        assert_eq!(solo.broadcast(&mut values, 1), Err(CommError::NoSuchRank { root: 1, world_size: 1 }));
        assert!(!solo.topology().host.is_empty());
    }
}
