//! Sums over NCCL, in a fixed order or NCCL's own, whole or in shards; and the gathering of shards.
//!
//! In order, rank r owns slice r of the data: each rank sends each slice to its owner, all at the same time, the
//! owner adds its rows in a fixed binary tree over the ranks, and the sums are gathered, or stay where they are if
//! each rank needs its own only. That is as much traffic as a ring's. In fp32 the bits are those of the reduction over
//! MPI; 16-bit formats round every rank's values, as MPI's reduction regardless of hosts does.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::time::Instant;

use nccl_rs::{Comm, DataType, DeviceMemory, Library, Operation, Progress, Registration};

use super::device::{ExchangeDevice, Moment, device_failed};
use crate::backoff::{Backoff, Patience};
use crate::communicator::{AbortSignal, DeviceTask, Reduction};
use crate::ordered::Slices;
use crate::{CommError, Wire};

/// A communicator whose ranks have met, and memory for the exchange, which grows to what the longest data needs.
pub(super) struct Exchange {
    comm: Comm,
    library: Library,
    rank: usize,
    world_size: usize,
    areas: Option<Areas>,
}

/// Two areas of the same size, one behind the other.
struct Areas {
    memory: DeviceMemory,
    registration: Option<Registration>,
    area_bytes: usize,
}

/// Which way a copy goes.
#[derive(Clone, Copy, Debug)]
enum Direction {
    ToRows,
    FromRows,
}

/// fp32 values in a device's memory.
#[derive(Clone, Copy)]
pub(super) struct Values {
    pub(super) start: *mut f32,
    pub(super) len: usize,
}

impl Wire {
    fn data_type(self) -> DataType {
        match self {
            Wire::Fp32 => DataType::Fp32,
            Wire::Bf16 => DataType::Bf16,
            Wire::Fp16 => DataType::Fp16,
        }
    }
}

impl From<nccl_rs::Error> for CommError {
    fn from(error: nccl_rs::Error) -> Self {
        CommError::Nccl(error.to_string())
    }
}

impl Exchange {
    pub(super) fn new(comm: Comm, library: Library, rank: usize, world_size: usize) -> Self {
        Exchange { comm, library, rank, world_size, areas: None }
    }

    /// Queues the task on the device's stream.
    ///
    /// # Safety
    /// The values are memory of the device that nobody else uses until the stream has passed the task, nor after an error
    /// before the communicator is gone.
    pub(super) unsafe fn run(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        task: DeviceTask,
        reduction: Reduction,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        if values.len == 0 {
            return Ok(());
        }
        let ordered = match reduction {
            Reduction::Ordered | Reduction::FlatOrdered => true,
            Reduction::Library => false,
        };
        // SAFETY: the caller's promise.
        unsafe {
            match task {
                DeviceTask::AllReduce(wire) if ordered => {
                    self.sum_slices(device, values, wire, waiting)?;
                    self.gather(device, values, wire, waiting)?;
                }
                DeviceTask::AllReduce(wire) => self.by_nccl(device, values, wire, waiting)?,
                DeviceTask::ReduceScatter => {
                    match ordered {
                        true => self.sum_slices(device, values, Wire::Fp32, waiting)?,
                        false => self.slices_by_nccl(device, values, waiting)?,
                    }
                    self.copy_own_slice(device, values, Direction::FromRows, waiting)?;
                }
                DeviceTask::GatherShards => {
                    self.copy_own_slice(device, values, Direction::ToRows, waiting)?;
                    self.gather(device, values, Wire::Fp32, waiting)?;
                }
            }
        }
        Ok(())
    }

    /// Whether `moment` has come, unless NCCL failed meanwhile.
    pub(super) fn has_come(&mut self, moment: &mut dyn Moment) -> Result<bool, CommError> {
        Ok(self.comm.poll()? == Progress::Complete && moment.has_come().map_err(device_failed)?)
    }

    /// The sum of this rank's slice, as it travels, in the first row.
    ///
    /// # Safety
    /// As [`Exchange::run`].
    unsafe fn sum_slices(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        wire: Wire,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        let stream = device.stream().map_err(device_failed)?;
        let (world_size, data_type) = (self.world_size, wire.data_type());
        let slices = Slices::new(values.len, world_size);
        let slice_len = slices.slice_len();
        let (rows, whole) = self.areas(device, slices, wire, waiting)?;
        let own_len = slices.of(self.rank).len();
        let slice_bytes = slice_len * data_type.bytes();
        // SAFETY: the caller's promise; each area has room for a slice of every rank. Operations on one stream follow
        // each other, so that `whole` may hold what is sent and later what is gathered.
        unsafe {
            let sent: *const c_void = match wire {
                Wire::Fp32 => values.start.cast(),
                Wire::Bf16 | Wire::Fp16 => {
                    device.round(values.start, whole, values.len, wire).map_err(device_failed)?;
                    whole
                }
            };
            let _ = self.comm.group(|comm| {
                for peer in 0..world_size {
                    let slice = slices.of(peer);
                    if !slice.is_empty() {
                        let slice_start = sent.byte_add(slice.start * data_type.bytes());
                        let _ = comm.send(slice_start, slice.len(), data_type, peer, stream)?;
                    }
                    if own_len > 0 {
                        let row = rows.byte_add(peer * slice_bytes);
                        let _ = comm.receive(row, own_len, data_type, peer, stream)?;
                    }
                }
                Ok(())
            })?;
            self.wait_until_queued(waiting)?;
            device.sum_rows(rows, world_size, slice_len, own_len, wire).map_err(device_failed)
        }
    }

    /// Replaces the values by what every rank has in its first row: its own slice, as it travels.
    ///
    /// # Safety
    /// As [`Exchange::run`].
    unsafe fn gather(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        wire: Wire,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        let stream = device.stream().map_err(device_failed)?;
        let slices = Slices::new(values.len, self.world_size);
        let (rows, whole) = self.areas(device, slices, wire, waiting)?;
        // SAFETY: the caller's promise; each area has room for a slice of every rank.
        unsafe {
            // Whole slices, of which the last ones may end in what nobody reads.
            let _ = self.comm.all_gather(rows, whole, slices.slice_len(), wire.data_type(), stream)?;
            self.wait_until_queued(waiting)?;
            device.widen(whole, values.start, values.len, wire).map_err(device_failed)
        }
    }

    /// NCCL's own sum of this rank's slice in the first row.
    ///
    /// # Safety
    /// As [`Exchange::run`].
    unsafe fn slices_by_nccl(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        let stream = device.stream().map_err(device_failed)?;
        let slices = Slices::new(values.len, self.world_size);
        let (rows, whole) = self.areas(device, slices, Wire::Fp32, waiting)?;
        let (slice_len, data_type) = (slices.slice_len(), Wire::Fp32.data_type());
        // SAFETY: the caller's promise; each area has room for a slice of every rank.
        unsafe {
            // NCCL reads whole slices, of which the last ones may lie beyond the values.
            device.round(values.start, whole, values.len, Wire::Fp32).map_err(device_failed)?;
            let sum = Operation::Sum;
            let _ = self.comm.reduce_scatter(whole, rows, slice_len, data_type, sum, stream)?;
        }
        self.wait_until_queued(waiting)
    }

    /// Between this rank's slice of the values and the first row.
    ///
    /// # Safety
    /// As [`Exchange::run`].
    unsafe fn copy_own_slice(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        direction: Direction,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        let slices = Slices::new(values.len, self.world_size);
        let (row, _) = self.areas(device, slices, Wire::Fp32, waiting)?;
        let own = slices.of(self.rank);
        if own.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise; within the values; the row has room for a slice.
        unsafe {
            let slice = values.start.add(own.start);
            match direction {
                Direction::ToRows => device.round(slice, row, own.len(), Wire::Fp32),
                Direction::FromRows => device.widen(row, slice, own.len(), Wire::Fp32),
            }
        }
        .map_err(device_failed)
    }

    /// # Safety
    /// As [`Exchange::run`].
    unsafe fn by_nccl(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        wire: Wire,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        let stream = device.stream().map_err(device_failed)?;
        let Values { start, len } = values;
        let data_type = wire.data_type();
        // SAFETY: the caller's promise; the area has room for all values.
        unsafe {
            match wire {
                Wire::Fp32 => {
                    let place = start.cast();
                    let _ = self.comm.all_reduce(place, place, len, data_type, Operation::Sum, stream)?;
                    self.wait_until_queued(waiting)
                }
                Wire::Bf16 | Wire::Fp16 => {
                    let slices = Slices::new(len, self.world_size);
                    let (area, _) = self.areas(device, slices, wire, waiting)?;
                    device.round(start, area, len, wire).map_err(device_failed)?;
                    let _ = self.comm.all_reduce(area, area, len, data_type, Operation::Sum, stream)?;
                    self.wait_until_queued(waiting)?;
                    device.widen(area, start, len, wire).map_err(device_failed)
                }
            }
        }
    }

    /// NCCL takes the next call when it has queued the one before.
    fn wait_until_queued(&mut self, waiting: &Waiting) -> Result<(), CommError> {
        waiting.until(|| Ok(self.comm.poll()? == Progress::Complete))
    }

    /// Two areas with room for a slice of every rank, known to NCCL. What is queued uses them one after the other; they
    /// grow when all of it is through.
    fn areas(
        &mut self,
        device: &mut dyn ExchangeDevice,
        slices: Slices,
        wire: Wire,
        waiting: &Waiting,
    ) -> Result<(*mut c_void, *mut c_void), CommError> {
        let bytes = self.world_size * slices.slice_len() * wire.data_type().bytes();
        if self.areas.as_ref().is_some_and(|areas| areas.area_bytes < bytes) {
            let mut end = device.mark().map_err(device_failed)?;
            waiting.until(|| self.has_come(&mut *end))?;
            self.deregister()?;
            self.areas = None;
        }
        let areas = match &self.areas {
            Some(areas) => areas,
            None => {
                // Starts as `cudaMalloc`'s do, so that both areas do.
                let area_bytes = bytes.next_multiple_of(256);
                let memory = DeviceMemory::new(&self.library, 2 * area_bytes)?;
                // SAFETY: kept until it is deregistered, or longer than the communicator (by the order of the fields).
                let registration = unsafe { self.comm.register(memory.as_ptr(), memory.bytes()) }?;
                self.areas.insert(Areas { memory, registration: Some(registration), area_bytes })
            }
        };
        let first = areas.memory.as_ptr();
        // SAFETY: within the memory, which is twice as long.
        Ok((first, unsafe { first.byte_add(areas.area_bytes) }))
    }

    /// Lets NCCL forget the areas. They stay where they are, for the case that it cannot.
    fn deregister(&mut self) -> Result<(), CommError> {
        match self.areas.as_mut().and_then(|areas| areas.registration.take()) {
            Some(registration) => Ok(self.comm.deregister(registration)?),
            None => Ok(()),
        }
    }

    /// Leaves in an orderly way; all ranks come here.
    pub(super) fn finalize(&mut self, waiting: &Waiting) -> Result<(), CommError> {
        self.deregister()?;
        let _ = self.comm.finalize()?;
        self.wait_until_queued(waiting)?;
        self.areas = None;
        Ok(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // After an error the device may still have operations on the areas to do, NCCL's or others, for which nobody can
        // wait any more. So they are never given back; the process is about to end.
        std::mem::forget(self.areas.take());
    }
}

/// How to wait, and what ends it.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) signal: AbortSignal,
    pub(super) patience: Patience,
}

impl Waiting {
    /// Looks until `look` says that it is over; an error when the signal is raised.
    pub(super) fn until(&self, mut look: impl FnMut() -> Result<bool, CommError>) -> Result<(), CommError> {
        let mut backoff = Backoff::new(self.patience);
        loop {
            let begin = Instant::now();
            if look()? {
                return Ok(());
            }
            if self.signal.raised().is_some() {
                return Err(CommError::Aborted);
            }
            backoff.pause(begin);
        }
    }
}
