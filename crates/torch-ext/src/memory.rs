//! How much host memory tensors take: libtorch's on the CPU, oneDNN's work space included.
#![allow(unsafe_code)]

use crate::error::{Error, check};
use crate::sys;

/// Counts from now on. Call before the first operation: what exists already is not counted, and libtorch may
/// hold memory of which it later asks the new allocator.
///
/// # Errors
/// When libtorch refuses.
pub fn count_host_memory() -> Result<(), Error> {
    // SAFETY: no arguments.
    check(unsafe { sys::torch_ext_count_host_memory() })
}

/// Bytes in use.
#[must_use]
pub fn host_bytes() -> u64 {
    // SAFETY: no arguments.
    u64::try_from(unsafe { sys::torch_ext_host_bytes() }).unwrap_or(0)
}

/// The most bytes that were in use at once since the last call.
#[must_use]
pub fn take_host_peak_bytes() -> u64 {
    // SAFETY: no arguments.
    u64::try_from(unsafe { sys::torch_ext_take_host_peak_bytes() }).unwrap_or(0)
}
