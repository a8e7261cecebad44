//! Copies from the host to a GPU for which the host does not wait, and the memory that makes them possible: pages that the
//! system never moves. Pinned memory is libtorch's, which keeps what is freed for the next time, since pinning is slow.
#![allow(unsafe_code)]

use std::ffi::c_int;

use tch::{Device, Tensor};

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

/// Queues a copy on the current stream of the GPU that `to` is on. On the CPU it is done on return.
///
/// # Errors
/// When the shapes do not fit.
///
/// # Safety
/// The memory of `from` stays and is not written until the stream has passed the copy; also after an error, when the copy
/// may have begun.
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
    fn without_a_gpu_pinned_memory_is_an_error_and_not_a_crash() {
        if crate::runtime::device_count() > 0 {
            return;
        }
        assert!(pinned_bytes(16).is_err());
        assert!(to_device(&Tensor::from_slice(&[1_i64]), Device::Cuda(0)).is_err());
    }
}
