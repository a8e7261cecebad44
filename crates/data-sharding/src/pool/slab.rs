//! The memory of a batch: one slot a sample, filled by several threads at once, each its own part. The only
//! unsafe code of the crate, under an interface in which two threads can never reach the same slot.
//!
//! A [`Slab`] owns its memory alone and can be read. [`Slab::split`] turns it into [`Part`]s, which can be
//! written and sent to threads; the thread that hands in the last part, by [`Part::join`], gets the slab
//! back. No part exists while a slab does, and the other way round.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::Arc;

use crate::augment::DeviceParameters;

/// Memory for the images of a batch and what belongs to each.
pub(crate) struct Slab(Memory);

struct Memory {
    pixels: Box<[UnsafeCell<u8>]>,
    labels: Box<[UnsafeCell<i64>]>,
    device: Box<[UnsafeCell<DeviceParameters>]>,
}

/// One sample's place.
pub(crate) struct Slot<'a> {
    pub(crate) pixels: &'a mut [u8],
    pub(crate) label: &'a mut i64,
    pub(crate) device: &'a mut DeviceParameters,
}

// SAFETY: a shared `Memory` is reached only through parts, whose slots are disjoint (`Slab::split` is the
// only maker of parts, and parts cannot be cloned), or through a `Slab`, which hands out only shared
// references and exists only while there is no part. So no two threads ever access the same cell unless both
// read.
unsafe impl Sync for Memory {}

impl Slab {
    /// With room for `slots` images of up to `image_bytes`.
    pub(crate) fn new(slots: usize, image_bytes: usize) -> Result<Self, TryReserveError> {
        let pixels = cells(slots.saturating_mul(image_bytes))?;
        Ok(Slab(Memory { pixels, labels: cells(slots)?, device: cells(slots)? }))
    }

    /// The first `len` bytes of pixels.
    pub(crate) fn pixels(&self, len: usize) -> &[u8] {
        let cells = &self.0.pixels[..len];
        // SAFETY: UnsafeCell<T> has the layout of T, and nobody writes while `self`, which owns the memory,
        // exists.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Labels of the first `len` slots.
    pub(crate) fn labels(&self, len: usize) -> &[i64] {
        let cells = &self.0.labels[..len];
        // SAFETY: as in `pixels`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Parameters of the first `len` slots for the device.
    pub(crate) fn device(&self, len: usize) -> &[DeviceParameters] {
        let cells = &self.0.device[..len];
        // SAFETY: as in `pixels`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Cuts the first `len` slots, at least one, into parts of `part` slots, the last perhaps smaller. Images
    /// have `image_bytes`, at least one, this time.
    pub(crate) fn split(self, len: usize, part: usize, image_bytes: usize) -> impl Iterator<Item = Part> {
        let slots = self.0.labels.len();
        assert!(0 < part && 0 < len && len <= slots, "a slab is split within its slots");
        assert!(
            0 < image_bytes && len.saturating_mul(image_bytes) <= self.0.pixels.len(),
            "a slab is split within its bytes"
        );
        let mut memory = Some(Arc::new(self.0));
        (0..len).step_by(part).filter_map(move |begin| {
            let end = len.min(begin + part);
            // The last part takes the iterator's own reference, so that parts alone keep the memory.
            let memory = if end == len { memory.take() } else { memory.clone() };
            memory.map(|memory| Part { memory, slots: begin..end, image_bytes })
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
        let pixels = &self.memory.pixels[start * self.image_bytes..end * self.image_bytes];
        let labels = &self.memory.labels[start..end];
        let device = &self.memory.device[start..end];
        // SAFETY: the slots of a part belong to it alone (see `Memory`; all parts of a slab have the same
        // `image_bytes`, so that their bytes are disjoint too), and `&mut self` keeps it from being used twice
        // at a time; UnsafeCell<T> has the layout of T and lets a shared reference's memory be written.
        let (pixels, labels, device) = unsafe {
            (
                std::slice::from_raw_parts_mut(UnsafeCell::raw_get(pixels.as_ptr()), pixels.len()),
                std::slice::from_raw_parts_mut(UnsafeCell::raw_get(labels.as_ptr()), labels.len()),
                std::slice::from_raw_parts_mut(UnsafeCell::raw_get(device.as_ptr()), device.len()),
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
        Arc::into_inner(self.memory).map(Slab)
    }
}

fn cells<T: Default>(count: usize) -> Result<Box<[UnsafeCell<T>]>, TryReserveError> {
    let mut cells = Vec::new();
    cells.try_reserve_exact(count)?;
    cells.resize_with(count, UnsafeCell::default);
    Ok(cells.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_filled_by_threads_come_back_as_one_slab() {
        let mut slab = Slab::new(7, 3).unwrap();
        for round in 0..50_u8 {
            let mut joined: Vec<Slab> = std::thread::scope(|scope| {
                let threads: Vec<_> = slab
                    .split(7, 2, 3)
                    .map(|mut part| {
                        scope.spawn(move || {
                            for (index, slot) in part.slots().zip(part.slots_mut()) {
                                slot.pixels.fill(round + index as u8);
                                *slot.label = index as i64;
                                slot.device.erase[0] = index as i32;
                            }
                            part.join()
                        })
                    })
                    .collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(joined.len(), 1);
            slab = joined.remove(0);
            let expected: Vec<u8> = (0..7).flat_map(|slot| [round + slot; 3]).collect();
            assert_eq!(slab.pixels(21), expected);
            assert_eq!(slab.labels(7), [0, 1, 2, 3, 4, 5, 6]);
            assert_eq!(slab.device(7).iter().map(|d| d.erase[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
            assert_eq!((slab.pixels(6).len(), slab.labels(2).len()), (6, 2));
        }
    }

    #[test]
    fn parts_cover_the_asked_slots_once() {
        for (len, part) in [(1, 1), (6, 2), (7, 3), (7, 9)] {
            let slots: Vec<usize> =
                Slab::new(9, 1).unwrap().split(len, part, 1).flat_map(|part| part.slots()).collect();
            assert_eq!(slots, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn impossible_sizes_are_an_error() {
        assert!(Slab::new(usize::MAX, 3072).is_err());
    }
}
