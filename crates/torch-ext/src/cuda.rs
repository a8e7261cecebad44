//! CUDA streams and events. On a machine without a GPU, or built without CUDA's headers, every function
//! returns an error.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

use crate::error::{Error, check};
use crate::sys;

/// Makes GPU `device` the one that this thread's calls of CUDA, and of libraries on it such as NCCL, are about.
///
/// # Errors
/// Without a GPU.
pub fn set_device(device: usize) -> Result<(), Error> {
    // SAFETY: a plain value.
    check(unsafe { sys::torch_ext_set_device(device as c_int) })
}

/// Where GPU `device` is plugged in, such as `0000:3b:00.0`: the same for every process of the machine.
///
/// # Errors
/// Without a GPU.
pub fn pci_bus_id(device: usize) -> Result<String, Error> {
    // Longer than any, and ends in zero.
    let mut text = [0; 64];
    // SAFETY: plain values, and room for as many bytes.
    check(unsafe { sys::torch_ext_pci_bus_id(device as c_int, text.as_mut_ptr(), text.len() as c_int) })?;
    let bytes: Vec<u8> = text.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A stream of libtorch: from its pool, so that its allocator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    device: c_int,
    id: i64,
}

impl Stream {
    /// The stream on which this thread's operations on GPU `device` run.
    ///
    /// # Errors
    /// Without a GPU.
    pub fn current(device: usize) -> Result<Self, Error> {
        let device = device as c_int;
        let mut id = 0;
        // SAFETY: a plain value and a valid place to write to.
        check(unsafe { sys::torch_ext_current_stream(device, &mut id) })?;
        Ok(Stream { device, id })
    }

    /// A stream beside the current one.
    ///
    /// # Errors
    /// Without a GPU.
    pub fn from_pool(device: usize, high_priority: bool) -> Result<Self, Error> {
        let device = device as c_int;
        let mut id = 0;
        // SAFETY: plain values and a valid place to write to.
        check(unsafe { sys::torch_ext_stream_from_pool(device, high_priority, &mut id) })?;
        Ok(Stream { device, id })
    }

    /// The GPU that it belongs to.
    #[must_use]
    pub fn device(self) -> usize {
        self.device as usize
    }

    /// Makes this the current stream of this thread until the guard is dropped.
    ///
    /// # Errors
    /// Without a GPU.
    pub fn enter(self) -> Result<StreamGuard, Error> {
        let previous = Stream::current(self.device as usize)?;
        // SAFETY: plain values.
        check(unsafe { sys::torch_ext_set_current_stream(self.device, self.id) })?;
        Ok(StreamGuard { previous })
    }

    /// Waits on the host until everything on the stream is done.
    ///
    /// # Errors
    /// An earlier failure on the device.
    pub fn synchronize(self) -> Result<(), Error> {
        // SAFETY: plain values.
        check(unsafe { sys::torch_ext_stream_synchronize(self.device, self.id) })
    }

    /// The `cudaStream_t`, for other libraries.
    ///
    /// # Errors
    /// Without a GPU.
    pub fn handle(self) -> Result<*mut c_void, Error> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: plain values and a valid place to write to.
        check(unsafe { sys::torch_ext_stream_handle(self.device, self.id, &mut handle) })?;
        Ok(handle)
    }
}

/// Restores the stream that was current before.
#[must_use = "the former stream returns when the guard is dropped"]
#[derive(Debug)]
pub struct StreamGuard {
    previous: Stream,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // SAFETY: plain values.
        let restored =
            check(unsafe { sys::torch_ext_set_current_stream(self.previous.device, self.previous.id) });
        debug_assert!(restored.is_ok(), "{restored:?}");
    }
}

/// A point on a stream that other streams and the host can wait for.
#[derive(Debug)]
pub struct Event {
    event: NonNull<c_void>,
}

// SAFETY: CUDA events may be used from any thread; the methods that change one take `&mut self`.
unsafe impl Send for Event {}

impl Event {
    /// An event that is not recorded yet.
    ///
    /// # Errors
    /// Without CUDA.
    pub fn new() -> Result<Self, Error> {
        Self::make(false)
    }

    /// As [`Event::new`], one that knows when it was reached.
    ///
    /// # Errors
    /// Without CUDA.
    pub fn timed() -> Result<Self, Error> {
        Self::make(true)
    }

    fn make(timed: bool) -> Result<Self, Error> {
        let mut event = std::ptr::null_mut();
        // SAFETY: a valid place to write to.
        check(unsafe { sys::torch_ext_event_new(timed, &mut event) })?;
        let event = NonNull::new(event).ok_or_else(|| Error::Libtorch("CUDA gave no event".into()))?;
        Ok(Event { event })
    }

    /// Marks the end of what `stream` holds so far.
    ///
    /// # Errors
    /// Without a GPU.
    pub fn record(&mut self, stream: Stream) -> Result<(), Error> {
        // SAFETY: the event is alive.
        check(unsafe { sys::torch_ext_event_record(self.event.as_ptr(), stream.device, stream.id) })
    }

    /// Lets `stream` wait for the event; the host goes on.
    ///
    /// # Errors
    /// Without a GPU.
    pub fn block(&mut self, stream: Stream) -> Result<(), Error> {
        // SAFETY: the event is alive.
        check(unsafe { sys::torch_ext_event_block(self.event.as_ptr(), stream.device, stream.id) })
    }

    /// Whether the event has been reached. Never waits.
    ///
    /// # Errors
    /// An earlier failure on the device.
    pub fn is_done(&self) -> Result<bool, Error> {
        let mut done = false;
        // SAFETY: the event is alive, and a valid place to write to.
        check(unsafe { sys::torch_ext_event_query(self.event.as_ptr(), &mut done) })?;
        Ok(done)
    }

    /// How long after `earlier` it was reached, to about half a microsecond.
    ///
    /// # Errors
    /// When one of the two is not timed or has not been reached, or an earlier failure on the device.
    pub fn since(&self, earlier: &Event) -> Result<Duration, Error> {
        let mut milliseconds = 0.0;
        let (from, to) = (earlier.event.as_ptr(), self.event.as_ptr());
        // SAFETY: both events are alive, and a valid place to write to.
        check(unsafe { sys::torch_ext_event_elapsed(from, to, &mut milliseconds) })?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }

    /// Waits on the host.
    ///
    /// # Errors
    /// An earlier failure on the device.
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the event is alive.
        check(unsafe { sys::torch_ext_event_synchronize(self.event.as_ptr()) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { sys::torch_ext_event_free(self.event.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_streams_are_errors_and_not_crashes() {
        if crate::runtime::device_count() > 0 {
            return;
        }
        assert!(set_device(0).is_err() && pci_bus_id(0).is_err());
        assert!(Stream::current(0).is_err());
        assert!(Stream::from_pool(0, true).is_err());
    }
}
