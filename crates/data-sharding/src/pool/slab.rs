//! The memory of a batch: one slot a sample, filled by several threads at once, each its own part, under an interface
//! in which two threads can never reach the same slot.
//!
//! A [`Slab`] can be read. [`Slab::split`] turns it into [`Part`]s, which can be written and sent to threads; the thread
//! that hands in the last part, by [`Part::join`], gets the slab back. No part exists while a slab does, and the other
//! way round. `tests/slab_ring.rs` runs this file under loom, which tries every order in which threads may go.

#![allow(unsafe_code)]

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sync::{AtomicUsize, Cells};
use crate::augment::DeviceParameters;

/// Memory for the images of a batch and what belongs to each. Nobody else reaches it.
pub(crate) struct Slab(Arc<Memory>);

struct Memory {
    /// Parts that have not been handed in; 0 while there is a slab.
    parts: AtomicUsize,
    pixels: Cells<u8>,
    labels: Cells<i64>,
    device: Cells<DeviceParameters>,
}

/// One sample's place.
pub(crate) struct Slot<'a> {
    pub(crate) pixels: &'a mut [u8],
    pub(crate) label: &'a mut i64,
    pub(crate) device: &'a mut DeviceParameters,
}

impl Slab {
    /// With room for `slots` images, whose pixels lie in `pixels`.
    pub(crate) fn new(slots: usize, pixels: Cells<u8>) -> Result<Self, TryReserveError> {
        Ok(Slab(Arc::new(Memory {
            parts: AtomicUsize::new(0),
            pixels,
            labels: Cells::new(slots)?,
            device: Cells::new(slots)?,
        })))
    }

    /// The first `len` bytes of pixels.
    pub(crate) fn pixels(&self, len: usize) -> &[u8] {
        // SAFETY: all parts have been handed in, and `Part::join` orders their writes before the slab. New ones come
        // from `split` alone, which takes `self`, so that nobody writes while it is borrowed.
        unsafe { self.0.pixels.slice(0..len) }
    }

    /// Labels of the first `len` slots.
    pub(crate) fn labels(&self, len: usize) -> &[i64] {
        // SAFETY: as in `pixels`.
        unsafe { self.0.labels.slice(0..len) }
    }

    /// Parameters of the first `len` slots for the device.
    pub(crate) fn device(&self, len: usize) -> &[DeviceParameters] {
        // SAFETY: as in `pixels`.
        unsafe { self.0.device.slice(0..len) }
    }

    /// Cuts the first `len` slots, at least one, into parts of `part` slots, the last perhaps smaller. Images
    /// have `image_bytes`, at least one, this time. If a part, or the rest of the iterator, is dropped, the slab is
    /// gone.
    pub(crate) fn split(self, len: usize, part: usize, image_bytes: usize) -> impl Iterator<Item = Part> {
        let memory = self.0;
        assert!(0 < part && 0 < len && len <= memory.labels.len(), "a slab is split within its slots");
        assert!(
            0 < image_bytes && len.saturating_mul(image_bytes) <= memory.pixels.len(),
            "a slab is split within its bytes"
        );
        // The parts reach other threads by ways that order this before whatever they do.
        memory.parts.store(len.div_ceil(part), Ordering::Relaxed);
        (0..len).step_by(part).map(move |begin| Part {
            memory: Arc::clone(&memory),
            slots: begin..len.min(begin + part),
            image_bytes,
        })
    }
}

/// Some of a slab's slots, for one thread to fill.
pub(crate) struct Part {
    memory: Arc<Memory>,
    slots: Range<usize>,
    image_bytes: usize,
}

impl Part {
    /// Which slots of the slab these are.
    pub(crate) fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    /// Each slot, in order.
    pub(crate) fn slots_mut(&mut self) -> impl Iterator<Item = Slot<'_>> {
        let Range { start, end } = self.slots;
        // SAFETY: the slots of a part belong to it alone (`Slab::split` is the only maker of parts, makes them disjoint
        // and of equal `image_bytes`, so that their bytes are disjoint too, and they cannot be cloned), there is no
        // slab, and `&mut self` keeps the part from being used twice at a time.
        let (pixels, labels, device) = unsafe {
            (
                self.memory.pixels.slice_mut(start * self.image_bytes..end * self.image_bytes),
                self.memory.labels.slice_mut(start..end),
                self.memory.device.slice_mut(start..end),
            )
        };
        pixels
            .chunks_exact_mut(self.image_bytes)
            .zip(labels)
            .zip(device)
            .map(|((pixels, label), device)| Slot { pixels, label, device })
    }

    /// Gives the part back. Exactly one caller, the last one, gets the slab with everything that was written.
    pub(crate) fn join(self) -> Option<Slab> {
        // Releases this part's writes and, in the last one, acquires all others'.
        let last = self.memory.parts.fetch_sub(1, Ordering::AcqRel) == 1;
        last.then_some(Slab(self.memory))
    }
}
