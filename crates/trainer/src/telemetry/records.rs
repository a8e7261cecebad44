//! The lines of `metrics.jsonl`: one a step, one an epoch and one a checkpoint, in the order in which they happened.
//! Where the run went back to an earlier checkpoint, a line says so in place of the steps that count no longer. The file
//! itself is [`super::metrics_file`]'s.

use std::path::Path;
use std::time::Duration;

use allreduce::StepExchange;
use serde::{Deserialize, Serialize};

use crate::engine::Phases;
use crate::error::Error;
use crate::files;
use crate::health::roll_back::RollBack;
use crate::health::straggler::Straggler;

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Record {
    Step(StepRecord),
    Epoch(EpochRecord),
    Checkpoint(CheckpointRecord),
    RollBack(RollBack),
}

impl Record {
    /// Whether it belongs to a run that stands after so many epochs and steps, rather than to what an earlier
    /// process did beyond.
    pub(super) fn is_within(&self, epoch: u32, step: u64) -> bool {
        match self {
            Record::Step(record) => record.step <= step,
            Record::Epoch(record) => record.epoch <= epoch,
            Record::Checkpoint(record) => record.step <= step,
            Record::RollBack(roll_back) => roll_back.to_step <= step,
        }
    }
}

/// One optimizer step. All but `images_per_second`, `seconds`, `exchange`, `stragglers` and `ahead` is equal in every
/// repetition of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// Counted from 1.
    pub(crate) epoch: u32,
    /// Completed steps of the whole run.
    pub(crate) step: u64,
    /// Mean over the global batch without its skipped samples, before the update; `None` where that is no finite
    /// number.
    pub(crate) loss: Option<f32>,
    /// The step changed nothing, since its gradient was infinite or NaN somewhere.
    #[serde(default)]
    pub(crate) skipped: bool,
    /// Ranks, from 0 on, whose own gradient was infinite or NaN somewhere, where they look for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) not_finite_ranks: Vec<usize>,
    /// The loss is far above those before.
    #[serde(default)]
    pub(crate) loss_spike: bool,
    /// What the loss was multiplied by, under fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<f32>,
    /// Share of the same samples, 0 to 1.
    pub(crate) top1_error: f64,
    pub(crate) learning_rate: f64,
    /// L2 norm of the averaged gradient over all parameters, before it was clipped; absent where it is not clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gradient_norm: Option<f64>,
    /// Samples that could not be decoded and have no part in the loss.
    #[serde(default)]
    pub(crate) skipped_samples: u64,
    /// Over all ranks.
    pub(crate) images_per_second: f64,
    /// Of rank 0.
    pub(crate) seconds: PhaseSeconds,
    /// Of rank 0.
    pub(crate) exchange: ExchangeRecord,
    /// Ranks that are slower than the others at this time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stragglers: Vec<Straggler>,
    /// The step after it had been launched before this one was known to be done, so that the device did not wait for the
    /// host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ahead: bool,
}

/// Seconds of each part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PhaseSeconds {
    pub(crate) step: f64,
    pub(crate) data_wait: f64,
    pub(crate) input: f64,
    pub(crate) forward: f64,
    pub(crate) backward: f64,
    pub(crate) exposed_communication: f64,
    pub(crate) optimizer: f64,
}

impl From<Phases> for PhaseSeconds {
    fn from(phases: Phases) -> Self {
        PhaseSeconds {
            step: phases.step.as_secs_f64(),
            data_wait: phases.data_wait.as_secs_f64(),
            input: phases.input.as_secs_f64(),
            forward: phases.forward.as_secs_f64(),
            backward: phases.backward.as_secs_f64(),
            exposed_communication: phases.exposed_communication.as_secs_f64(),
            optimizer: phases.optimizer.as_secs_f64(),
        }
    }
}

/// The exchange of one step; times in seconds since the last backward pass of the step began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExchangeRecord {
    pub(crate) buckets: usize,
    pub(crate) bytes: usize,
    /// When the first bucket's all-reduce started, or was queued on a device.
    pub(crate) first_started: f64,
    /// When the last one was finished.
    pub(crate) last_finished: f64,
    /// Time in which some bucket's all-reduce was under way, or queued on a device.
    pub(crate) busy: f64,
}

impl From<&StepExchange> for ExchangeRecord {
    fn from(exchange: &StepExchange) -> Self {
        let buckets = &exchange.buckets;
        // One behind the other, but where a device has several queued.
        let (mut busy, mut until) = (Duration::ZERO, Duration::ZERO);
        for bucket in buckets {
            busy += bucket.finished.saturating_sub(bucket.started.max(until));
            until = until.max(bucket.finished);
        }
        ExchangeRecord {
            buckets: buckets.len(),
            bytes: buckets.iter().map(|bucket| bucket.bytes).sum(),
            first_started: buckets.first().map_or(0.0, |bucket| bucket.started.as_secs_f64()),
            last_finished: buckets.last().map_or(0.0, |bucket| bucket.finished.as_secs_f64()),
            busy: busy.as_secs_f64(),
        }
    }
}

/// One epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    /// Counted from 1.
    pub(crate) epoch: u32,
    /// Completed steps of the whole run.
    pub(crate) step: u64,
    /// Steps that changed nothing, since their gradient was infinite or NaN somewhere.
    #[serde(default)]
    pub(crate) skipped_steps: u64,
    /// Samples that could not be decoded and have no part in loss and error.
    #[serde(default)]
    pub(crate) skipped_samples: u64,
    /// Mean of the losses of all steps but the skipped ones; absent where all were skipped, as the next.
    pub(crate) train_loss: Option<f64>,
    /// Over all samples of these steps but the skipped ones, 0 to 1.
    pub(crate) train_top1_error: Option<f64>,
    /// Absent when the epoch was not evaluated.
    pub(crate) test_loss: Option<f64>,
    pub(crate) test_top1_error: Option<f64>,
    /// Absent also where there are fewer than five classes.
    pub(crate) test_top5_error: Option<f64>,
    pub(crate) test_top1_correct: Option<u64>,
    pub(crate) test_samples: Option<u64>,
    /// Test images that could not be decoded: they count as wrong, and have no part in the loss.
    #[serde(default)]
    pub(crate) test_skipped_samples: Option<u64>,
    /// Of the averaged weights, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) averaged_test_loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) averaged_test_top1_error: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) averaged_test_top5_error: Option<f64>,
    /// Over all ranks and the part of the epoch that this process trained.
    pub(crate) images_per_second: f64,
    pub(crate) train_seconds: f64,
    pub(crate) test_seconds: f64,
}

/// One save, written when it has ended, which may be some steps later. Two runs that are equal otherwise may save at
/// other steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckpointRecord {
    /// Completed steps of the whole run.
    pub(crate) step: u64,
    /// Why nothing was saved; `None` when it was.
    pub(crate) error: Option<String>,
    /// Size of its files.
    pub(crate) bytes: u64,
    /// For how long training stood still: copying, and waiting for the save before where that was still under way.
    pub(crate) stall_seconds: f64,
    /// For how long it was then being written.
    pub(crate) write_seconds: f64,
}

/// The epoch lines of a metrics file.
pub(crate) fn read_epochs(path: &Path) -> Result<Vec<EpochRecord>, Error> {
    let bytes = files::read(path, files::MOST_BYTES).map_err(Error::file("read", path))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text
        .lines()
        // Nearly all lines are steps: they are not worth parsing.
        .filter(|line| line.contains("\"kind\":\"epoch\""))
        .filter_map(|line| match serde_json::from_str(line) {
            Ok(Record::Epoch(record)) => Some(record),
            _ => None,
        })
        .collect())
}
