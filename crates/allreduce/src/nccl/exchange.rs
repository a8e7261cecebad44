//! Sums over NCCL, in a fixed order or NCCL's own, whole or in shards; and the gathering of shards.
//!
//! In order, rank r owns slice r of the data: each rank sends each slice to its owner, all at the same time, the
//! owner adds its rows in a fixed binary tree over the ranks, and the sums are gathered, or stay where they are if
//! each rank needs its own only. That is as much traffic as a ring's. In fp32 the bits are those of the reduction over
//! MPI; 16-bit formats round every rank's values, as MPI's reduction regardless of hosts does.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::time::Instant;

use nccl_rs::{Comm, DataType, Library, Operation, Progress};

use super::buffers::{Buffers, Parties};
use super::device::{ExchangeDevice, Moment, device_failed};
use crate::backoff::{Backoff, Patience};
use crate::communicator::{AbortSignal, Communicator, DeviceTask, Reduction};
use crate::ordered::Slices;
use crate::{CommError, Region, Wire};

/// A communicator whose ranks have met, and memory for the exchange, which grows to what the longest data needs. Dropped
/// in this order.
pub(super) struct Exchange {
    comm: Comm,
    buffers: Buffers,
    library: Library,
    rank: usize,
    world_size: usize,
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
        Exchange { comm, buffers: Buffers::new(), library, rank, world_size }
    }

    /// Collective: the memory that the task needs, known to NCCL. `region` is where the values lie, if they stay there;
    /// `control` has the same ranks.
    pub(super) fn prepare(
        &mut self,
        device: &mut dyn ExchangeDevice,
        (region, len): (Option<&Region>, usize),
        (task, reduction): (DeviceTask, Reduction),
        control: &mut dyn Communicator,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        if len == 0 {
            return Ok(());
        }
        // Makes its device the current one.
        let _ = device.stream().map_err(device_failed)?;
        let room = self.room(len, task, reduction);
        let mut parties = Parties { comm: &mut self.comm, device, control, waiting };
        if let Some(region) = region {
            self.buffers.know(region, &mut parties)?;
        }
        self.buffers.make_room(room, &self.library, &mut parties)
    }

    /// Bytes of each area that the task needs.
    fn room(&self, len: usize, task: DeviceTask, reduction: Reduction) -> usize {
        let wire = match task {
            DeviceTask::AllReduce(Wire::Fp32) if reduction == Reduction::Library => return 0,
            DeviceTask::AllReduce(wire) => wire,
            DeviceTask::GatherShards if self.in_equal_slices(len) => return 0,
            DeviceTask::ReduceScatter | DeviceTask::GatherShards => Wire::Fp32,
        };
        self.world_size * Slices::new(len, self.world_size).slice_len() * wire.data_type().bytes()
    }

    /// Whether the slices end where the values do, so that fp32 can be gathered where the values lie.
    fn in_equal_slices(&self, len: usize) -> bool {
        self.world_size * Slices::new(len, self.world_size).slice_len() == len
    }

    /// Queues the task, which has been prepared, on the device's stream.
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
                    let (rows, _) = self.buffers.areas()?;
                    self.gather(device, rows, values, wire, waiting)?;
                }
                DeviceTask::AllReduce(wire) => self.by_nccl(device, values, wire, waiting)?,
                DeviceTask::ReduceScatter => {
                    match ordered {
                        true => self.sum_slices(device, values, Wire::Fp32, waiting)?,
                        false => self.slices_by_nccl(device, values, waiting)?,
                    }
                    self.copy_own_slice(device, values, Direction::FromRows)?;
                }
                DeviceTask::GatherShards => {
                    let own = if self.in_equal_slices(values.len) {
                        values.start.add(Slices::new(values.len, self.world_size).of(self.rank).start).cast()
                    } else {
                        self.copy_own_slice(device, values, Direction::ToRows)?;
                        self.buffers.areas()?.0
                    };
                    self.gather(device, own, values, Wire::Fp32, waiting)?;
                }
            }
        }
        Ok(())
    }

    /// Whether `moment` has come, unless NCCL failed meanwhile.
    pub(super) fn has_come(&mut self, moment: &mut dyn Moment) -> Result<bool, CommError> {
        has_come(&mut self.comm, moment)
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
        let (rows, whole) = self.buffers.areas()?;
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

    /// Replaces the values by every rank's own slice, which lies at `own` as it travels.
    ///
    /// # Safety
    /// As [`Exchange::run`]; `own` is the first row, or the slice of the values.
    unsafe fn gather(
        &mut self,
        device: &mut dyn ExchangeDevice,
        own: *mut c_void,
        values: Values,
        wire: Wire,
        waiting: &Waiting,
    ) -> Result<(), CommError> {
        let stream = device.stream().map_err(device_failed)?;
        let slice_len = Slices::new(values.len, self.world_size).slice_len();
        let in_place = wire == Wire::Fp32 && self.in_equal_slices(values.len);
        let whole = if in_place { values.start.cast() } else { self.buffers.areas()?.1 };
        // SAFETY: the caller's promise; each area has room for a slice of every rank, and so have values in equal slices.
        unsafe {
            // Whole slices, of which the last ones may end in what nobody reads.
            let _ = self.comm.all_gather(own, whole, slice_len, wire.data_type(), stream)?;
            self.wait_until_queued(waiting)?;
            if in_place {
                return Ok(());
            }
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
        let (rows, whole) = self.buffers.areas()?;
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
    ) -> Result<(), CommError> {
        let (row, _) = self.buffers.areas()?;
        let own = Slices::new(values.len, self.world_size).of(self.rank);
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
                    let (area, _) = self.buffers.areas()?;
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

    /// Leaves in an orderly way; all ranks come here, when all that was queued is through.
    pub(super) fn finalize(&mut self, waiting: &Waiting) -> Result<(), CommError> {
        self.buffers.forget_all(&mut self.comm)?;
        let _ = self.comm.finalize()?;
        self.wait_until_queued(waiting)?;
        self.buffers.release();
        Ok(())
    }
}

/// Whether `moment` has come, unless NCCL failed meanwhile.
pub(super) fn has_come(comm: &mut Comm, moment: &mut dyn Moment) -> Result<bool, CommError> {
    Ok(comm.poll()? == Progress::Complete && moment.has_come().map_err(device_failed)?)
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
