//! SGD with momentum in one call over whole buffers (`at::_fused_sgd_`), on CPU and CUDA.
#![allow(unsafe_code)]

use tch::Tensor;

use crate::error::{Error, check};
use crate::sys;

/// The update rule of `torch.optim.SGD`: `g += decay * w`; `v = momentum * v + (1 - dampening) * g`; `w -=
/// rate * v`, or with Nesterov `w -= rate * (g + momentum * v)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Rate.
    pub learning_rate: f64,
    /// Share of the old `v` that stays.
    pub momentum: f64,
    /// Share of the gradient that does not enter `v`.
    pub dampening: f64,
    /// L2 penalty.
    pub weight_decay: f64,
    /// Look ahead by one momentum step.
    pub nesterov: bool,
}

/// Updates `parameters` in place; `gradients` and `momentum` match them one to one in shape. With
/// `first_step` the momentum is overwritten by the gradient; with a momentum of 0 it is left alone. Records
/// nothing for autograd.
///
/// # Errors
/// When the lists differ in length or the tensors do not fit.
pub fn fused_sgd(
    parameters: &[&Tensor],
    gradients: &[&Tensor],
    momentum: &[&Tensor],
    sgd: &Sgd,
    first_step: bool,
) -> Result<(), Error> {
    if parameters.len() != gradients.len() || parameters.len() != momentum.len() {
        return Err(Error::Argument(format!(
            "{} parameters, {} gradients and {} momentum buffers do not match",
            parameters.len(),
            gradients.len(),
            momentum.len()
        )));
    }
    let pointers =
        |tensors: &[&Tensor]| -> Vec<*const sys::C_tensor> { tensors.iter().map(|t| t.as_ptr()).collect() };
    let (parameters, gradients, momentum) = (pointers(parameters), pointers(gradients), pointers(momentum));
    // SAFETY: three arrays of `len` pointers to live tensors.
    check(unsafe {
        sys::torch_ext_fused_sgd(
            parameters.as_ptr(),
            gradients.as_ptr(),
            momentum.as_ptr(),
            parameters.len(),
            sgd.learning_rate,
            sgd.momentum,
            sgd.dampening,
            sgd.weight_decay,
            sgd.nesterov,
            first_step,
        )
    })
}
