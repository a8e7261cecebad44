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

/// Memory for the images and labels of a batch.
pub(crate) struct Slab(Memory);

struct Memory {
    image_bytes: usize,
    pixels: Box<[UnsafeCell<u8>]>,
    labels: Box<[UnsafeCell<i64>]>,
}

// SAFETY: a shared `Memory` is reached only through parts, whose slots are disjoint (`Slab::split` is the
// only maker of parts, and parts cannot be cloned), or through a `Slab`, which hands out only shared
// references and exists only while there is no part. So no two threads ever access the same cell unless both
// read.
unsafe impl Sync for Memory {}

impl Slab {
    /// With room for `slots` images.
    pub(crate) fn new(slots: usize, image_bytes: usize) -> Result<Self, TryReserveError> {
        let pixels = cells(slots.saturating_mul(image_bytes))?;
        Ok(Slab(Memory { image_bytes, pixels, labels: cells(slots)? }))
    }

    /// Pixels of the first `len` slots.
    pub(crate) fn images(&self, len: usize) -> &[u8] {
        let cells = &self.0.pixels[..len * self.0.image_bytes];
        // SAFETY: UnsafeCell<u8> has the layout of u8, and nobody writes while `self`, which owns the memory,
        // exists.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Labels of the first `len` slots.
    pub(crate) fn labels(&self, len: usize) -> &[i64] {
        let cells = &self.0.labels[..len];
        // SAFETY: as in `images`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Cuts the first `len` slots, at least one, into parts of `part` slots, the last perhaps smaller.
    pub(crate) fn split(self, len: usize, part: usize) -> impl Iterator<Item = Part> {
        assert!(0 < part && 0 < len && len <= self.0.labels.len(), "a slab is split within its slots");
        let mut memory = Some(Arc::new(self.0));
        (0..len).step_by(part).filter_map(move |begin| {
            let end = len.min(begin + part);
            // The last part takes the iterator's own reference, so that parts alone keep the memory.
            let memory = if end == len { memory.take() } else { memory.clone() };
            memory.map(|memory| Part { memory, slots: begin..end })
        })
    }
}

/// Some of a slab's slots, for one thread to fill.
pub(crate) struct Part {
    memory: Arc<Memory>,
    slots: Range<usize>,
}

impl Part {
    /// Which slots of the slab these are.
    pub(crate) fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    /// Pixels and label of each slot, in order.
    pub(crate) fn slots_mut(&mut self) -> impl Iterator<Item = (&mut [u8], &mut i64)> {
        let image_bytes = self.memory.image_bytes;
        let labels = &self.memory.labels[self.slots.clone()];
        let pixels = &self.memory.pixels[self.slots.start * image_bytes..self.slots.end * image_bytes];
        // SAFETY: the slots of a part belong to it alone (see `Memory`), and `&mut self` keeps it from being
        // used twice at a time; UnsafeCell<T> has the layout of T and lets a shared reference's memory be
        // written.
        let (pixels, labels) = unsafe {
            (
                std::slice::from_raw_parts_mut(UnsafeCell::raw_get(pixels.as_ptr()), pixels.len()),
                std::slice::from_raw_parts_mut(UnsafeCell::raw_get(labels.as_ptr()), labels.len()),
            )
        };
        pixels.chunks_exact_mut(image_bytes).zip(labels)
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
                    .split(7, 2)
                    .map(|mut part| {
                        scope.spawn(move || {
                            for (slot, (pixels, label)) in part.slots().zip(part.slots_mut()) {
                                pixels.fill(round + slot as u8);
                                *label = slot as i64;
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
            assert_eq!(slab.images(7), expected);
            assert_eq!(slab.labels(7), [0, 1, 2, 3, 4, 5, 6]);
            assert_eq!((slab.images(2).len(), slab.labels(2).len()), (6, 2));
        }
    }

    #[test]
    fn parts_cover_the_asked_slots_once() {
        for (len, part) in [(1, 1), (6, 2), (7, 3), (7, 9)] {
            let slots: Vec<usize> =
                Slab::new(9, 1).unwrap().split(len, part).flat_map(|part| part.slots()).collect();
            assert_eq!(slots, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn impossible_sizes_are_an_error() {
        assert!(Slab::new(usize::MAX, 3072).is_err());
    }
}
