//! Mixed precision: within a region, libtorch runs convolutions and products in a smaller number format.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::error::{Error, check};
use crate::sys;

/// A region of autocast on this thread; the state before it returns when it is dropped, also by a panic.
#[must_use = "autocast ends when the guard is dropped"]
#[derive(Debug)]
pub struct Guard {
    device: c_int,
    previous_enabled: c_int,
    previous_dtype: c_int,
    /// Autocast's state belongs to a thread.
    _not_send: PhantomData<*const ()>,
}

impl Guard {
    /// Switches autocast on for operations on `device`, with `kind` bfloat16 or half; off with `kind` float.
    ///
    /// # Errors
    /// For another `kind` or a device that is neither CPU nor CUDA.
    pub fn new(device: Device, kind: Kind) -> Result<Self, Error> {
        let device = match device {
            Device::Cpu => 0,
            Device::Cuda(_) => 1,
            other => return Err(Error::Argument(format!("autocast knows CPU and CUDA, not {other:?}"))),
        };
        let dtype = match kind {
            Kind::Float => 0,
            Kind::BFloat16 => 1,
            Kind::Half => 2,
            other => {
                return Err(Error::Argument(format!(
                    "autocast knows bfloat16, half and float, not {other:?}"
                )));
            }
        };
        let (mut previous_enabled, mut previous_dtype) = (0, 0);
        // SAFETY: plain values and two valid places to write to.
        check(unsafe {
            sys::torch_ext_autocast_enter(device, dtype, &mut previous_enabled, &mut previous_dtype)
        })?;
        Ok(Guard { device, previous_enabled, previous_dtype, _not_send: PhantomData })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: plain values.
        let left = check(unsafe {
            sys::torch_ext_autocast_leave(self.device, self.previous_enabled, self.previous_dtype)
        });
        debug_assert!(left.is_ok(), "{left:?}");
    }
}
