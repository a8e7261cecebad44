//! A part of a network as one node of the graph: its forward pass keeps nothing but its input, and backward runs
//! it again.
//!
//! Backward accumulates the gradients of parameters that the part uses itself, once each and in the order in
//! which an ordinary backward would, so that gradient-ready hooks see no difference.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use crate::error::{Error, check};
use crate::sys;

type Again = Box<dyn Fn(&Tensor) -> Result<Tensor, String> + Send>;

extern "C" fn call(
    context: *mut c_void,
    input: *const sys::C_tensor,
    output: *mut *mut sys::C_tensor,
) -> *mut c_char {
    // SAFETY: `context` is the Box below, alive until `drop_closure`; `input` is a live tensor, of which this
    // takes a reference of its own.
    let (again, input) = unsafe { (&*context.cast::<Again>(), Tensor::clone_from_ptr(input.cast_mut())) };
    // Unwinding into C++ is undefined.
    let computed = catch_unwind(AssertUnwindSafe(|| again(&input)))
        .unwrap_or_else(|_| Err("the forward pass of a checkpointed block panicked in backward".into()));
    match computed {
        Ok(mut tensor) => {
            // SAFETY: a valid place to write to; the shim takes the tensor over.
            unsafe { *output = tensor.as_mut_ptr() };
            std::mem::forget(tensor);
            std::ptr::null_mut()
        }
        Err(message) => {
            let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
            // SAFETY: a text that ends in a zero byte, which the shim copies.
            unsafe { sys::torch_ext_copy_text(message.as_ptr()) }
        }
    }
}

extern "C" fn drop_closure(context: *mut c_void) {
    // SAFETY: the shim calls this once, when it drops the closure.
    drop(unsafe { Box::from_raw(context.cast::<Again>()) });
}

/// The autocast cache, off until this is dropped: it would keep casts made without a graph for operations that
/// need one.
struct WithoutAutocastCache {
    cached: bool,
}

impl WithoutAutocastCache {
    fn new() -> Result<Self, Error> {
        let mut cached = true;
        // SAFETY: a valid place to write to.
        check(unsafe { sys::torch_ext_without_autocast_cache(&mut cached) })?;
        Ok(WithoutAutocastCache { cached })
    }
}

impl Drop for WithoutAutocastCache {
    fn drop(&mut self) {
        // SAFETY: a plain value.
        unsafe { sys::torch_ext_set_autocast_cache(self.cached) }
    }
}

/// `first(input)`, with a graph in which `again` stands for everything inside: backward calls it once, under the
/// autocast of now, and must get the same values. Both must leave `input` unchanged, and `again` must have no
/// other effect. It lives until backward has used it, or the graph is dropped.
///
/// Where no graph is recorded, this is `first(input)` alone.
///
/// On CUDA `again` runs on the autograd engine's thread. Its error, or a panic, becomes the error of backward.
///
/// # Errors
/// Those of `first`, or of libtorch.
pub fn checkpoint<E: Display + From<Error>>(
    input: &Tensor,
    first: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    again: impl Fn(&Tensor) -> Result<Tensor, E> + Send + 'static,
) -> Result<Tensor, E> {
    // SAFETY: no arguments.
    if !unsafe { sys::torch_ext_grad_enabled() } {
        return first(input);
    }
    let output = {
        let _no_grad = tch::no_grad_guard();
        let _no_cache = WithoutAutocastCache::new()?;
        first(input)?
    };
    let again: Again = Box::new(move |input| again(input).map_err(|error| error.to_string()));
    let context = Box::into_raw(Box::new(again)).cast::<c_void>();
    // SAFETY: both tensors are alive; the shim takes the context over, on errors too, and gives it back to
    // `drop_closure` once.
    check(unsafe {
        sys::torch_ext_checkpoint(input.as_ptr(), output.as_ptr(), call, drop_closure, context)
    })?;
    Ok(output)
}
