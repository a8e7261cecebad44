//! Randomness without global state.
#![allow(unsafe_code)]

use tch::Tensor;

use crate::error::{Error, check};
use crate::sys;

/// Inverted dropout: each element is zeroed with `probability`, the others are divided by `1 - probability`.
/// The mask is a function of `key`, the shape, the memory order and the device (on a CPU of the key's low 32
/// bits), and no generator of the process is touched. Keeps dtype and memory order.
///
/// # Errors
/// When `probability` is not in 0 to 1, 1 excluded.
pub fn dropout(input: &Tensor, probability: f64, key: u64) -> Result<Tensor, Error> {
    check_probability(probability)?;
    let mut output = std::ptr::null_mut();
    // SAFETY: `input` is alive; on success `output` holds a new tensor that is ours.
    unsafe {
        check(sys::torch_ext_dropout(input.as_ptr(), probability, key, &mut output))?;
        Ok(Tensor::from_ptr(output))
    }
}

pub(crate) fn check_probability(probability: f64) -> Result<(), Error> {
    if (0.0..1.0).contains(&probability) {
        return Ok(());
    }
    Err(Error::Argument(format!("a dropout probability of {probability} is outside 0 to 1 (1 excluded)")))
}
