//! The exchange of one bucket on the communication thread: which part of it is summed how, by whom it is scaled, and who
//! hears of its end. When it is handed over is the [`Reducer`](super::Reducer)'s business.

mod on_device;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Completion, Core, lock};
use crate::communicator::Communicator;
use crate::finite::{all_finite, scale};
use crate::flight::{Collective, CollectiveKind};
use crate::nccl::{Ready, RegionDevice};
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
    finite: bool,
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

    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<(), CommError> {
        self.started = Some(Instant::now());
        let processor_begin = processor_time::of_this_thread();
        match self.computed.take() {
            Some(computed) => self.exchange_on_device(computed, communicator)?,
            None => self.exchange(communicator)?,
        }
        self.processor = processor_time::of_this_thread().saturating_sub(processor_begin);
        self.finished = Some(Instant::now());
        let finite = self.finite && self.core.finite_so_far.load(Ordering::Relaxed);
        self.core.finite_so_far.store(finite, Ordering::Relaxed);
        match &self.core.hook {
            // The hook has the elements to itself.
            Some(hook) if finite => lock(hook).averaged(self.bucket),
            _ => Ok(()),
        }
    }

    fn done(mut self: Box<Self>, result: Result<(), CommError>) {
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
            finite: true,
            result: Err(CommError::Ended),
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
        self.finite = true;
        let (sharded, values) = values.split_at_mut(core.sharded_len(bucket));
        if !sharded.is_empty() {
            communicator.reduce_scatter(sharded)?;
            self.bytes += size_of_val(sharded);
            let own = core.sharding.of(sharded.len());
            self.finite &= scale(&mut sharded[own], core.scale);
        }
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
            self.finite &= all_finite(compressed);
        }
        if !plain.is_empty() {
            sum(plain, Wire::Fp32)?;
            self.finite &= scale(plain, core.scale);
        }
        Ok(())
    }
}

impl Drop for BucketWork {
    fn drop(&mut self) {
        let finished = Instant::now();
        let _ = self.core.completed.send(Completion {
            bucket: self.bucket,
            bytes: self.bytes,
            processor: self.processor,
            started: self.started.unwrap_or(finished),
            finished: self.finished.unwrap_or(finished),
            finite: self.finite,
            result: std::mem::replace(&mut self.result, Ok(())),
        });
    }
}
