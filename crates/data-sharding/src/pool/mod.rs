//! The prefetching decoder pool: worker threads fill preallocated batch buffers ahead of the consumer, who
//! gets the batches in the order of the requests. Decides nothing about which samples are wanted.
//!
//! ```text
//!            requests                tasks (parts of a batch)
//! iterator ───────────► dispatcher ───────────────────────────► workers
//!                           ▲                                      │ last part done
//!                free slabs │                                      ▼
//!                           └──────── Batch dropped ◄──── Pool::next (in order)
//! ```
//! Without a free slab the dispatcher waits: memory is bounded, and a slow consumer stops the workers.

mod batch;
mod dispatch;
mod lent;
mod memory;
mod slab;
#[cfg(test)]
mod slab_tests;
mod stages;
mod sync;
mod threads;
mod worker;

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

pub use batch::Batch;
pub use memory::{BatchAllocator, BatchMemory, HeapMemory, Reader};
pub use stages::StageTimes;
pub use threads::default_workers;

use self::dispatch::Dispatcher;
use self::lent::Lent;
use self::slab::{Part, Slab};
use self::stages::Stages;
use self::sync::Cells;
use self::worker::work;
use crate::augment::{Augmentation, SampleKey};
use crate::error::DataError;
use crate::source::{DataSet, ImageShape};

/// Size of a pool, and what it does with samples that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Decoder threads.
    pub workers: usize,
    /// Most samples in a request.
    pub batch_size: usize,
    /// Batch buffers: those being filled, those waiting, and those the consumer holds.
    pub prefetch: usize,
    /// What happens when a sample cannot be decoded.
    pub on_bad_sample: OnBadSample,
}

/// What happens when a sample is truncated, corrupt or of no known format. Files that cannot be read at all are an
/// error in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadSample {
    /// The pool ends with an error that names the sample.
    #[default]
    Error,
    /// Its place in the batch is black and has the label [`Batch::SKIPPED`]; all other samples keep their places and
    /// everything drawn for them. [`Batch::skipped`] says what was wrong.
    Skip,
}

/// Beyond these, threads and buffers are surely a mistake.
const MOST_WORKERS: usize = 1024;
const MOST_BUFFERS: usize = 1024;
const MOST_SAMPLES: usize = 1 << 20;
const MOST_IMAGE_BYTES: usize = 1 << 30;

/// Decoder threads at work. An iterator over the batches; after an error, and after the last batch, it has
/// ended. Its threads are joined then, or when it is dropped.
pub struct Pool {
    shared: Arc<Shared>,
    /// `None` once the pool has ended.
    finished: Option<Receiver<Finished>>,
    /// Batches that were finished before an earlier one was.
    early: BTreeMap<u64, Result<FilledSlab, DataError>>,
    next: u64,
    free: Sender<Lent>,
    batch_bytes: usize,
    /// Dropped to wake a waiting dispatcher.
    stop: Option<Sender<Infallible>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    data: DataSet,
    augmentation: Augmentation,
    on_bad_sample: OnBadSample,
    stages: Stages,
    /// Nobody wants the batches any more.
    stopping: AtomicBool,
}

/// A request on its way through the workers.
struct Job {
    sequence: u64,
    keys: Vec<SampleKey>,
    /// Size of its images.
    image: ImageShape,
    outcome: Mutex<Outcome>,
}

/// What went wrong with samples, by position in the request.
#[derive(Default)]
struct Outcome {
    /// The first sample that failed, and how.
    failure: Option<(usize, DataError)>,
    skipped: Vec<(usize, DataError)>,
}

impl Job {
    /// Keeps the failure that comes first in the request, so that the error reported is the same for any
    /// workers.
    fn fail(&self, position: usize, error: DataError) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.failure.as_ref().is_none_or(|(earlier, _)| position < *earlier) {
            outcome.failure = Some((position, error));
        }
    }

    fn skip(&self, position: usize, error: DataError) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).skipped.push((position, error));
    }
}

struct Task {
    job: Arc<Job>,
    part: Part,
}

struct Finished {
    sequence: u64,
    result: Result<FilledSlab, DataError>,
}

struct FilledSlab {
    slab: Slab,
    len: usize,
    image: ImageShape,
    skipped: Vec<DataError>,
}

impl Pool {
    /// Starts decoding. Each request is the samples of one batch, 1 to `batch_size` of them.
    ///
    /// The consumer must hold fewer than `prefetch` batches when it asks for the next one, or hand one back
    /// from another thread, since otherwise there is no buffer to fill.
    ///
    /// # Errors
    /// If an option is out of range, buffers do not fit into memory, images do not fit the augmentation, or
    /// threads cannot be started.
    pub fn start(
        data: impl Into<DataSet>,
        augmentation: Augmentation,
        requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
        options: PoolOptions,
    ) -> Result<Pool, DataError> {
        Pool::start_in(&HeapMemory, data, augmentation, requests, options)
    }

    /// As [`Pool::start`], with the pixels of its batch buffers in memory of `allocator`.
    ///
    /// # Errors
    /// As [`Pool::start`].
    pub fn start_in(
        allocator: &dyn BatchAllocator,
        data: impl Into<DataSet>,
        augmentation: Augmentation,
        requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
        options: PoolOptions,
    ) -> Result<Pool, DataError> {
        let PoolOptions { workers, batch_size, prefetch, on_bad_sample } = options;
        let data = data.into();
        augmentation.check(data.image())?;
        let image = augmentation.largest_output(data.image());
        for (name, value, most) in [
            ("number of decoder threads", workers, MOST_WORKERS),
            ("batch size", batch_size, MOST_SAMPLES),
            ("prefetch", prefetch, MOST_BUFFERS),
            ("size of an image in bytes", image.bytes(), MOST_IMAGE_BYTES),
        ] {
            if !(1..=most).contains(&value) {
                let expected = format!("1 to {most}");
                return Err(DataError::OutOfRange { name, value: value as u64, expected });
            }
        }

        let (free, free_slabs) = bounded(prefetch);
        for _ in 0..prefetch {
            let slab = new_slab(allocator, batch_size, image.bytes()).map_err(|reason| {
                DataError::Memory { buffers: prefetch, batch_size, image_bytes: image.bytes(), reason }
            })?;
            let _ = free.send(Lent::new(slab, Vec::new()));
        }
        // Neither channel can fill up: a batch has at most one part a worker, and only the last finished
        // item, an error of the dispatcher, has no slab.
        let (sender, task_queue) = bounded::<Task>(prefetch * workers);
        let (finished, finished_queue) = bounded(prefetch + 1);
        let (stop, stopped) = bounded(0);

        let shared = Arc::new(Shared {
            data,
            augmentation,
            on_bad_sample,
            stages: Stages::default(),
            stopping: AtomicBool::new(false),
        });
        let mut pool = Pool {
            shared: Arc::clone(&shared),
            finished: Some(finished_queue),
            early: BTreeMap::new(),
            next: 0,
            free,
            batch_bytes: batch_size * image.bytes(),
            stop: Some(stop),
            threads: Vec::with_capacity(workers + 1),
        };
        for worker in 0..workers {
            let (shared, tasks, finished) = (Arc::clone(&shared), task_queue.clone(), finished.clone());
            let spawned = pool.spawn(format!("decoder-{worker}"), move || work(&shared, &tasks, &finished));
            if let Err(error) = spawned {
                // The workers that did start wait for tasks until nobody can send any; the pool joins them.
                drop(sender);
                return Err(error);
            }
        }
        let dispatcher = Dispatcher {
            shared,
            requests,
            batch_size,
            workers,
            free_slabs,
            stopped,
            tasks: sender,
            finished,
        };
        pool.spawn("decoder-dispatch".into(), move || dispatcher.run())?;
        Ok(pool)
    }

    /// The batch of the next request if it is ready, without waiting for it. `None` also after the last one.
    pub fn next_if_ready(&mut self) -> Option<Result<Batch, DataError>> {
        let finished = self.finished.as_ref()?;
        while let Ok(Finished { sequence, result }) = finished.try_recv() {
            self.early.insert(sequence, result);
        }
        if self.early.contains_key(&self.next) { self.next() } else { None }
    }

    /// The most bytes that the images of a batch take.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// What the decoder threads have spent their time on so far.
    #[must_use]
    pub fn stage_times(&self) -> StageTimes {
        self.shared.stages.read()
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), DataError> {
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(run)
            .map_err(|source| DataError::Thread { thread: name, source })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Ends all threads and waits for them; each finishes at most the sample it is at.
    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.stop = None;
        self.finished = None;
        self.early.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Iterator for Pool {
    type Item = Result<Batch, DataError>;

    /// Waits for the batch of the next request; `None` after the last one and after an error.
    fn next(&mut self) -> Option<Self::Item> {
        let finished = self.finished.as_ref()?;
        let result = loop {
            if let Some(result) = self.early.remove(&self.next) {
                break Some(result);
            }
            match finished.recv() {
                Ok(Finished { sequence, result }) => self.early.insert(sequence, result),
                Err(_) => break None,
            };
        };
        self.next += 1;
        match result {
            Some(Ok(filled)) => Some(Ok(Batch::new(filled, self.free.clone()))),
            Some(Err(error)) => {
                self.end();
                Some(Err(error))
            }
            None => {
                self.end();
                None
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
    }
}

/// Room for a batch; a sentence where there is none.
fn new_slab(allocator: &dyn BatchAllocator, slots: usize, image_bytes: usize) -> Result<Slab, String> {
    let bytes = slots.saturating_mul(image_bytes);
    let pixels = Cells::of_memory(allocator.allocate(bytes)?);
    if pixels.len() < bytes {
        return Err(format!("the allocator gave {} bytes for {bytes}", pixels.len()));
    }
    Slab::new(slots, pixels).map_err(|error| error.to_string())
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").into()
}
