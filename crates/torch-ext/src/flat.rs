//! Parameters and gradients as views of flat buffers, in the memory order that convolutions prefer.
//!
//! A four-dimensional parameter `[O, I, H, W]` lies in memory as `[O, H, W, I]` (channels_last), any other
//! contiguous. The flat buffer is then updated, exchanged and saved as a whole, while the network sees
//! ordinary tensors.
#![allow(unsafe_code)]

use tch::Tensor;

use crate::error::{Error, check};
use crate::sys;

/// Strides of a parameter within the flat buffer, in elements.
#[must_use]
pub fn strides(shape: &[i64]) -> Vec<i64> {
    if let [_, inputs, height, width] = *shape {
        return vec![inputs * height * width, 1, width * inputs, inputs];
    }
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The parameter of `shape` that begins at element `offset` of `flat`; shares its memory.
///
/// # Errors
/// When it does not fit.
pub fn view(flat: &Tensor, offset: i64, shape: &[i64]) -> Result<Tensor, Error> {
    let part = flat.f_narrow(0, offset, shape.iter().product())?;
    Ok(part.f_as_strided(shape, strides(shape), part.f_storage_offset()?)?)
}

/// As [`view`], as a leaf that requires a gradient.
///
/// # Errors
/// As [`view`].
pub fn leaf(flat: &Tensor, offset: i64, shape: &[i64]) -> Result<Tensor, Error> {
    Ok(view(flat, offset, shape)?.f_detach()?.f_set_requires_grad(true)?)
}

/// Makes the part of `flat_gradient` at `offset` the gradient of `parameter`: backward adds into it in place.
///
/// # Errors
/// As [`view`].
pub fn bind_gradient(parameter: &Tensor, flat_gradient: &Tensor, offset: i64) -> Result<(), Error> {
    let gradient = view(flat_gradient, offset, &parameter.size())?;
    // SAFETY: both pointers are of live tensors, and the shim copies the reference-counted handle.
    check(unsafe { sys::torch_ext_bind_gradient(parameter.as_ptr(), gradient.as_ptr()) })
}
