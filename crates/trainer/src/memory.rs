//! Lends the memory of a libtorch tensor to the communication thread: the one place of this crate with
//! `unsafe`. Does not decide when either side may touch it; [`allreduce::Reducer`] does.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use allreduce::Region;
use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// The memory of a flat fp32 tensor on the host. The tensor stays alive as long as the region does.
///
/// # Errors
/// When the tensor is not a contiguous fp32 vector in host memory.
pub(crate) fn region_of(tensor: &Tensor) -> Result<Region, Error> {
    let fits = tensor.device() == Device::Cpu
        && tensor.kind() == Kind::Float
        && tensor.dim() == 1
        && tensor.is_contiguous();
    let pointer = NonNull::new(tensor.data_ptr().cast::<f32>());
    let (true, Some(pointer)) = (fits, pointer) else {
        return Err(Error::Other(format!(
            "the exchange needs a contiguous fp32 vector in host memory, not {:?} of shape {:?} on {:?}",
            tensor.kind(),
            tensor.size(),
            tensor.device()
        )));
    };
    let owner = Arc::new(Mutex::new(tensor.shallow_clone()));
    // SAFETY: the pointer and length are those of a live contiguous fp32 host tensor, whose storage `owner`
    // keeps alive. Between `Reducer::begin_step` and `Reducer::finish` backward writes a bucket only before
    // it marks it ready and the communication thread only afterwards; outside of that only the training
    // thread touches it.
    Ok(unsafe { Region::new(pointer, tensor.numel(), owner) })
}
