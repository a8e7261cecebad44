//! Batch norm over the images that several ranks hold at the same time, forward and backward. How ranks speak to each
//! other is the caller's affair: it gives a function that averages over them.
//!
//! Every rank must go through the same such layers in the same order, forward and backward, each with as many images
//! as the others; each layer averages twice in the forward pass and once in backward.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tch::Tensor;

use crate::error::{Error, check};
use crate::sys;

/// Replaces numbers by their averages over the ranks, which have the same bits on every rank.
pub type Average = Arc<dyn Fn(&mut [f32]) -> Result<(), String> + Send + Sync>;

/// The ranks whose images are normalised together.
#[derive(Clone)]
pub struct Ranks {
    /// How many there are.
    pub count: usize,
    /// Averages over them.
    pub average: Average,
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranks").field("count", &self.count).finish_non_exhaustive()
    }
}

extern "C" fn average(context: *mut c_void, values: *mut f32, len: usize) -> *mut c_char {
    // SAFETY: `context` is the Box below, alive until `drop_average`; the shim gives `len` fp32 numbers that nobody else
    // uses meanwhile.
    let (average, values) =
        unsafe { (&*context.cast::<Average>(), std::slice::from_raw_parts_mut(values, len)) };
    // Unwinding into C++ is undefined.
    let averaged = catch_unwind(AssertUnwindSafe(|| average(values)))
        .unwrap_or_else(|_| Err("the average over the ranks panicked within batch norm".into()));
    match averaged {
        Ok(()) => std::ptr::null_mut(),
        Err(message) => {
            let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
            // SAFETY: a text that ends in a zero byte, which the shim copies.
            unsafe { sys::torch_ext_copy_text(message.as_ptr()) }
        }
    }
}

extern "C" fn drop_average(context: *mut c_void) {
    // SAFETY: the shim calls this once, when it drops the closure.
    drop(unsafe { Box::from_raw(context.cast::<Average>()) });
}

/// Batch norm of `input` `[N, C, H, W]` by mean and variance over the images of all `ranks`, scaled by `gain` `[C]` and
/// shifted by `bias` `[C]`. Writes that mean and the unbiased variance to `statistics`, `[C]` each, fp32.
///
/// Where a graph is recorded, backward gives the gradient of the sum of the ranks' losses to `input`, and of this
/// rank's images alone to `gain` and `bias`, so that their sums over the ranks are the gradients of the whole.
///
/// # Errors
/// When libtorch refuses, or the average fails, here or in backward.
pub fn batch_norm(
    input: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    statistics: (&Tensor, &Tensor),
    epsilon: f64,
    ranks: &Ranks,
) -> Result<Tensor, Error> {
    let context = Box::into_raw(Box::new(Arc::clone(&ranks.average))).cast::<c_void>();
    let mut output = std::ptr::null_mut();
    // SAFETY: all tensors are alive; the shim takes the context over, on errors too, and gives it back to
    // `drop_average` once; on success `output` holds a new tensor that is ours.
    unsafe {
        check(sys::torch_ext_sync_norm(
            input.as_ptr(),
            gain.as_ptr(),
            bias.as_ptr(),
            statistics.0.as_ptr(),
            statistics.1.as_ptr(),
            epsilon,
            ranks.count as f64,
            average,
            drop_average,
            context,
            &mut output,
        ))?;
        Ok(Tensor::from_ptr(output))
    }
}
