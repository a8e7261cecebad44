//! The memory of a pool's batches: whose it is, when it is given back, and that nobody writes what is still read.

#![allow(clippy::unwrap_used, unsafe_code)] // All of it is test code.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use data_sharding::{
    Augmentation, Batch, BatchAllocator, BatchMemory, DataError, ImageShape, Labelled, OnBadSample, Pool,
    PoolOptions, Reader, SampleKey, Source,
};

const SHAPE: ImageShape = ImageShape { height: 4, width: 4, channels: 1 };
const BATCH: u32 = 2;

/// Every byte of a sample is its number.
struct Numbers;

impl Labelled for Numbers {
    fn name(&self) -> &str {
        "numbers"
    }

    fn len(&self) -> usize {
        200
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> &str {
        "0"
    }

    fn label(&self, sample: usize) -> u32 {
        sample as u32
    }
}

impl Source for Numbers {
    fn image(&self) -> ImageShape {
        SHAPE
    }

    fn decode(&self, sample: usize, pixels: &mut [u8]) -> Result<(), DataError> {
        pixels.fill(sample as u8);
        Ok(())
    }
}

/// Memory of its own that knows how much of it is out.
#[derive(Default)]
struct Counting {
    given: Mutex<Vec<(usize, usize)>>,
    out: Arc<AtomicUsize>,
    /// Refuses from this block on.
    most: Option<usize>,
}

struct Block(Vec<u8>, Arc<AtomicUsize>);

impl Drop for Block {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BatchAllocator for Counting {
    fn allocate(&self, bytes: usize) -> Result<BatchMemory, String> {
        let mut given = self.given.lock().unwrap();
        if self.most.is_some_and(|most| given.len() >= most) {
            return Err("no page can be locked any more".into());
        }
        let mut block = Block(vec![0; bytes], Arc::clone(&self.out));
        self.out.fetch_add(1, Ordering::SeqCst);
        let start = NonNull::new(block.0.as_mut_ptr()).unwrap();
        given.push((start.as_ptr() as usize, bytes));
        // SAFETY: the bytes of a vector that nobody else touches.
        Ok(unsafe { BatchMemory::new(start, bytes, block) })
    }
}

fn start(allocator: &dyn BatchAllocator, batches: u32, prefetch: usize) -> Result<Pool, DataError> {
    let key = |sample| SampleKey { sample, epoch: 0, repetition: 0 };
    let requests = (0..batches).map(move |batch| (batch * BATCH..(batch + 1) * BATCH).map(key).collect());
    let options =
        PoolOptions { workers: 2, batch_size: BATCH as usize, prefetch, on_bad_sample: OnBadSample::Error };
    let source: Arc<dyn Source> = Arc::new(Numbers);
    Pool::start_in(allocator, source, Augmentation::none(), Box::new(requests), options)
}

/// Waits for what another thread does, a few seconds at most.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    (0..500).find_map(|_| {
        thread::sleep(Duration::from_millis(10));
        look()
    })
}

#[test]
fn all_batches_lie_in_the_allocators_memory_which_is_given_back_with_the_last_of_them() {
    let allocator = Counting::default();
    let mut pool = start(&allocator, 50, 3).unwrap();
    let given = allocator.given.lock().unwrap().clone();
    assert_eq!(given.len(), 3);
    assert!(given.iter().all(|(_, bytes)| *bytes == BATCH as usize * SHAPE.bytes()));
    for batch in pool.by_ref().take(49) {
        let start = batch.unwrap().images().as_ptr() as usize;
        assert!(given.iter().any(|(block, _)| *block == start), "a batch outside the allocator's memory");
    }
    let last = pool.next().unwrap().unwrap();
    drop(pool);
    // Others may lie in the channel through which this one is to come back.
    assert!(allocator.out.load(Ordering::SeqCst) >= 1, "the batch that is still held");
    drop(last);
    assert_eq!(allocator.out.load(Ordering::SeqCst), 0);
}

#[test]
fn an_allocator_that_has_no_more_is_quoted_and_gets_everything_back() {
    let allocator = Counting { most: Some(2), ..Counting::default() };
    let error = start(&allocator, 1, 3).err().unwrap().to_string();
    assert!(error.contains("no page can be locked any more") && error.contains("3 batch buffers"), "{error}");
    assert_eq!(allocator.out.load(Ordering::SeqCst), 0);
}

/// A copy that is under way until it is let go.
#[derive(Clone, Default)]
struct Copy(Arc<(Mutex<Outcome>, Condvar)>);

/// How the copy ended; `None` while it is under way.
type Outcome = Option<Result<(), String>>;

impl Copy {
    fn end(&self, outcome: Result<(), String>) {
        *self.0.0.lock().unwrap() = Some(outcome);
        self.0.1.notify_all();
    }
}

impl Reader for Copy {
    fn wait(&mut self) -> Result<(), String> {
        let outcome = self.0.1.wait_while(self.0.0.lock().unwrap(), |outcome| outcome.is_none()).unwrap();
        outcome.clone().unwrap()
    }
}

/// The first batch, dropped while a copy of it is under way, and where its bytes are.
fn lend(pool: &mut Pool) -> (Copy, *const u8) {
    let mut batch: Batch = pool.next().unwrap().unwrap();
    let copy = Copy::default();
    batch.read_by(Box::new(copy.clone()));
    (copy, batch.images().as_ptr())
}

#[test]
fn a_batch_that_is_still_read_is_not_filled_again_and_nobody_waits_for_it_who_has_another() {
    let allocator = Counting::default();
    let mut pool = start(&allocator, 4, 2).unwrap();
    let (copy, bytes) = lend(&mut pool);
    // The other buffer.
    assert_eq!(pool.next().unwrap().unwrap().labels(), [2, 3]);
    thread::sleep(Duration::from_millis(50));
    // SAFETY: memory of the pool that must not be written, for a copy still reads it.
    assert_eq!(unsafe { *bytes }, 0, "the bytes of sample 0");
    copy.end(Ok(()));
    let rest: Vec<Vec<i64>> = pool.map(|batch| batch.unwrap().labels().to_vec()).collect();
    assert_eq!(rest, [[4, 5], [6, 7]]);
    assert_eq!(allocator.out.load(Ordering::SeqCst), 0);
}

#[test]
fn memory_is_not_given_back_while_it_is_read_even_when_the_pool_has_ended() {
    let allocator = Counting::default();
    let mut pool = start(&allocator, 9, 1).unwrap();
    let (copy, _) = lend(&mut pool);
    let out = Arc::clone(&allocator.out);
    let ending = thread::spawn(move || drop(pool));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(out.load(Ordering::SeqCst), 1);
    copy.end(Ok(()));
    ending.join().unwrap();
    assert_eq!(out.load(Ordering::SeqCst), 0);
}

#[test]
fn a_reader_that_is_lost_ends_the_pool_and_keeps_the_memory() {
    let allocator = Counting::default();
    let mut pool = start(&allocator, 9, 1).unwrap();
    let (copy, _) = lend(&mut pool);
    copy.end(Err("the device fell off the bus".into()));
    let error = pool.next().unwrap().err().unwrap().to_string();
    assert!(error.contains("the device fell off the bus"), "{error}");
    assert!(pool.next().is_none());
    drop(pool);
    assert_eq!(allocator.out.load(Ordering::SeqCst), 1, "memory that may still be read is never freed");
}

#[test]
fn a_batch_that_is_ready_is_handed_out_without_waiting() {
    let mut pool = start(&Counting::default(), 2, 2).unwrap();
    let first = eventually(|| pool.next_if_ready()).unwrap().unwrap();
    assert_eq!(first.labels(), [0, 1]);
    assert_eq!(pool.next().unwrap().unwrap().labels(), [2, 3], "in order");
    assert!(pool.next_if_ready().is_none());
    assert!(pool.next().is_none());
}
