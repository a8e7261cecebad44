//! The atomic and the memory that a slab is made of, so that a test can put loom's in their place.

#![allow(unsafe_code)]

use std::any::Any;
use std::collections::TryReserveError;
use std::ops::Range;
use std::ptr::NonNull;

pub(super) use std::sync::atomic::AtomicUsize;

use super::memory::BatchMemory;

/// Values that several threads reach, each its own.
pub(super) struct Cells<T> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the memory; never looked at.
    _owner: Box<dyn Any + Send>,
}

// SAFETY: values are reached only by the unsafe functions below, whose callers keep threads apart; the owner is only
// dropped, and can be sent.
unsafe impl<T: Send> Send for Cells<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Cells<T> {}

impl<T: Default + Send + 'static> Cells<T> {
    pub(super) fn new(count: usize) -> Result<Self, TryReserveError> {
        let mut values: Vec<T> = Vec::new();
        values.try_reserve_exact(count)?;
        values.resize_with(count, T::default);
        let start = NonNull::new(values.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Ok(Cells { start, len: count, _owner: Box::new(values) })
    }
}

impl Cells<u8> {
    pub(super) fn of_memory(memory: BatchMemory) -> Self {
        let (start, len, owner) = memory.into_parts();
        Cells { start, len, _owner: owner }
    }
}

impl<T> Cells<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Some of the values.
    ///
    /// # Safety
    /// Nobody writes any of them while the slice lives, and all writes before happen before.
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        let (start, len) = self.place(range);
        // SAFETY: within the memory, which holds initialised values, and the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Some of the values.
    ///
    /// # Safety
    /// Nobody else reaches any of them while the slice lives, and all that did before happens before.
    #[allow(clippy::mut_from_ref, reason = "what cells are for")]
    pub(super) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        let (start, len) = self.place(range);
        // SAFETY: within the memory, which holds initialised values and is nobody else's, and the caller keeps all
        // others away.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Where some of the values begin, and how many there are.
    fn place(&self, range: Range<usize>) -> (*mut T, usize) {
        assert!(range.start <= range.end && range.end <= self.len, "values are reached within their memory");
        // SAFETY: the range lies within the memory.
        (unsafe { self.start.as_ptr().add(range.start) }, range.len())
    }
}
