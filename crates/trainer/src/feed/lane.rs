//! The way of a batch's bytes to a GPU: two slots of device memory that live as long as the feed, filled in turn on a
//! stream beside the computation's. What follows what is said by events; the host waits for none of them.
//!
//! | who waits | for what |
//! |---|---|
//! | the computation, before it reads a slot | the copy into it |
//! | the copy, before it writes a slot | the computation that read it, two batches before |
//! | the decoder pool, before it fills a batch's memory again | the copy out of it |
//!
//! On the CPU there are no streams: everything is done when it returns.
#![allow(unsafe_code)]

use data_sharding::{Batch, Reader};
use tch::{Device, Kind, Tensor};
use torch_ext::copy;
use torch_ext::cuda::{Event, Stream};

use crate::error::Error;

pub(super) struct Lane {
    /// On a GPU: that of the copies.
    stream: Option<Stream>,
    slots: [Slot; 2],
    next: usize,
}

/// Room for a batch on the device.
pub(super) struct Slot {
    bytes: Tensor,
    /// Its latest copy.
    filled: Moment,
    /// The latest computation that read it.
    read: Moment,
}

/// A point of a stream of a GPU that other streams wait for.
#[derive(Default)]
struct Moment {
    /// `None` before it is marked for the first time.
    event: Option<Event>,
}

impl Moment {
    /// Now is the moment: the end of what `stream` holds.
    fn mark(&mut self, stream: Stream) -> Result<(), Error> {
        let event = match &mut self.event {
            Some(event) => event,
            none => none.insert(Event::new()?),
        };
        Ok(event.record(stream)?)
    }

    /// Lets `stream` wait for the moment, if there was one.
    fn before(&mut self, stream: Stream) -> Result<(), Error> {
        self.event.as_mut().map_or(Ok(()), |event| Ok(event.block(stream)?))
    }
}

impl Lane {
    /// For batches of up to `bytes`.
    pub(super) fn new(device: Device, bytes: usize) -> Result<Self, Error> {
        let stream = match device {
            Device::Cuda(index) => Some(Stream::from_pool(index, false)?),
            _ => None,
        };
        let slot = || -> Result<Slot, Error> {
            let bytes = Tensor::f_empty([bytes as i64], (Kind::Uint8, device))?;
            Ok(Slot { bytes, filled: Moment::default(), read: Moment::default() })
        };
        let mut slots = [slot()?, slot()?];
        if let Device::Cuda(index) = device {
            // The allocator may have taken their memory from tensors that the computation has yet to read.
            let computation = Stream::current(index)?;
            slots.iter_mut().try_for_each(|slot| slot.read.mark(computation))?;
        }
        Ok(Lane { stream, slots, next: 0 })
    }

    /// Begins to copy a batch into the slot whose number it gives: not the one of the batch before.
    pub(super) fn upload(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        let number = self.next;
        let slot = &mut self.slots[number];
        let from = batch.images();
        let to = slot.bytes.f_narrow(0, 0, from.len() as i64)?;
        // SAFETY: the bytes of the batch, which outlive the tensor, and as the source of a copy are only read.
        let from = unsafe {
            Tensor::f_from_blob(from.as_ptr(), &[from.len() as i64], &[1], Kind::Uint8, Device::Cpu)
        }?;
        match self.stream {
            // SAFETY: without a stream the copy is done on return.
            None => unsafe { copy::queue(&from, &to) }?,
            Some(stream) => {
                slot.read.before(stream)?;
                let on_stream = stream.enter()?;
                // SAFETY: the reader keeps the batch's memory from being written or freed, whatever became of the copy.
                let queued = unsafe { copy::queue(&from, &to) };
                drop(on_stream);
                batch.read_by(Box::new(Copying::until_here(stream)));
                queued?;
                slot.filled.mark(stream)?;
            }
        }
        self.next = 1 - number;
        Ok(number)
    }

    pub(super) fn slot(&mut self, number: usize) -> &mut Slot {
        &mut self.slots[number]
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The allocator knows only of the stream of the computation, and might give the slots to others.
        if let Some(stream) = self.stream
            && let Err(error) = stream.synchronize()
        {
            tracing::warn!("copies to the GPU failed: {error}");
        }
    }
}

impl Slot {
    /// The bytes in it as fp32 of a shape.
    pub(super) fn floats(&mut self, shape: &[i64]) -> Result<Tensor, Error> {
        let stream = match self.bytes.device() {
            Device::Cuda(index) => Some(Stream::current(index)?),
            _ => None,
        };
        if let Some(stream) = stream {
            self.filled.before(stream)?;
        }
        let bytes = self.bytes.f_narrow(0, 0, shape.iter().product())?;
        let floats = bytes.f_view(shape)?.f_to_kind(Kind::Float)?;
        if let Some(stream) = stream {
            self.read.mark(stream)?;
        }
        Ok(floats)
    }
}

/// A copy out of a batch's memory.
enum Copying {
    Until(Event),
    /// Where no event marks its end, the end of all that is on the stream.
    On(Stream),
}

impl Copying {
    /// All that `stream` holds by now.
    fn until_here(stream: Stream) -> Self {
        let marked = Event::new().and_then(|mut event| event.record(stream).map(|()| event));
        marked.map_or(Copying::On(stream), Copying::Until)
    }
}

impl Reader for Copying {
    fn wait(&mut self) -> Result<(), String> {
        let waited = match self {
            Copying::Until(event) => event.synchronize(),
            Copying::On(stream) => stream.synchronize(),
        };
        waited.map_err(|error| error.to_string())
    }
}
