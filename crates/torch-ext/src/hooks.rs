//! A call at the moment in which a parameter's gradient is complete, while backward goes on with earlier
//! layers.
//!
//! libtorch calls on the thread that runs backward: the caller's own for CPU tensors, the engine's device
//! thread for CUDA ones.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use crate::error::{Error, check};
use crate::sys;

type Callback = Box<dyn Fn() + Send + Sync>;

extern "C" fn call(context: *mut c_void) {
    // SAFETY: `context` is the Box below, alive until `drop_callback`.
    let callback = unsafe { &*context.cast::<Callback>() };
    // Unwinding into C++ is undefined, and after a panic here no other rank may be kept waiting.
    if catch_unwind(AssertUnwindSafe(callback)).is_err() {
        eprintln!("error: a gradient-ready callback panicked");
        std::process::abort();
    }
}

extern "C" fn drop_callback(context: *mut c_void) {
    // SAFETY: the shim calls this once, when it drops the hook.
    drop(unsafe { Box::from_raw(context.cast::<Callback>()) });
}

/// Calls `callback` once a backward pass, after `parameter`'s gradient has been accumulated. Replaces an
/// earlier callback of the same parameter; lives as long as the parameter. It must not panic.
///
/// # Errors
/// When `parameter` is not a leaf that requires a gradient.
pub fn on_gradient_ready(
    parameter: &Tensor,
    callback: impl Fn() + Send + Sync + 'static,
) -> Result<(), Error> {
    let callback: Callback = Box::new(callback);
    let context = Box::into_raw(Box::new(callback)).cast::<c_void>();
    // SAFETY: the shim takes the context over, on errors too, and gives it back to `drop_callback` once.
    check(unsafe { sys::torch_ext_on_gradient_ready(parameter.as_ptr(), call, drop_callback, context) })
}
