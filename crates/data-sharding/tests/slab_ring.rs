//! The slab's protocol under loom, which runs every order in which the threads may go: exactly one thread gets the slab
//! back, with everything that all of them wrote, and round after round no access is left without an order.

#![allow(clippy::unwrap_used, dead_code)] // All of it is test code, and not all of the file under test is used.

/// Where the file under test looks for it.
mod augment {
    pub(crate) use data_sharding::DeviceParameters;
}

#[path = "../src/pool/lent.rs"]
mod lent;
#[path = "../src/pool/slab.rs"]
mod slab;

mod memory {
    pub(crate) use data_sharding::Reader;
}

/// Loom's in place of the standard library's: `src/pool/sync.rs`.
mod sync {
    #![allow(unsafe_code)]

    use std::cell::UnsafeCell;
    use std::collections::TryReserveError;
    use std::ops::Range;
    use std::sync::Arc;

    pub(crate) use loom::sync::atomic::AtomicUsize;

    pub(crate) struct Cells<T> {
        values: Box<[UnsafeCell<T>]>,
        /// Tell loom of each access, also of those from outside the slab.
        pub(crate) watches: Arc<[loom::cell::UnsafeCell<()>]>,
    }

    // SAFETY: loom reports accesses that nothing keeps apart.
    unsafe impl<T: Send> Send for Cells<T> {}
    // SAFETY: as above.
    unsafe impl<T: Send + Sync> Sync for Cells<T> {}

    impl<T: Default> Cells<T> {
        pub(crate) fn new(count: usize) -> Result<Self, TryReserveError> {
            Ok(Cells {
                values: (0..count).map(|_| UnsafeCell::default()).collect(),
                watches: (0..count).map(|_| loom::cell::UnsafeCell::new(())).collect(),
            })
        }
    }

    impl<T> Cells<T> {
        pub(crate) fn len(&self) -> usize {
            self.values.len()
        }

        pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &[T] {
            self.watches[range.clone()].iter().for_each(|watch| watch.with(|_| ()));
            let values = &self.values[range];
            // SAFETY: the watches have found no writer.
            unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
        }

        #[allow(clippy::mut_from_ref)]
        pub(crate) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
            self.watches[range.clone()].iter().for_each(|watch| watch.with_mut(|_| ()));
            let values = &self.values[range];
            // SAFETY: the watches have found nobody else.
            unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(values.as_ptr()), values.len()) }
        }
    }
}

use std::sync::Arc;

use lent::Lent;
use loom::sync::{Condvar, Mutex};
use loom::thread;
use memory::Reader;
use slab::{Part, Slab};
use sync::Cells;

/// A channel as the pool's are to its threads.
struct Channel<T> {
    items: Mutex<Vec<T>>,
    arrived: Condvar,
}

impl<T> Channel<T> {
    fn new() -> Arc<Self> {
        Arc::new(Channel { items: Mutex::new(Vec::new()), arrived: Condvar::new() })
    }

    fn send(&self, item: T) {
        self.items.lock().unwrap().push(item);
        self.arrived.notify_one();
    }

    fn receive(&self) -> T {
        let mut items = self.items.lock().unwrap();
        loop {
            match items.pop() {
                Some(item) => return item,
                None => items = self.arrived.wait(items).unwrap(),
            }
        }
    }
}

fn fill(part: &mut Part, value: u8) {
    for slot in part.slots_mut() {
        slot.pixels.fill(value);
        *slot.label = value.into();
    }
}

#[test]
fn the_last_of_the_threads_gets_the_slab_with_all_that_was_written() {
    loom::model(|| {
        let mut parts = Slab::new(2, Cells::new(2).unwrap()).unwrap().split(2, 1, 1);
        let (mut first, mut second) = (parts.next().unwrap(), parts.next().unwrap());
        drop(parts);
        let other = thread::spawn(move || {
            fill(&mut first, 1);
            first.join()
        });
        fill(&mut second, 2);
        let mine = second.join();
        let theirs = other.join().unwrap();
        let slab = match (mine, theirs) {
            (Some(slab), None) | (None, Some(slab)) => slab,
            (mine, theirs) => panic!("slabs for {} and {}", mine.is_some(), theirs.is_some()),
        };
        assert_eq!((slab.pixels(2), slab.labels(2)), (&[1, 2][..], &[1, 2][..]));
    });
}

#[test]
fn a_slab_goes_round_and_round_between_dispatcher_workers_and_consumer() {
    const ROUNDS: u8 = 2;
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let finished = Channel::new();
        let tasks = [Channel::new(), Channel::new()];
        let workers = tasks.clone().map(|tasks| {
            let finished = Arc::clone(&finished);
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    let mut part: Part = tasks.receive();
                    fill(&mut part, round + 1);
                    if let Some(slab) = part.join() {
                        finished.send(slab);
                    }
                }
            })
        });
        let mut slab = Slab::new(2, Cells::new(2).unwrap()).unwrap();
        for round in 0..ROUNDS {
            for (part, tasks) in slab.split(2, 1, 1).zip(&tasks) {
                tasks.send(part);
            }
            slab = finished.receive();
            assert_eq!((slab.pixels(2), slab.labels(2)), (&[round + 1; 2][..], &[(round + 1).into(); 2][..]));
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

/// A copy to a device, in a thread of its own.
struct Copy(Arc<(Mutex<bool>, Condvar)>);

impl Reader for Copy {
    fn wait(&mut self) -> Result<(), String> {
        let (through, changed) = &*self.0;
        let mut through = through.lock().unwrap();
        while !*through {
            through = changed.wait(through).unwrap();
        }
        Ok(())
    }
}

#[test]
fn a_slab_that_is_still_read_is_filled_again_only_when_the_reader_is_through() {
    loom::model(|| {
        let pixels = Cells::new(1).unwrap();
        let device = Arc::clone(&pixels.watches);
        let mut parts = Slab::new(1, pixels).unwrap().split(1, 1, 1);
        let mut part = parts.next().unwrap();
        drop(parts);
        fill(&mut part, 1);
        let slab = part.join().unwrap();
        let state = Arc::new((Mutex::new(false), Condvar::new()));
        let copy = {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                device[0].with(|_| ());
                *state.0.lock().unwrap() = true;
                state.1.notify_one();
            })
        };
        // The consumer has dropped its batch; the dispatcher gets it.
        let lent = Lent::new(slab, vec![Box::new(Copy(state))]);
        let again = thread::spawn(move || {
            let mut parts = lent.take_back().unwrap().split(1, 1, 1);
            fill(&mut parts.next().unwrap(), 2);
        });
        copy.join().unwrap();
        again.join().unwrap();
    });
}
