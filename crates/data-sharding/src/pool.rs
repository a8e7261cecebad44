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

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, select};

use crate::error::DataError;
use crate::slab::{Part, Slab};
use crate::source::{ImageShape, Source};
use crate::transform::{SampleKey, Transform};

/// Size of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Decoder threads.
    pub workers: usize,
    /// Most samples in a request.
    pub batch_size: usize,
    /// Batch buffers: those being filled, those waiting, and those the consumer holds.
    pub prefetch: usize,
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
    free: Sender<Slab>,
    /// Dropped to wake a waiting dispatcher.
    stop: Option<Sender<Infallible>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    source: Arc<dyn Source>,
    transform: Transform,
    image: ImageShape,
    /// Nobody wants the batches any more.
    stopping: AtomicBool,
}

/// A request on its way through the workers.
struct Job {
    sequence: u64,
    keys: Vec<SampleKey>,
    /// The first sample, by position in the request, that failed, and how.
    failure: Mutex<Option<(usize, DataError)>>,
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
}

impl Pool {
    /// Starts decoding. Each request is the samples of one batch, 1 to `batch_size` of them.
    ///
    /// The consumer must hold fewer than `prefetch` batches when it asks for the next one, or hand one back
    /// from another thread, since otherwise there is no buffer to fill.
    ///
    /// # Errors
    /// If an option is out of range, buffers do not fit into memory, images are too small for the transform,
    /// or threads cannot be started.
    pub fn start(
        source: Arc<dyn Source>,
        transform: Transform,
        requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
        options: PoolOptions,
    ) -> Result<Pool, DataError> {
        let PoolOptions { workers, batch_size, prefetch } = options;
        let image = source.image();
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
        transform.check(image)?;

        let (free, free_slabs) = bounded(prefetch);
        for _ in 0..prefetch {
            let slab = Slab::new(batch_size, image.bytes());
            let slab = slab.map_err(|_| DataError::Memory {
                buffers: prefetch,
                batch_size,
                image_bytes: image.bytes(),
            })?;
            let _ = free.send(slab);
        }
        // Neither channel can fill up: a batch has at most one part a worker, and only the last finished
        // item, an error of the dispatcher, has no slab.
        let (sender, task_queue) = bounded::<Task>(prefetch * workers);
        let (finished, finished_queue) = bounded(prefetch + 1);
        let (stop, stopped) = bounded(0);

        let shared = Arc::new(Shared { source, transform, image, stopping: AtomicBool::new(false) });
        let mut pool = Pool {
            shared: Arc::clone(&shared),
            finished: Some(finished_queue),
            early: BTreeMap::new(),
            next: 0,
            free,
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
            Some(Ok(FilledSlab { slab, len })) => {
                let (image, free) = (self.shared.image, self.free.clone());
                Some(Ok(Batch { slab: Some(slab), len, image, free }))
            }
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

struct Dispatcher {
    shared: Arc<Shared>,
    requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
    batch_size: usize,
    workers: usize,
    free_slabs: Receiver<Slab>,
    stopped: Receiver<Infallible>,
    tasks: Sender<Task>,
    finished: Sender<Finished>,
}

impl Dispatcher {
    /// Hands out requests until they end, one is bad, or the pool is stopped.
    fn run(mut self) {
        for sequence in 0.. {
            let keys = match self.next_request(sequence) {
                Ok(Some(keys)) => keys,
                Ok(None) => return,
                Err(error) => {
                    let _ = self.finished.send(Finished { sequence, result: Err(error) });
                    return;
                }
            };
            let slab = select! {
                recv(self.free_slabs) -> slab => slab,
                recv(self.stopped) -> _ => return,
            };
            let Ok(slab) = slab else { return };
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            let len = keys.len();
            let job = Arc::new(Job { sequence, keys, failure: Mutex::new(None) });
            for part in slab.split(len, len.div_ceil(self.workers)) {
                if self.tasks.send(Task { job: Arc::clone(&job), part }).is_err() {
                    return;
                }
            }
        }
    }

    fn next_request(&mut self, request: u64) -> Result<Option<Vec<SampleKey>>, DataError> {
        let keys = catch_unwind(AssertUnwindSafe(|| self.requests.next()))
            .map_err(|panic| DataError::Requests { request, message: panic_message(&*panic) })?;
        let Some(keys) = keys else { return Ok(None) };
        if !(1..=self.batch_size).contains(&keys.len()) {
            let (samples, batch_size) = (keys.len(), self.batch_size);
            return Err(DataError::RequestSize { request, samples, batch_size });
        }
        let samples = self.shared.source.len();
        match keys.iter().map(|key| key.sample as usize).find(|&sample| sample >= samples) {
            Some(sample) => {
                let data_set = self.shared.source.name().into();
                Err(DataError::NoSuchSample { data_set, sample, samples })
            }
            None => Ok(Some(keys)),
        }
    }
}

fn work(shared: &Shared, tasks: &Receiver<Task>, finished: &Sender<Finished>) {
    let mut decoder = Decoder { shared, image: vec![0; shared.image.bytes()], columns: Vec::new() };
    for Task { job, mut part } in tasks {
        for ((position, key), (pixels, label)) in
            part.slots().map(|position| (position, &job.keys[position])).zip(part.slots_mut())
        {
            // The batch is then incomplete, but nobody will see it.
            if shared.stopping.load(Ordering::Relaxed) {
                break;
            }
            let result =
                catch_unwind(AssertUnwindSafe(|| decoder.decode(key, pixels))).unwrap_or_else(|panic| {
                    Err(undecodable(shared, key, format!("panic: {}", panic_message(&*panic))))
                });
            match result {
                Ok(found) => *label = found,
                Err(error) => {
                    job.fail(position, error);
                    break;
                }
            }
        }
        if let Some(slab) = part.join() {
            let failure = job.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            let result = match failure {
                Some((_, error)) => Err(error),
                None => Ok(FilledSlab { slab, len: job.keys.len() }),
            };
            let _ = finished.send(Finished { sequence: job.sequence, result });
        }
    }
}

impl Job {
    /// Keeps the failure that comes first in the request, so that the error reported is the same for any
    /// workers.
    fn fail(&self, position: usize, error: DataError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(earlier, _)| position < *earlier) {
            *failure = Some((position, error));
        }
    }
}

/// A worker's memory.
struct Decoder<'a> {
    shared: &'a Shared,
    image: Vec<u8>,
    columns: Vec<usize>,
}

impl Decoder<'_> {
    /// Writes one augmented image and gives its label.
    fn decode(&mut self, key: &SampleKey, pixels: &mut [u8]) -> Result<i64, DataError> {
        let Shared { source, transform, image, .. } = self.shared;
        let sample = key.sample as usize;
        let augment = transform.changes_pixels();
        let decoded = if augment { &mut self.image[..] } else { &mut *pixels };
        source.decode(sample, decoded).map_err(|error| match error {
            DataError::Decode { .. } | DataError::NoSuchSample { .. } => error,
            other => undecodable(self.shared, key, other.to_string()),
        })?;
        if augment {
            transform.apply(key, *image, &self.image, &mut self.columns, pixels);
        }
        Ok(source.label(sample).into())
    }
}

fn undecodable(shared: &Shared, key: &SampleKey, reason: String) -> DataError {
    DataError::Decode { data_set: shared.source.name().into(), sample: key.sample as usize, reason }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").into()
}

/// A decoded batch. Its buffer goes back to the pool when it is dropped.
pub struct Batch {
    /// `None` only while it is dropped.
    slab: Option<Slab>,
    len: usize,
    image: ImageShape,
    free: Sender<Slab>,
}

impl Batch {
    /// All pixels as `[len, height, width, channels]`.
    #[must_use]
    pub fn images(&self) -> &[u8] {
        self.slab.as_ref().map_or(&[], |slab| slab.images(self.len))
    }

    /// The class of each image.
    #[must_use]
    pub fn labels(&self) -> &[i64] {
        self.slab.as_ref().map_or(&[], |slab| slab.labels(self.len))
    }

    /// Number of images, 1 or more.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A batch is never empty.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `[len, height, width, channels]` of [`images`](Self::images).
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        let ImageShape { height, width, channels } = self.image;
        [self.len, height as usize, width as usize, channels as usize]
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            // Nobody takes it when the pool has ended; then the memory is freed.
            let _ = self.free.send(slab);
        }
    }
}

/// Decoder threads for one of `ranks_on_node` processes: its share of the processors this process may use
/// (affinity mask and cgroup quota), less one for the training thread, 1 to 8. One decodes and augments about
/// 300,000 images of 32x32 pixels a second.
#[must_use]
pub fn default_workers(ranks_on_node: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / ranks_on_node.max(1)).saturating_sub(1).clamp(1, 8)
}
