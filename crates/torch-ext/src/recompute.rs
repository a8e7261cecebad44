//! Batch norm, ReLU and dropout whose outputs backward computes again instead of keeping them.
//!
//! Plain autograd keeps two tensors for the chain batch norm, ReLU, convolution: the input of the first and that
//! of the last. Here the second, and with dropout its mask and the ReLU's result too, give way to the first. The
//! graph's nodes, their kernels and their order stay the ordinary ones, so the gradients have the same bits and
//! become ready in the same order.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use tch::Tensor;

use crate::error::{Error, check};
use crate::random;
use crate::sys;

/// What a batch norm normalises by, as libtorch's `batch_norm` takes it.
#[derive(Clone, Copy, Debug)]
pub struct NormArguments<'a> {
    /// Scale `[C]`.
    pub gain: &'a Tensor,
    /// Shift `[C]`.
    pub bias: &'a Tensor,
    /// Running mean and variance `[C]`: read, or with `by_batch` updated.
    pub statistics: Option<(&'a Tensor, &'a Tensor)>,
    /// Whether the batch's own mean and variance count.
    pub by_batch: bool,
    /// Weight of this batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance.
    pub epsilon: f64,
}

/// An output that can be computed again.
#[derive(Debug)]
pub struct Recomputed {
    handle: NonNull<sys::Recomputed>,
}

impl Recomputed {
    /// Lets the convolution whose output is `convolved`, if it has this as its input, give up that input.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn feeds(&self, convolved: &Tensor) -> Result<(), Error> {
        // SAFETY: both are alive.
        check(unsafe { sys::torch_ext_recomputed_feeds(self.handle.as_ptr(), convolved.as_ptr()) })
    }
}

impl Drop for Recomputed {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once. What the graph needs of it, it owns itself.
        unsafe { sys::torch_ext_recomputed_free(self.handle.as_ptr()) }
    }
}

/// ReLU of the batch norm of `input` `[N, C, H, W]`, then dropout with a probability and a key (as
/// [`random::dropout`]). The second result is there when a graph is recorded.
///
/// `input` and the parameters must not change before backward; that it then refuses.
///
/// # Errors
/// When libtorch refuses, or the probability is not in 0 to 1, 1 excluded.
pub fn norm_relu(
    input: &Tensor,
    norm: NormArguments,
    dropout: Option<(f64, u64)>,
) -> Result<(Tensor, Option<Recomputed>), Error> {
    let (probability, key) = dropout.unwrap_or((0.0, 0));
    random::check_probability(probability)?;
    let (mean, variance) = match norm.statistics {
        Some((mean, variance)) => (mean.as_ptr(), variance.as_ptr()),
        None => (std::ptr::null(), std::ptr::null()),
    };
    let (mut output, mut recomputed) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: all tensors are alive; on success `output` holds a new tensor that is ours, and so is `recomputed`
    // unless it is null.
    unsafe {
        check(sys::torch_ext_norm_relu(
            input.as_ptr(),
            norm.gain.as_ptr(),
            norm.bias.as_ptr(),
            mean,
            variance,
            norm.by_batch,
            norm.momentum,
            norm.epsilon,
            probability,
            key,
            &mut output,
            &mut recomputed,
        ))?;
        Ok((Tensor::from_ptr(output), NonNull::new(recomputed).map(|handle| Recomputed { handle })))
    }
}
