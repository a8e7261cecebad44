//! The atomic and the memory that a slab is made of, so that a test can put loom's in their place.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::TryReserveError;
use std::ops::Range;

pub(super) use std::sync::atomic::AtomicUsize;

/// Values that several threads reach, each its own.
pub(super) struct Cells<T>(Box<[UnsafeCell<T>]>);

// SAFETY: values are reached only by the unsafe functions below, whose callers keep threads apart.
unsafe impl<T: Send + Sync> Sync for Cells<T> {}

impl<T: Default> Cells<T> {
    pub(super) fn new(count: usize) -> Result<Self, TryReserveError> {
        let mut cells = Vec::new();
        cells.try_reserve_exact(count)?;
        cells.resize_with(count, UnsafeCell::default);
        Ok(Cells(cells.into_boxed_slice()))
    }
}

impl<T> Cells<T> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Some of the values.
    ///
    /// # Safety
    /// Nobody writes any of them while the slice lives, and all writes before happen before.
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        let cells = &self.0[range];
        // SAFETY: UnsafeCell<T> has the layout of T, and the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Some of the values.
    ///
    /// # Safety
    /// Nobody else reaches any of them while the slice lives, and all that did before happens before.
    #[allow(clippy::mut_from_ref, reason = "what cells are for")]
    pub(super) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.0[range];
        // SAFETY: UnsafeCell<T> has the layout of T and lets a shared reference's memory be written, and the caller
        // keeps all others away.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}
