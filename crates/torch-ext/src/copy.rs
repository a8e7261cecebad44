//! Copies between the host and a GPU for which the host does not wait, and the memory that makes them possible: pages that the
//! system never moves. Pinned memory is libtorch's, which keeps what is freed for the next time, since pinning is slow.
#![allow(unsafe_code)]

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};

use crate::cuda::{Event, Stream};
use crate::error::{Error, check};
use crate::sys;

/// Zeros `[bytes]` of kind `Uint8` in pinned host memory.
///
/// # Errors
/// Without a GPU, or when no more memory can be pinned.
pub fn pinned_bytes(bytes: usize) -> Result<Tensor, Error> {
    let bytes = i64::try_from(bytes).map_err(|_| Error::Argument(format!("{bytes} bytes are too many")))?;
    let mut memory = std::ptr::null_mut();
    // SAFETY: on success `memory` holds a new tensor that is ours.
    unsafe {
        check(sys::torch_ext_pinned_bytes(bytes, &mut memory))?;
        Ok(Tensor::from_ptr(memory))
    }
}

/// Queues a copy on the current stream of the GPU that one of the two is on; the other may be on the host, in pinned
/// memory. On the CPU it is done on return.
///
/// # Errors
/// When the shapes do not fit.
///
/// # Safety
/// The memory of both stays, that of `from` is not written and that of `to` not read until the stream has passed the copy;
/// also after an error, when the copy may have begun.
pub unsafe fn queue(from: &Tensor, to: &Tensor) -> Result<(), Error> {
    // SAFETY: both tensors are alive; the caller's promise for what happens later.
    check(unsafe { sys::torch_ext_queue_copy(from.as_ptr(), to.as_ptr()) })
}

/// A few numbers of the host on `device`. The host does not wait for the stream that they are needed on: they travel
/// from a pinned copy of libtorch's own. On the CPU they are the tensor itself.
///
/// # Errors
/// When the device has no room for them.
pub fn to_device(numbers: &Tensor, device: Device) -> Result<Tensor, Error> {
    let Device::Cuda(index) = device else { return Ok(numbers.shallow_clone()) };
    let mut copy = std::ptr::null_mut();
    // SAFETY: the tensor is alive; on success `copy` holds a new tensor that is ours.
    unsafe {
        check(sys::torch_ext_to_gpu(numbers.as_ptr(), index as c_int, &mut copy))?;
        Ok(Tensor::from_ptr(copy))
    }
}

/// A few fp64 numbers of a device on their way to the host, which waits for them only when it reads them.
#[derive(Debug)]
pub struct Readback {
    device: Device,
    /// `[N]`, on the host.
    numbers: Tensor,
    /// On a GPU, from the copy until it has been waited for: its end.
    under_way: Option<Event>,
}

impl Readback {
    /// For `len` numbers of `device`.
    ///
    /// # Errors
    /// Without the GPU, or when no more memory can be pinned.
    pub fn new(len: usize, device: Device) -> Result<Self, Error> {
        let kind = Kind::Double;
        let numbers = match device {
            Device::Cuda(_) => pinned_bytes(len * kind.elt_size_in_bytes())?.f_view_dtype(kind)?,
            _ => Tensor::f_zeros([len as i64], (kind, Device::Cpu))?,
        };
        Ok(Readback { device, numbers, under_way: None })
    }

    /// Queues a copy of `from`, `[N]`, on the current stream. What follows there may overwrite it. A copy that was not
    /// read is waited for.
    ///
    /// # Errors
    /// When the shapes do not fit, or the device failed.
    pub fn queue(&mut self, from: &Tensor) -> Result<(), Error> {
        self.wait()?;
        let end = match self.device {
            Device::Cuda(index) => Some((Stream::current(index)?, Event::new()?)),
            _ => None,
        };
        // SAFETY: the numbers are read, written and freed only after a wait for the end of the copy; where that end is not
        // marked, because of an error, for all that the stream holds.
        let queued = unsafe { queue(from, &self.numbers) };
        let Some((stream, mut event)) = end else { return queued };
        match queued.and_then(|()| event.record(stream)) {
            Ok(()) => self.under_way = Some(event),
            Err(error) => return stream.synchronize().and(Err(error)),
        }
        Ok(())
    }

    /// Waits for the copy that was queued last.
    ///
    /// # Errors
    /// When the device failed.
    pub fn read(&mut self) -> Result<Vec<f64>, Error> {
        self.wait()?;
        let mut numbers = vec![0.0; self.numbers.numel()];
        self.numbers.f_copy_data(&mut numbers, self.numbers.numel())?;
        Ok(numbers)
    }

    fn wait(&mut self) -> Result<(), Error> {
        self.under_way.take().map_or(Ok(()), |end| end.synchronize())
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // After a failure of the device nothing is copied any more.
        let _ = self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_cpu_a_queued_copy_is_done_and_numbers_are_where_they_were() {
        let (from, to) = (Tensor::from_slice(&[1_u8, 2, 3]), Tensor::from_slice(&[0_u8; 3]));
        // SAFETY: the copy is done on return.
        unsafe { queue(&from, &to) }.unwrap();
        assert_eq!(to, from);
        // SAFETY: as above.
        assert!(unsafe { queue(&from, &to.narrow(0, 0, 2)) }.is_err());
        assert_eq!(to_device(&from, Device::Cpu).unwrap().data_ptr(), from.data_ptr());
    }

    #[test]
    fn numbers_are_read_back_as_they_were_when_their_copy_was_queued() {
        let mut readback = Readback::new(3, Device::Cpu).unwrap();
        let mut from = Tensor::from_slice(&[1.0, 2.0, 3.0]);
        readback.queue(&from).unwrap();
        let _ = from.fill_(9.0);
        assert_eq!(readback.read().unwrap(), [1.0, 2.0, 3.0]);
        assert!(readback.queue(&from.narrow(0, 0, 2)).is_err());
    }

    #[test]
    fn without_a_gpu_pinned_memory_is_an_error_and_not_a_crash() {
        if crate::runtime::device_count() > 0 {
            return;
        }
        assert!(pinned_bytes(16).is_err());
        assert!(Readback::new(4, Device::Cuda(0)).is_err());
        assert!(to_device(&Tensor::from_slice(&[1_i64]), Device::Cuda(0)).is_err());
    }
}
