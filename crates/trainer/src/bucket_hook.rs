//! What happens to a bucket on the communication thread beside its sum: PowerSGD, and the update of its weights as soon as
//! they have an averaged gradient.
//!
//! **Weights that change during backward.** A bucket is averaged after the gradients of all its parameters are complete.
//! libtorch completes a parameter's gradient when every operation that used the parameter has run backward, and an
//! operation's backward is what may read the parameter, in all memory modes: batch norms are recomputed for operations
//! behind them, whose backward comes first; a checkpointed block runs again before its own backward. No parameter is used
//! by two operations (`Network::readiness_order` holds each once). So nobody reads these weights any more in this step.
//! Autograd cannot know that, since all parameters are views of one tensor with one count of changes; hence the updates go
//! through tensors of the same memory with a count of their own.
//!
//! **On the communication thread**, not on the one that trains: that one is within backward, and would have to wait for
//! averages that it is itself the condition of. Beside it, the update takes place while backward goes on or another
//! bucket's messages are on their way. It uses one thread, so that it takes no core from libtorch's. On a GPU it is queued
//! on the stream of the computation, like backward itself: behind every operation that still reads these weights, and
//! ahead of the next step.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use allreduce::{Bucket, BucketHook, CommError, Sum};

use crate::config::Compression;
use crate::error::Error;
use crate::optimizer::Optimizer;
use crate::plan::Plan;
use crate::power_sgd::PowerSgd;
use crate::state::State;

/// What the thread that trains tells about a step before its first bucket.
#[derive(Debug, Default)]
pub(crate) struct StepInputs {
    step: AtomicU64,
    learning_rate: AtomicU64,
}

impl StepInputs {
    pub(crate) fn begin(&self, step: u64, learning_rate: f64) {
        // The channel to the other thread orders these before whatever it does for the step.
        self.step.store(step, Ordering::Relaxed);
        self.learning_rate.store(learning_rate.to_bits(), Ordering::Relaxed);
    }

    fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    fn learning_rate(&self) -> f64 {
        f64::from_bits(self.learning_rate.load(Ordering::Relaxed))
    }
}

/// The hook of one rank.
pub(crate) struct StepHook {
    inputs: Arc<StepInputs>,
    power_sgd: Option<PowerSgd>,
    /// The step of the run from which on it is used.
    power_sgd_start_step: u64,
    updates: Option<Updates>,
}

/// One optimizer a bucket.
struct Updates {
    buckets: Vec<Optimizer>,
    /// Whether this thread has been told to use no others.
    alone: bool,
}

impl StepHook {
    /// As the configuration says; `None` where nothing is to be done. With `updates_early` buckets are updated here rather
    /// than all weights after the exchange.
    pub(crate) fn new(
        plan: &Plan,
        state: &State,
        buckets: &[Bucket],
        world_size: usize,
        updates_early: bool,
        inputs: Arc<StepInputs>,
    ) -> Result<Option<StepHook>, Error> {
        let comm = &plan.config.comm;
        let rank = comm.power_sgd_rank.filter(|_| comm.compression == Compression::PowerSgd);
        let power_sgd = rank.map(|rank| {
            PowerSgd::new(&plan.network, &state.layout, buckets, rank, plan.config.seed, world_size)
        });
        let updates = updates_early.then(|| Updates::new(plan, state, buckets)).transpose()?;
        if power_sgd.is_none() && updates.is_none() {
            return Ok(None);
        }
        let power_sgd_start_step = comm.power_sgd_start_step.unwrap_or_default();
        Ok(Some(StepHook { inputs, power_sgd, power_sgd_start_step, updates }))
    }
}

impl Updates {
    fn new(plan: &Plan, state: &State, buckets: &[Bucket]) -> Result<Self, Error> {
        // The last bucket also holds what is no parameter.
        let end = state.layout.parameters_len;
        let within = |range: &Range<usize>| range.start.min(end)..range.end.min(end);
        let optimizer =
            |bucket: &Bucket| Optimizer::of_range(&plan.config.optimizer, state, &within(&bucket.range));
        Ok(Updates { buckets: buckets.iter().map(optimizer).collect::<Result<_, _>>()?, alone: false })
    }

    fn step(&mut self, bucket: usize, learning_rate: f64) -> Result<(), Error> {
        if !self.alone {
            torch_ext::runtime::use_one_thread_here()?;
            self.alone = true;
        }
        let _no_grad = tch::no_grad_guard();
        self.buckets[bucket].step(learning_rate, None).map(drop)
    }
}

impl BucketHook for StepHook {
    fn exchanges(&self) -> bool {
        self.power_sgd.is_some()
    }

    fn all_reduce(&mut self, bucket: usize, values: &mut [f32], sum: &mut Sum<'_>) -> Result<(), CommError> {
        match &mut self.power_sgd {
            Some(power_sgd) if self.inputs.step() >= self.power_sgd_start_step => {
                power_sgd.all_reduce(bucket, values, sum)
            }
            _ => sum(values),
        }
    }

    fn averaged(&mut self, bucket: usize) -> Result<(), CommError> {
        let Some(updates) = &mut self.updates else { return Ok(()) };
        updates.step(bucket, self.inputs.learning_rate()).map_err(|error| {
            CommError::Hook(format!("the weights of bucket {bucket} cannot be updated: {error}"))
        })
    }
}
