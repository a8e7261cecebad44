//! The exchange of one bucket on the communication thread: which part of it is summed how, by whom it is scaled, how ranks
//! learn of averages that are not finite, and who hears of its end. When it is handed over is the
//! [`Reducer`](super::Reducer)'s business.

mod on_device;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::step::{Completion, Report};
use super::{Core, lock};
use crate::communicator::Communicator;
use crate::finite::{all_finite, scale};
use crate::flight::{Collective, CollectiveKind};
use crate::nccl::{Moment, Ready, RegionDevice};
use crate::processor_time;
use crate::thread::Work;
use crate::{CommError, Wire};

/// The exchange of one bucket, on the communication thread. Reports one completion, also when it is
/// abandoned.
pub(super) struct BucketWork {
    core: Arc<Core>,
    bucket: usize,
    /// Of gradients on a device: lets the exchange wait there for the computation of this bucket.
    computed: Option<Result<Ready, String>>,
    bytes: usize,
    processor: Duration,
    started: Option<Instant>,
    finished: Option<Instant>,
    /// Whether the reducer has heard that the bucket is queued on its device.
    queued: bool,
    /// As if abandoned, until `done` says otherwise.
    result: Result<(), CommError>,
}

impl Work for BucketWork {
    fn collective(&self) -> Collective {
        let sharded = self.core.sharded_len(&self.core.buckets[self.bucket].0) > 0;
        Collective {
            kind: if sharded { CollectiveKind::ReduceScatter } else { CollectiveKind::AllReduce },
            bucket: Some(self.bucket),
            bytes: Some(self.core.bytes(self.bucket)),
            dtype: Some(self.core.wire.name().into()),
        }
    }

    fn is_on_device(&self) -> bool {
        self.core.gradients.device().is_some()
    }

    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<Option<Box<dyn Moment>>, CommError> {
        self.started = Some(Instant::now());
        let processor_begin = processor_time::of_this_thread();
        let ends = match self.computed.take() {
            Some(computed) => Some(self.exchange_on_device(computed, communicator)?),
            None => {
                self.exchange(communicator)?;
                None
            }
        };
        self.processor = processor_time::of_this_thread().saturating_sub(processor_begin);
        let Some([mut end, same_end]) = ends else {
            self.call_hook()?;
            return Ok(None);
        };
        if self.core.hook.is_some() {
            communicator.await_moment(&mut *end)?;
            self.read_whether_finite()?;
            self.call_hook()?;
            return Ok(None);
        }
        self.queued = true;
        let _ = self.core.reports.send(Report::Queued(same_end));
        Ok(Some(end))
    }

    fn done(mut self: Box<Self>, result: Result<(), CommError>) {
        self.finished.get_or_insert_with(Instant::now);
        self.result = result;
    }
}

impl BucketWork {
    /// The work on bucket `bucket`, whose gradients the calling thread has computed, or told its device to.
    pub(super) fn new(core: &Arc<Core>, bucket: usize) -> Self {
        BucketWork {
            core: Arc::clone(core),
            bucket,
            computed: core.gradients.device().map(RegionDevice::mark),
            bytes: 0,
            processor: Duration::ZERO,
            started: None,
            finished: None,
            queued: false,
            result: Err(CommError::Ended),
        }
    }

    /// A hook has the averages to itself, and gets only those that are finite.
    fn call_hook(&mut self) -> Result<(), CommError> {
        self.finished = Some(Instant::now());
        match &self.core.hook {
            Some(hook) if self.core.finite_so_far.load(Ordering::Relaxed) => lock(hook).averaged(self.bucket),
            _ => Ok(()),
        }
    }

    /// Replaces the bucket's values by their averages.
    fn exchange(&mut self, communicator: &mut dyn Communicator) -> Result<(), CommError> {
        let core = &*self.core;
        let (bucket, region) = &core.buckets[self.bucket];
        let mut values = region.lock();
        if let Some(tree) = &core.tree {
            lock(tree).fold_into(&bucket.range, &mut values);
        }
        if let Some(mark) = core.own_not_finite {
            let finite = all_finite(&values);
            let finite_so_far = core.own_finite_so_far.fetch_and(finite, Ordering::Relaxed) && finite;
            // Where it is in this bucket, which then is the last one.
            if let Some(mark) = mark.checked_sub(bucket.range.start).and_then(|mark| values.get_mut(mark))
                && !finite_so_far
            {
                *mark = 1.0;
            }
        }
        let mut own_finite = true;
        let (sharded, values) = values.split_at_mut(core.sharded_len(bucket));
        if !sharded.is_empty() {
            communicator.reduce_scatter(sharded)?;
            self.bytes += size_of_val(sharded);
            let own = core.sharding.of(sharded.len());
            own_finite = scale(&mut sharded[own], core.scale);
        }
        // Where it is in this bucket, which then is the last one.
        let count = core.not_finite.and_then(|count| count.checked_sub(bucket.range.start + sharded.len()));
        if let Some(count) = count.and_then(|count| values.get_mut(count))
            && !(own_finite && core.finite_so_far.load(Ordering::Relaxed))
        {
            // For the others, who know nothing of this rank's shards.
            *count += 1.0;
        }
        let mut finite = true;
        let (compressed, plain) = values.split_at_mut(core.compressed_len(bucket));
        let bytes = &mut self.bytes;
        let mut sum = |values: &mut [f32], wire: Wire| {
            *bytes += values.len() * wire.bytes();
            communicator.all_reduce(values, wire)
        };
        if !compressed.is_empty() {
            // What is rounded is scaled before, so that a mean that can be represented has a sum that can.
            scale(compressed, core.scale);
            match &core.hook {
                Some(hook) if core.hook_exchanges => {
                    lock(hook).all_reduce(self.bucket, compressed, &mut |values| sum(values, core.wire))?;
                }
                _ => sum(compressed, core.wire)?,
            }
            finite &= all_finite(compressed);
        }
        if !plain.is_empty() {
            sum(plain, Wire::Fp32)?;
            finite &= scale(plain, core.scale);
        }
        if let Some(count) = count.and_then(|count| values.get_mut(count))
            && !finite
        {
            *count += 1.0;
        }
        core.finite_so_far.fetch_and(own_finite && finite, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for BucketWork {
    fn drop(&mut self) {
        let finished = Instant::now();
        let _ = self.core.reports.send(Report::Completed(Completion {
            bucket: self.bucket,
            bytes: self.bytes,
            processor: self.processor,
            started: self.started.unwrap_or(finished),
            finished: self.finished.unwrap_or(finished),
            was_queued: self.queued,
            result: std::mem::replace(&mut self.result, Ok(())),
        }));
    }
}
