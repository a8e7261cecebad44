//! The memory of libtorch's tensors: lent to the communication thread, filled by a function, or read as bytes.
//! Does not decide when either side of an exchange may touch it; [`allreduce::Reducer`] does.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use allreduce::Region;
use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// A new fp32 tensor on the host, every element of which `fill` sets.
pub(crate) fn filled(shape: &[i64], fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Result<Tensor, Error> {
    let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    let pointer = tensor.data_ptr().cast::<MaybeUninit<f32>>();
    if !pointer.is_null() {
        // SAFETY: a fresh tensor is contiguous and nobody else knows of it; its elements may be uninitialised, as the
        // slice's may.
        fill(unsafe { std::slice::from_raw_parts_mut(pointer, tensor.numel()) });
    }
    Ok(tensor)
}

/// The memory of a flat fp32 tensor on the host. The tensor stays alive as long as the region does.
///
/// # Errors
/// When the tensor is not a contiguous fp32 vector in host memory.
pub(crate) fn region_of(tensor: &Tensor) -> Result<Region, Error> {
    let pointer = elements(tensor)?;
    let owner = Arc::new(Mutex::new(tensor.shallow_clone()));
    // SAFETY: the pointer and length are those of a live contiguous fp32 host tensor, whose storage `owner`
    // keeps alive. Between `Reducer::begin_step` and `Reducer::launch` backward writes a bucket only before
    // it marks it ready and the communication thread only afterwards; outside of that only the training
    // thread touches it.
    Ok(unsafe { Region::new(pointer, tensor.numel(), owner) })
}

/// The bytes of a flat fp32 tensor on the host, for `read` alone.
///
/// # Errors
/// As [`region_of`].
pub(crate) fn read_bytes<T>(tensor: &Tensor, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
    let pointer = elements(tensor)?;
    // SAFETY: the pointer and length are those of a live contiguous fp32 host tensor, every byte of which is
    // initialised. It is borrowed for the call, and the thread that trains, which alone calls this, writes to no
    // tensor meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.as_ptr().cast::<u8>(), 4 * tensor.numel()) };
    Ok(read(bytes))
}

/// Where the elements of a flat fp32 tensor on the host begin.
fn elements(tensor: &Tensor) -> Result<NonNull<f32>, Error> {
    let fits = tensor.device() == Device::Cpu
        && tensor.kind() == Kind::Float
        && tensor.dim() == 1
        && tensor.is_contiguous();
    let pointer = NonNull::new(tensor.data_ptr().cast::<f32>());
    pointer.filter(|_| fits).ok_or_else(|| {
        Error::Other(format!(
            "expected a contiguous fp32 vector in host memory, not {:?} of shape {:?} on {:?}",
            tensor.kind(),
            tensor.size(),
            tensor.device()
        ))
    })
}
