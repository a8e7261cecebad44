//! SGD with momentum and AdamW, each in one call over whole buffers (`at::_fused_sgd_`, `at::_fused_adamw_`), on CPU
//! and CUDA. Keeps no state: what a rule remembers of past gradients lies in tensors of the caller's.
//!
//! On ranges that begin and end at multiples of 64 bytes, calls over parts give the bits of one call over the whole.
#![allow(unsafe_code)]

use tch::{Kind, Tensor};

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

/// The update rule of `torch.optim.AdamW`: `w *= 1 - rate * decay`; `m = beta1 * m + (1 - beta1) * g`; `v = beta2 * v
/// + (1 - beta2) * g²`; `w -= rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Rate.
    pub learning_rate: f64,
    /// Shares of the old `m` and `v` that stay.
    pub betas: [f64; 2],
    /// Keeps the divisor above zero.
    pub epsilon: f64,
    /// Share of the weights, times the rate, that is taken away.
    pub weight_decay: f64,
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
    call_fused_sgd(parameters, gradients, momentum, sgd, first_step, std::ptr::null())
}

/// As [`fused_sgd`] after the first step, unless `skip`, one fp32 number on the device of the parameters, is 1: then
/// everything stays as it is. It is read on the device, so the host need not know it.
///
/// # Errors
/// As [`fused_sgd`], or when `skip` is not one fp32 number on that device.
pub fn fused_sgd_unless(
    skip: &Tensor,
    parameters: &[&Tensor],
    gradients: &[&Tensor],
    momentum: &[&Tensor],
    sgd: &Sgd,
) -> Result<(), Error> {
    require_beside(skip, parameters)?;
    call_fused_sgd(parameters, gradients, momentum, sgd, false, skip.as_ptr())
}

fn call_fused_sgd(
    parameters: &[&Tensor],
    gradients: &[&Tensor],
    momentum: &[&Tensor],
    sgd: &Sgd,
    first_step: bool,
    skip: *const sys::C_tensor,
) -> Result<(), Error> {
    require_lengths(parameters, &[("gradients", gradients), ("momentum buffers", momentum)])?;
    let (parameters, gradients, momentum) = (pointers(parameters), pointers(gradients), pointers(momentum));
    // SAFETY: three arrays of `len` pointers to live tensors; `skip` is null or another one.
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
            skip,
        )
    })
}

/// Makes update number `step`, counted from 1, of `parameters` in place; `gradients` and the moments `m` and `v` match
/// them one to one in shape. `step` and `skip` are one fp32 number each on the device of the parameters, and are read there:
/// where `skip` is 1, everything stays as it is. Records nothing for autograd.
///
/// # Errors
/// When the lists are empty or differ in length, or the tensors do not fit.
pub fn fused_adamw(
    parameters: &[&Tensor],
    gradients: &[&Tensor],
    moments: [&[&Tensor]; 2],
    adamw: &AdamW,
    step: &Tensor,
    skip: Option<&Tensor>,
) -> Result<(), Error> {
    let [first, second] = moments;
    let others = [("gradients", gradients), ("first moments", first), ("second moments", second)];
    require_lengths(parameters, &others)?;
    for number in [Some(step), skip].into_iter().flatten() {
        require_beside(number, parameters)?;
    }
    let (parameters, gradients) = (pointers(parameters), pointers(gradients));
    let (first, second) = (pointers(first), pointers(second));
    // SAFETY: four arrays of `len` pointers to live tensors; `step` is one, and `skip` is null or another one.
    check(unsafe {
        sys::torch_ext_fused_adamw(
            parameters.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            parameters.len(),
            adamw.learning_rate,
            adamw.betas[0],
            adamw.betas[1],
            adamw.epsilon,
            adamw.weight_decay,
            step.as_ptr(),
            skip.map_or(std::ptr::null(), |skip| skip.as_ptr()),
        )
    })
}

/// The kernels read a number where they run.
fn require_beside(number: &Tensor, parameters: &[&Tensor]) -> Result<(), Error> {
    let fits = |parameter: &&Tensor| parameter.device() == number.device();
    if number.kind() == Kind::Float && number.numel() == 1 && parameters.iter().all(fits) {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "what an update depends on is one fp32 number beside the parameters, not {:?} {:?} on {:?}",
        number.kind(),
        number.size(),
        number.device()
    )))
}

fn require_lengths(parameters: &[&Tensor], others: &[(&str, &[&Tensor])]) -> Result<(), Error> {
    match others.iter().find(|(_, other)| other.len() != parameters.len()) {
        None => Ok(()),
        Some((name, other)) => Err(Error::Argument(format!(
            "{} parameters and {} {name} do not match",
            parameters.len(),
            other.len()
        ))),
    }
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const sys::C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}
