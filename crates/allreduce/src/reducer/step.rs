//! Where a step stands: which buckets are on their way, and what has come back of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Reducer;
use super::bucket_work::BucketWork;
use crate::CommError;
use crate::nccl::Moment;

/// Where the current step stands.
pub(super) struct Step {
    /// When the last backward pass began; `None` before that.
    pub(super) begin: Option<Instant>,
    pub(super) sealed: bool,
    /// By segment.
    pub(super) ready: Vec<bool>,
    /// By bucket: segments that are not ready yet.
    pub(super) missing: Vec<usize>,
    /// By bucket, for those handed to the communication thread: when.
    pub(super) queued: Vec<Instant>,
    /// How many of these are complete or queued on their device.
    pub(super) reached: usize,
    /// Of the bucket that was queued on the device last: its end.
    pub(super) end: Option<Box<dyn Moment>>,
    /// Steps that have been launched and not settled, the oldest first.
    pub(super) launched: VecDeque<Launched>,
    /// Buckets that came back, of these steps and of the current one.
    pub(super) completed: VecDeque<Completion>,
}

/// What is known of a step when all its buckets are on their way.
pub(super) struct Launched {
    pub(super) begin: Instant,
    pub(super) queued: Vec<Instant>,
    pub(super) unready: Vec<usize>,
}

/// What the communication thread tells of a bucket.
pub(super) enum Report {
    /// It is queued on its device; its end.
    Queued(Box<dyn Moment>),
    Completed(Completion),
}

/// How the exchange of a bucket ended.
pub(super) struct Completion {
    pub(super) bucket: usize,
    pub(super) bytes: usize,
    pub(super) processor: Duration,
    pub(super) started: Instant,
    pub(super) finished: Instant,
    /// It was reported as queued before.
    pub(super) was_queued: bool,
    pub(super) result: Result<(), CommError>,
}

impl Reducer {
    /// Sends the buckets whose turn it is, in index order on every rank.
    pub(super) fn launch_ready(&self, step: &mut Step) {
        let count = self.core.buckets.len();
        while self.overlap && step.begin.is_some() {
            let next = step.queued.len();
            if next == count || step.missing[next] > 0 || (next + 1 == count && !step.sealed) {
                return;
            }
            self.launch_next(step);
        }
    }

    /// Sends the next bucket.
    pub(super) fn launch_next(&self, step: &mut Step) {
        let bucket = step.queued.len();
        step.queued.push(Instant::now());
        self.thread.submit(Box::new(BucketWork::new(&self.core, bucket)));
    }

    /// Waits for the next report; whether one came.
    pub(super) fn receive(&self, step: &mut Step) -> bool {
        // The other end is in `core`, so it is never disconnected.
        match self.reports.recv() {
            Ok(Report::Queued(end)) => {
                step.end = Some(end);
                step.reached += 1;
            }
            Ok(Report::Completed(completion)) => {
                step.reached += usize::from(!completion.was_queued);
                step.completed.push_back(completion);
            }
            Err(_) => return false,
        }
        true
    }

    /// Waits for the buckets of a step that began and was not launched, and of the steps before it.
    pub(super) fn forget_unlaunched(&self, step: &mut Step) {
        if !step.queued.is_empty() {
            let earlier: usize = step.launched.iter().map(|launched| launched.queued.len()).sum();
            while step.completed.len() < earlier + step.queued.len() && self.receive(step) {}
            step.completed.truncate(earlier);
            step.queued.clear();
        }
        step.reached = 0;
        step.end = None;
    }
}
