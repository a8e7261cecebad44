//! The memory that NCCL reads and writes: areas of the exchange's own, and regions that are exchanged where they lie.
//! NCCL is told of each of them once, before it is used. What is in them is the exchange's business.
//!
//! NCCL then need not copy what it sends and receives through buffers of its own. It can do so with the areas, which are
//! of `ncclMemAlloc`, in every way, NVLink SHARP included. Regions are libtorch's, of `cudaMalloc`: between the GPUs of a
//! host and over network cards that read a GPU's memory it can with these, too, and NVLink SHARP leaves them out. An
//! operation on registered memory of one rank and other memory of another is undefined, so that all ranks register a
//! buffer, or none.
#![allow(unsafe_code)]

use std::ffi::c_void;

use nccl_rs::{Comm, DeviceMemory, Library, Registration};

use super::device::{ExchangeDevice, device_failed};
use super::exchange::Waiting;
use crate::communicator::Communicator;
use crate::{CommError, Region};

/// What belongs to a communicator. Must live as long: an abort comes before anything is freed, and areas then never are.
pub(super) struct Buffers {
    areas: Option<Areas>,
    regions: Vec<KnownRegion>,
    /// Every rank could register everything so far.
    registers: bool,
}

/// Two areas of the same size, one behind the other.
struct Areas {
    memory: DeviceMemory,
    registration: Option<Registration>,
    area_bytes: usize,
}

struct KnownRegion {
    /// Keeps the memory alive.
    whole: Region,
    registration: Option<Registration>,
}

/// Whom it takes to register a buffer.
pub(super) struct Parties<'a> {
    pub(super) comm: &'a mut Comm,
    pub(super) device: &'a mut dyn ExchangeDevice,
    /// The same ranks, beside NCCL.
    pub(super) control: &'a mut dyn Communicator,
    pub(super) waiting: &'a Waiting,
}

impl Parties<'_> {
    /// Waits until all that is queued is through, so that no memory is in use.
    fn settle(&mut self) -> Result<(), CommError> {
        let mut end = self.device.mark().map_err(device_failed)?;
        let comm = &mut *self.comm;
        self.waiting.until(|| super::exchange::has_come(comm, &mut *end))
    }
}

impl Buffers {
    pub(super) fn new() -> Self {
        Buffers { areas: None, regions: Vec::new(), registers: true }
    }

    /// Collective: all memory of the region that `part` is of, known to NCCL from now on.
    pub(super) fn know(&mut self, part: &Region, parties: &mut Parties<'_>) -> Result<(), CommError> {
        if self.regions.iter().any(|known| known.whole.is_same_memory(part)) {
            return Ok(());
        }
        // What nobody else holds any more is not exchanged again.
        if self.regions.iter().any(|known| known.whole.is_the_last()) {
            parties.settle()?;
            for known in self.regions.iter_mut().filter(|known| known.whole.is_the_last()) {
                forget(&mut known.registration, parties.comm)?;
            }
            self.regions.retain(|known| known.registration.is_some() || !known.whole.is_the_last());
        }
        let whole = part.whole();
        let (start, bytes) = (whole.start().cast(), whole.len() * size_of::<f32>());
        self.regions.push(KnownRegion { whole, registration: None });
        // SAFETY: `regions` keeps the memory until it is deregistered, or longer than the communicator.
        let registration = unsafe { self.register(start, bytes, parties) }?;
        if let Some(known) = self.regions.last_mut() {
            known.registration = registration;
        }
        Ok(())
    }

    /// Collective: two areas with room for `bytes` each, known to NCCL. What is queued uses them one after the other;
    /// they grow when all of it is through.
    pub(super) fn make_room(
        &mut self,
        bytes: usize,
        library: &Library,
        parties: &mut Parties<'_>,
    ) -> Result<(), CommError> {
        if self.areas.as_ref().map_or(0, |areas| areas.area_bytes) >= bytes {
            return Ok(());
        }
        if let Some(areas) = &mut self.areas {
            parties.settle()?;
            forget(&mut areas.registration, parties.comm)?;
            self.areas = None;
        }
        // Starts as `cudaMalloc`'s do, so that both areas do.
        let area_bytes = bytes.next_multiple_of(256);
        let memory = DeviceMemory::new(library, 2 * area_bytes)?;
        let (start, bytes) = (memory.as_ptr(), memory.bytes());
        self.areas = Some(Areas { memory, registration: None, area_bytes });
        // SAFETY: `areas` keeps the memory until it is deregistered, or longer than the communicator.
        let registration = unsafe { self.register(start, bytes, parties) }?;
        if let Some(areas) = &mut self.areas {
            areas.registration = registration;
        }
        Ok(())
    }

    /// Both areas; none before there is room.
    pub(super) fn areas(&self) -> Result<(*mut c_void, *mut c_void), CommError> {
        let Some(areas) = &self.areas else { return Err(CommError::Nccl("the exchange has no room".into())) };
        let first = areas.memory.as_ptr();
        // SAFETY: within the memory, which is twice as long.
        Ok((first, unsafe { first.byte_add(areas.area_bytes) }))
    }

    /// Collective: a registration, unless a rank has none; then nothing is registered from now on, which costs time only.
    ///
    /// # Safety
    /// As [`Comm::register`].
    unsafe fn register(
        &mut self,
        start: *mut c_void,
        bytes: usize,
        parties: &mut Parties<'_>,
    ) -> Result<Option<Registration>, CommError> {
        if !self.registers {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let registered = unsafe { parties.comm.register(start, bytes) };
        if let Err(error) = &registered {
            let rank = parties.control.topology().rank;
            tracing::warn!(rank, %error, "the exchange goes through NCCL's own buffers, which takes longer");
        }
        let mut mine = registered.ok().flatten();
        let all = parties.control.all_gather(&[u8::from(mine.is_some())])?;
        if all.iter().any(|rank| *rank != [1]) {
            self.registers = false;
            parties.settle()?;
            forget(&mut mine, parties.comm)?;
            self.forget_all(parties.comm)?;
        }
        Ok(mine)
    }

    /// Gives the areas back, when nothing is in use and nothing is registered.
    pub(super) fn release(&mut self) {
        self.areas = None;
        self.regions.clear();
    }

    /// Lets NCCL forget all of it, of which nothing is in use. The memory stays where it is, for the case that it cannot.
    pub(super) fn forget_all(&mut self, comm: &mut Comm) -> Result<(), CommError> {
        let of_areas = self.areas.iter_mut().map(|areas| &mut areas.registration);
        let of_regions = self.regions.iter_mut().map(|known| &mut known.registration);
        of_areas.chain(of_regions).try_for_each(|registration| forget(registration, comm))
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // After an error the device may still have operations on the areas to do, NCCL's or others, for which nobody can
        // wait any more. So they are never given back; the process is about to end.
        std::mem::forget(self.areas.take());
    }
}

fn forget(registration: &mut Option<Registration>, comm: &mut Comm) -> Result<(), CommError> {
    match registration.take() {
        Some(registration) => Ok(comm.deregister(registration)?),
        None => Ok(()),
    }
}
