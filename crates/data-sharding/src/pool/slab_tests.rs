//! The slab under real threads, and on its way back.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lent::Lent;
use super::memory::{BatchAllocator, BatchMemory, HeapMemory, Reader};
use super::slab::Slab;
use super::sync::Cells;

fn slab(slots: usize, bytes: usize) -> Slab {
    Slab::new(slots, Cells::of_memory(HeapMemory.allocate(bytes).unwrap())).unwrap()
}

#[test]
fn parts_filled_by_threads_come_back_as_one_slab() {
    let mut slab = slab(7, 21);
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
        let slots: Vec<usize> = slab(9, 9).split(len, part, 1).flat_map(|part| part.slots()).collect();
        assert_eq!(slots, (0..len).collect::<Vec<_>>());
    }
}

#[test]
fn impossible_sizes_are_an_error() {
    assert!(Slab::new(usize::MAX, Cells::new(1).unwrap()).is_err());
    assert!(HeapMemory.allocate(usize::MAX).is_err());
}

/// Counts what becomes of it.
struct Owner(Arc<AtomicUsize>, Vec<u8>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Reads(Result<(), String>, Arc<AtomicUsize>);

impl Reader for Reads {
    fn wait(&mut self) -> Result<(), String> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.clone()
    }
}

#[test]
fn memory_is_freed_behind_its_readers_and_never_while_one_may_still_read() {
    let lost = || Err("the device is gone".to_owned());
    for (outcomes, freed) in [(vec![], 1), (vec![Ok(()), Ok(())], 1), (vec![Ok(()), lost(), Ok(())], 0)] {
        for take_back in [false, true] {
            let (frees, waits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let mut owner = Owner(Arc::clone(&frees), vec![0; 4]);
            let start = NonNull::new(owner.1.as_mut_ptr()).unwrap();
            // SAFETY: the bytes of a vector that nobody else touches.
            let pixels = Cells::of_memory(unsafe { BatchMemory::new(start, 4, owner) });
            let reader = |outcome: &Result<(), String>| -> Box<dyn Reader> {
                Box::new(Reads(outcome.clone(), Arc::clone(&waits)))
            };
            let lent = Lent::new(Slab::new(4, pixels).unwrap(), outcomes.iter().map(reader).collect());
            if take_back {
                assert_eq!(lent.take_back().is_ok(), freed == 1);
            } else {
                drop(lent);
            }
            assert_eq!(frees.load(Ordering::SeqCst), freed, "{outcomes:?}");
            assert_eq!(waits.load(Ordering::SeqCst), outcomes.len());
        }
    }
}
