//! Averages a flat gradient buffer over all ranks, bucket by bucket, while backward still fills the rest of
//! it.
//!
//! Decides when which bucket goes to the communication thread. What backward is, and when a gradient is
//! complete, is known to the caller alone.

mod bucket_work;
mod step;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};

use self::step::{Launched, Report, Step};
use crate::accumulate::SumTree;
use crate::hook::BucketHook;
use crate::nccl::device_failed;
use crate::{Accumulation, Bucket, CommError, CommThread, Region, Segment, Sharding, Wire};

/// How a reducer works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReducerOptions {
    /// Exchange buckets while backward goes on, rather than all of them after it.
    pub overlap: bool,
    /// Applied to the sum: one over the number of micro batches of all ranks, for their mean.
    pub scale: f32,
    /// How the micro batches of a step are added up on a rank.
    pub accumulation: Accumulation,
    /// How segments travel. What belongs to none travels as it is.
    pub wire: Wire,
    /// Of so many first elements, in fp32, this rank gets the average of its own shard only: see
    /// [`Reducer::shards`].
    pub sharded: usize,
    /// An element behind the last segment, zero before the exchange: more than zero after it, on all ranks, where an
    /// average is infinite or NaN.
    pub not_finite: Option<usize>,
    /// Another one, of this rank's own: more than zero after the exchange, on all ranks, where one of this rank's own
    /// values before it was infinite or NaN. `None` saves a look at them.
    pub own_not_finite: Option<usize>,
}

/// What happened to one bucket in a step. Times count from the beginning of the last backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRecord {
    /// Index of the bucket.
    pub bucket: usize,
    /// Size of what this rank summed with the others for it, as it travels, between hosts if there are several.
    pub bytes: usize,
    /// When it was handed to the communication thread.
    pub queued: Duration,
    /// When its exchange began; on a device, when it was queued there, behind that of the bucket before.
    pub started: Duration,
    /// When its exchange was known to be complete, and what a [`BucketHook`] does with the averages not yet begun.
    pub finished: Duration,
    /// Processor time of the communication thread for its exchange.
    pub processor: Duration,
}

/// The exchange of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepExchange {
    /// By bucket index, the order of exchange.
    pub buckets: Vec<BucketRecord>,
    /// Segments that were never marked ready: their parameters took no part in the step.
    pub unready: Vec<usize>,
}

/// The exchange of gradients, step after step.
///
/// The flat buffer may end in a part that belongs to no segment, such as statistics or counters. It is
/// exchanged with the last bucket, which therefore also waits for [`Reducer::seal`].
///
/// A step is: [`begin_step`](Self::begin_step); for each micro batch but the last backward and
/// [`end_micro_batch`](Self::end_micro_batch); [`begin_last_backward`](Self::begin_last_backward), backward
/// with [`mark_ready`](Self::mark_ready), [`seal`](Self::seal) before or after it; [`launch`](Self::launch), after which
/// the averages may be used and the next step may begin; [`settle`](Self::settle) tells how it went. In host memory the
/// exchange is over when `launch` returns. On a device it is queued, and so is what uses the averages; only `settle` waits
/// for the device, if need be when further steps have been launched.
///
/// # Example
/// ```
/// use allreduce::*;
///
/// let comm = CommThread::start(|| Ok(Box::new(Solo::new())))?;
/// let gradients = Region::from_vec(vec![6.0; 4]);
/// let segments = vec![Segment { name: "weight".into(), range: 0..4 }];
/// let buckets = plan_buckets(&segments, 4, 1 << 20, 25 << 20);
/// let options = ReducerOptions {
///     overlap: true,
///     scale: 0.5,
///     accumulation: Accumulation::InPlace,
///     wire: Wire::Fp32,
///     sharded: 0,
///     not_finite: None,
///     own_not_finite: None,
/// };
/// let reducer = Reducer::new(comm, gradients.clone(), segments, buckets, options);
/// reducer.begin_step(1);
/// reducer.begin_last_backward();
/// reducer.seal();
/// reducer.mark_ready(0);
/// reducer.launch()?;
/// let exchange = reducer.settle()?;
/// assert_eq!(gradients.to_vec(), [3.0; 4]);
/// assert_eq!(exchange.buckets[0].bytes, 16);
/// # Ok::<(), CommError>(())
/// ```
pub struct Reducer {
    thread: CommThread,
    core: Arc<Core>,
    bucket_of_segment: Vec<usize>,
    overlap: bool,
    step: Mutex<Step>,
    reports: Receiver<Report>,
}

/// What the reducer shares with its work on the communication thread.
struct Core {
    gradients: Region,
    buckets: Vec<(Bucket, Region)>,
    /// End of the last segment; what lies behind is never compressed.
    segments_end: usize,
    wire: Wire,
    /// Elements that are averaged in shards only.
    sharded: usize,
    sharding: Sharding,
    scale: f32,
    /// Of the micro batches before the last one; with [`Accumulation::Tree`].
    tree: Option<Mutex<SumTree>>,
    /// Used on the communication thread only.
    hook: Option<Mutex<Box<dyn BucketHook>>>,
    /// Whether the hook takes the place of the plain sum.
    hook_exchanges: bool,
    /// Place of the count of averages that are not finite.
    not_finite: Option<usize>,
    /// Place of the mark for own values that are not finite.
    own_not_finite: Option<usize>,
    /// Whether the averages of this step's buckets so far are finite, as far as the host knows.
    finite_so_far: AtomicBool,
    /// Whether this rank's own values are.
    own_finite_so_far: AtomicBool,
    reports: Sender<Report>,
}

impl Reducer {
    /// A reducer for `gradients`, cut into `buckets` by [`plan_buckets`](crate::plan_buckets) from
    /// `segments`.
    ///
    /// # Panics
    /// When a bucket is not within the gradients, or buckets and segments do not belong together.
    #[must_use]
    pub fn new(
        thread: CommThread,
        gradients: Region,
        segments: Vec<Segment>,
        buckets: Vec<Bucket>,
        options: ReducerOptions,
    ) -> Reducer {
        let mut bucket_of_segment = Vec::with_capacity(segments.len());
        for (index, bucket) in buckets.iter().enumerate() {
            assert_eq!(
                bucket.segments.start,
                bucket_of_segment.len(),
                "bucket {index} begins with another segment"
            );
            for segment in segments.get(bucket.segments.clone()).unwrap_or_default() {
                let fits = bucket.range.start <= segment.range.start && segment.range.end <= bucket.range.end;
                assert!(fits, "segment {} is not within bucket {index}", segment.name);
                bucket_of_segment.push(index);
            }
        }
        assert_eq!(bucket_of_segment.len(), segments.len(), "the buckets do not hold all segments");
        let step = Step {
            begin: None,
            sealed: false,
            ready: vec![false; segments.len()],
            missing: vec![0; buckets.len()],
            queued: Vec::with_capacity(buckets.len()),
            reached: 0,
            end: None,
            launched: VecDeque::new(),
            completed: VecDeque::with_capacity(2 * buckets.len()),
        };
        let slice = |bucket: Bucket| {
            let region = gradients.slice(bucket.range.clone());
            (bucket, region)
        };
        let (sender, reports) = unbounded();
        let core = Core {
            segments_end: segments.last().map_or(0, |segment| segment.range.end),
            wire: options.wire,
            sharded: options.sharded,
            sharding: thread.sharding(),
            buckets: buckets.into_iter().map(slice).collect(),
            gradients,
            scale: options.scale,
            tree: (options.accumulation == Accumulation::Tree).then(Mutex::default),
            hook: None,
            hook_exchanges: false,
            not_finite: options.not_finite,
            own_not_finite: options.own_not_finite,
            finite_so_far: AtomicBool::new(true),
            own_finite_so_far: AtomicBool::new(true),
            reports: sender,
        };
        Reducer {
            thread,
            core: Arc::new(core),
            bucket_of_segment,
            overlap: options.overlap,
            step: Mutex::new(step),
            reports,
        }
    }

    /// The same with a hook, which replaces an earlier one.
    ///
    /// # Panics
    /// After the first step has begun.
    #[must_use]
    pub fn with_hook(mut self, hook: Box<dyn BucketHook>) -> Reducer {
        let core = Arc::get_mut(&mut self.core).expect("no bucket is under way before the first step");
        core.hook_exchanges = hook.exchanges();
        core.hook = Some(Mutex::new(hook));
        self
    }

    /// The buckets as text, one a line, which must be equal on all ranks.
    #[must_use]
    pub fn description(&self) -> String {
        let line = |(index, (bucket, _)): (usize, &(Bucket, Region))| {
            format!("bucket {index}: elements {:?}, segments {:?}\n", bucket.range, bucket.segments)
        };
        self.core.buckets.iter().enumerate().map(line).collect()
    }

    /// The ranges of the buffer that are averaged in shards, one a bucket, and of each the shard that is this rank's.
    /// What [`Reducer::launch`] leaves in the others' shards is of no meaning.
    #[must_use]
    pub fn shards(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let shard = |(bucket, _): &(Bucket, Region)| {
            let start = bucket.range.start;
            let len = self.core.sharded_len(bucket);
            let own = self.core.sharding.of(len);
            (start..start + len, start + own.start..start + own.end)
        };
        self.core.buckets.iter().map(shard).filter(|(range, _)| !range.is_empty()).collect()
    }

    /// A step of `local_micro_batches` on this rank begins.
    pub fn begin_step(&self, local_micro_batches: usize) {
        let mut step = lock(&self.step);
        // Of a step that was given up nothing may be left that still uses the buffer.
        self.forget_unlaunched(&mut step);
        if let Some(tree) = &self.core.tree {
            lock(tree).begin_step(local_micro_batches, self.core.gradients.len());
        }
        for finite in [&self.core.finite_so_far, &self.core.own_finite_so_far] {
            finite.store(true, Ordering::Relaxed);
        }
        step.begin = None;
        step.sealed = false;
        step.ready.fill(false);
        for (missing, (bucket, _)) in step.missing.iter_mut().zip(&self.core.buckets) {
            *missing = bucket.segments.len();
        }
    }

    /// Backward of a micro batch that is not the last one of the step is through. With [`Accumulation::Tree`]
    /// this takes the gradients over and sets them to zero; otherwise they stay, and backward adds to them.
    ///
    /// # Panics
    /// With [`Accumulation::Tree`], when the gradients are not in host memory.
    pub fn end_micro_batch(&self) {
        if let Some(tree) = &self.core.tree {
            lock(tree).push(&mut self.core.gradients.lock());
        }
    }

    /// Backward of the step's last micro batch begins: from now on gradients become complete.
    pub fn begin_last_backward(&self) {
        lock(&self.step).begin.get_or_insert_with(Instant::now);
    }

    /// The gradient of a segment is complete. Called from whichever thread runs backward; outside of the last
    /// backward pass, and for a segment that is ready already, it does nothing. Returns at once.
    pub fn mark_ready(&self, segment: usize) {
        let mut step = lock(&self.step);
        if step.begin.is_none() || step.ready.get(segment) != Some(&false) {
            return;
        }
        step.ready[segment] = true;
        step.missing[self.bucket_of_segment[segment]] -= 1;
        self.launch_ready(&mut step);
    }

    /// What the caller itself writes to the buffer, behind the last segment, is written.
    pub fn seal(&self) {
        let mut step = lock(&self.step);
        step.sealed = true;
        self.launch_ready(&mut step);
    }

    /// Backward is through: sends what has not been sent yet. From now on the buffer holds the averages, for whatever the
    /// calling thread queues on its device; in host memory, for everybody. The elements of segments that were never ready
    /// are taken as they stand; they should be zero.
    ///
    /// # Errors
    /// When the exchange of a bucket is known to have failed. The buffer's content is then undefined, and the step is given
    /// up.
    pub fn launch(&self) -> Result<(), CommError> {
        let mut step = lock(&self.step);
        let step = &mut *step;
        // Until the next step begins, no gradient becomes complete.
        let begin = step.begin.take().unwrap_or_else(Instant::now);
        let count = self.core.buckets.len();
        while step.queued.len() < count {
            self.launch_next(step);
        }
        while step.reached < count && self.receive(step) {}
        step.completed.iter().try_for_each(|completion| completion.result.clone())?;
        if let Some(mut end) = step.end.take() {
            end.hold_caller().map_err(device_failed)?;
        }
        step.launched.push_back(Launched {
            begin,
            queued: std::mem::take(&mut step.queued),
            unready: (0..step.ready.len()).filter(|&segment| !step.ready[segment]).collect(),
        });
        Ok(())
    }

    /// Waits until the exchange of the oldest step that was launched and not settled is over.
    ///
    /// # Errors
    /// When the exchange of a bucket failed: what was computed from the averages is undefined, in this step and in later
    /// ones.
    ///
    /// # Panics
    /// When there is no such step.
    pub fn settle(&self) -> Result<StepExchange, CommError> {
        let mut step = lock(&self.step);
        let step = &mut *step;
        let launched = step.launched.pop_front().expect("a step is launched before it is settled");
        let Launched { begin, queued, unready } = launched;
        while step.completed.len() < queued.len() && self.receive(step) {}
        let completions: Vec<_> = step.completed.drain(..queued.len()).collect();
        let mut buckets = Vec::with_capacity(queued.len());
        for (completion, queued) in completions.into_iter().zip(queued) {
            completion.result?;
            buckets.push(BucketRecord {
                bucket: completion.bucket,
                bytes: completion.bytes,
                queued: queued - begin,
                started: completion.started - begin,
                finished: completion.finished - begin,
                processor: completion.processor,
            });
        }
        Ok(StepExchange { buckets, unready })
    }
}

impl Core {
    /// How many of a bucket's first elements are averaged in shards.
    fn sharded_len(&self, bucket: &Bucket) -> usize {
        self.sharded.clamp(bucket.range.start, bucket.range.end) - bucket.range.start
    }

    /// How many of a bucket's first elements do not simply travel as fp32.
    fn compressed_len(&self, bucket: &Bucket) -> usize {
        if self.sharded > 0 || (self.wire == Wire::Fp32 && !self.hook_exchanges) {
            return 0;
        }
        self.segments_end.clamp(bucket.range.start, bucket.range.end) - bucket.range.start
    }

    /// Size of a bucket in the format in which it travels.
    fn bytes(&self, bucket: usize) -> usize {
        let (bucket, region) = &self.buckets[bucket];
        let compressed = self.compressed_len(bucket);
        compressed * self.wire.bytes() + (region.len() - compressed) * Wire::Fp32.bytes()
    }
}

/// A panic under one of these locks leaves no half-made state that a later step would use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
