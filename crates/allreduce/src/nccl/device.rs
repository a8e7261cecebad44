//! What the exchange needs, beside NCCL, of the device that the values lie on: a few operations on its memory. A crate
//! without libtorch has no kernels for a GPU, so whoever has them implements [`ExchangeDevice`]. For host memory it is
//! implemented here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::finite;
use crate::ordered::{BLOCK, add_rows_pairwise};
use crate::{CommError, Wire};

/// A failure of the device that the values lie on.
pub(crate) fn device_failed(sentence: String) -> CommError {
    CommError::Nccl(format!("the device of the exchange failed: {sentence}"))
}

/// A point of a device's stream, between operations.
pub trait Moment: Send {
    /// Whether all that was on the stream before is through. Never waits.
    ///
    /// # Errors
    /// When something on the stream failed.
    fn has_come(&mut self) -> Result<bool, String>;

    /// Lets the calling thread's own stream wait for it; the host goes on.
    ///
    /// # Errors
    /// When the device fails.
    fn hold_caller(&mut self) -> Result<(), String>;
}

/// A device's part in an exchange over NCCL. Operations are queued, in order, on one stream, and so are NCCL's; a
/// failure is a sentence.
///
/// # Safety
/// Operations do what they say; a [`Moment`] has come only when all operations before it, and all that was on the stream
/// before, are through.
pub unsafe trait ExchangeDevice: Send {
    /// The `cudaStream_t`, null where there are no streams. This thread's current device is the stream's from now on.
    ///
    /// # Errors
    /// When the device is gone.
    fn stream(&mut self) -> Result<*mut c_void, String>;

    /// Writes `values`, rounded as they travel, to `rounded`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// Both are memory of the device for `len` elements until the stream has passed the operation.
    unsafe fn round(
        &mut self,
        values: *const f32,
        rounded: *mut c_void,
        len: usize,
        wire: Wire,
    ) -> Result<(), String>;

    /// Writes what has travelled to `values`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// As [`ExchangeDevice::round`].
    unsafe fn widen(
        &mut self,
        rounded: *const c_void,
        values: *mut f32,
        len: usize,
        wire: Wire,
    ) -> Result<(), String>;

    /// Replaces the first of `count` rows by the sum of all, formed in fp32: neighbours are added, then neighbouring
    /// sums, and so on; a last one without a neighbour moves up as it is. Rows begin `stride` elements apart, and
    /// their first `len` elements count; the others may be overwritten.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// The rows are memory of the device until the stream has passed the operation.
    unsafe fn sum_rows(
        &mut self,
        rows: *mut c_void,
        count: usize,
        stride: usize,
        len: usize,
        wire: Wire,
    ) -> Result<(), String>;

    /// Multiplies values by `factor`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// As [`ExchangeDevice::round`].
    unsafe fn scale(&mut self, values: *mut f32, len: usize, factor: f32) -> Result<(), String>;

    /// Adds one to `count` if a value is infinite or NaN. It may be one of the values.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// As [`ExchangeDevice::round`], also for `count`.
    unsafe fn count_not_finite(
        &mut self,
        values: *const f32,
        len: usize,
        count: *mut f32,
    ) -> Result<(), String>;

    /// A value, for the host, which waits for the stream.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// It is memory of the device.
    unsafe fn read(&mut self, value: *const f32) -> Result<f32, String>;

    /// The end of what is on the stream now.
    ///
    /// # Errors
    /// When the device fails.
    fn mark(&mut self) -> Result<Box<dyn Moment>, String>;
}

/// Of memory without streams: everything is done when it returns.
#[derive(Clone, Copy, Debug)]
pub struct Now;

impl Moment for Now {
    fn has_come(&mut self) -> Result<bool, String> {
        Ok(true)
    }

    fn hold_caller(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Host memory, without streams: everything is done at once.
#[derive(Debug, Default)]
pub(crate) struct HostMemory {
    /// A block of each row, in fp32.
    block: Vec<f32>,
}

// SAFETY: each operation is complete when it returns.
unsafe impl ExchangeDevice for HostMemory {
    fn stream(&mut self) -> Result<*mut c_void, String> {
        Ok(std::ptr::null_mut())
    }

    unsafe fn round(
        &mut self,
        values: *const f32,
        rounded: *mut c_void,
        len: usize,
        wire: Wire,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe {
            let values = std::slice::from_raw_parts(values, len);
            match wire {
                Wire::Fp32 => slice(rounded, len).copy_from_slice(values),
                Wire::Bf16 => slice::<bf16>(rounded, len).convert_from_f32_slice(values),
                Wire::Fp16 => slice::<f16>(rounded, len).convert_from_f32_slice(values),
            }
        }
        Ok(())
    }

    unsafe fn widen(
        &mut self,
        rounded: *const c_void,
        values: *mut f32,
        len: usize,
        wire: Wire,
    ) -> Result<(), String> {
        let rounded = rounded.cast_mut();
        // SAFETY: the caller's promise.
        unsafe {
            let values = std::slice::from_raw_parts_mut(values, len);
            match wire {
                Wire::Fp32 => values.copy_from_slice(slice(rounded, len)),
                Wire::Bf16 => slice::<bf16>(rounded, len).convert_to_f32_slice(values),
                Wire::Fp16 => slice::<f16>(rounded, len).convert_to_f32_slice(values),
            }
        }
        Ok(())
    }

    unsafe fn sum_rows(
        &mut self,
        rows: *mut c_void,
        count: usize,
        stride: usize,
        len: usize,
        wire: Wire,
    ) -> Result<(), String> {
        for begin in (0..len).step_by(BLOCK) {
            let columns = begin..(begin + BLOCK).min(len);
            // SAFETY: the caller's promise.
            unsafe {
                match wire {
                    Wire::Fp32 => add_rows_pairwise(slice(rows, count * stride), count, stride, columns),
                    Wire::Bf16 => {
                        sum_block(
                            &mut self.block,
                            slice::<bf16>(rows, count * stride),
                            count,
                            stride,
                            columns,
                        );
                    }
                    Wire::Fp16 => {
                        sum_block(
                            &mut self.block,
                            slice::<f16>(rows, count * stride),
                            count,
                            stride,
                            columns,
                        );
                    }
                }
            }
        }
        Ok(())
    }

    unsafe fn scale(&mut self, values: *mut f32, len: usize, factor: f32) -> Result<(), String> {
        // SAFETY: the caller's promise.
        let _ = finite::scale(unsafe { std::slice::from_raw_parts_mut(values, len) }, factor);
        Ok(())
    }

    unsafe fn count_not_finite(
        &mut self,
        values: *const f32,
        len: usize,
        count: *mut f32,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise; the slice is gone when the count changes.
        unsafe {
            if !finite::all_finite(std::slice::from_raw_parts(values, len)) {
                *count += 1.0;
            }
        }
        Ok(())
    }

    unsafe fn read(&mut self, value: *const f32) -> Result<f32, String> {
        // SAFETY: the caller's promise.
        Ok(unsafe { *value })
    }

    fn mark(&mut self) -> Result<Box<dyn Moment>, String> {
        Ok(Box::new(Now))
    }
}

/// Sums some columns of 16-bit rows in fp32, and rounds the sum.
fn sum_block<H>(block: &mut Vec<f32>, rows: &mut [H], count: usize, stride: usize, columns: Range<usize>)
where
    [H]: HalfFloatSliceExt,
{
    block.resize(block.len().max(count * BLOCK), 0.0);
    for (row, block) in rows.chunks(stride).zip(block.chunks_mut(BLOCK)) {
        row[columns.clone()].convert_to_f32_slice(&mut block[..columns.len()]);
    }
    add_rows_pairwise(block, count, BLOCK, 0..columns.len());
    let width = columns.len();
    rows[columns].convert_from_f32_slice(&block[..width]);
}

/// # Safety
/// The memory holds `len` initialised elements, to which nobody else has access meanwhile.
unsafe fn slice<'a, T>(start: *mut c_void, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }
}
