//! `metrics.jsonl`: one line a step and one line an epoch, in the order in which they happened. Where the run went back
//! to an earlier checkpoint, a line says so in place of the steps that count no longer.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use allreduce::StepExchange;
use serde::{Deserialize, Serialize};

use crate::checkpoint::replace_file;
use crate::engine::Phases;
use crate::error::Error;
use crate::health::roll_back::RollBack;
use crate::health::straggler::Straggler;

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Record {
    Step(StepRecord),
    Epoch(EpochRecord),
    RollBack(RollBack),
}

/// One optimizer step. All but `images_per_second`, `seconds`, `exchange` and `stragglers` is equal in every
/// repetition of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// Counted from 1.
    pub(crate) epoch: u32,
    /// Completed steps of the whole run.
    pub(crate) step: u64,
    /// Mean over the global batch, before the update; `None` where that is no finite number.
    pub(crate) loss: Option<f32>,
    /// The step changed nothing, since its gradient was infinite or NaN somewhere.
    #[serde(default)]
    pub(crate) skipped: bool,
    /// The loss is far above those before.
    #[serde(default)]
    pub(crate) loss_spike: bool,
    /// What the loss was multiplied by, under fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<f32>,
    /// Share of the global batch, 0 to 1.
    pub(crate) top1_error: f64,
    pub(crate) learning_rate: f64,
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
    /// When the first bucket's all-reduce started.
    pub(crate) first_started: f64,
    /// When the last one was finished.
    pub(crate) last_finished: f64,
    /// Time in which some bucket's all-reduce was under way.
    pub(crate) busy: f64,
}

impl From<&StepExchange> for ExchangeRecord {
    fn from(exchange: &StepExchange) -> Self {
        let buckets = &exchange.buckets;
        ExchangeRecord {
            buckets: buckets.len(),
            bytes: buckets.iter().map(|bucket| bucket.bytes).sum(),
            first_started: buckets.first().map_or(0.0, |bucket| bucket.started.as_secs_f64()),
            last_finished: buckets.last().map_or(0.0, |bucket| bucket.finished.as_secs_f64()),
            busy: buckets
                .iter()
                .map(|bucket| bucket.finished.saturating_sub(bucket.started).as_secs_f64())
                .sum(),
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
    /// Mean of the losses of all steps but the skipped ones.
    pub(crate) train_loss: f64,
    /// Over all samples of these steps, 0 to 1.
    pub(crate) train_top1_error: f64,
    /// Absent when the epoch was not evaluated.
    pub(crate) test_loss: Option<f64>,
    pub(crate) test_top1_error: Option<f64>,
    pub(crate) test_top5_error: Option<f64>,
    pub(crate) test_top1_correct: Option<u64>,
    pub(crate) test_samples: Option<u64>,
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

/// The open file. Lines are flushed at once, so that a reader sees them and a crash loses none.
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl MetricsFile {
    /// Opens `path` for a run that stands at `step`. Lines of later steps, left by a process that died after
    /// its last checkpoint, are removed, and so is a line that was cut short.
    pub(crate) fn open(path: &Path, epoch: u32, step: u64) -> Result<Self, Error> {
        if path.exists() {
            let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
            let mut kept = String::with_capacity(text.len());
            for line in text.lines() {
                let keep = match serde_json::from_str::<Record>(line) {
                    Ok(Record::Step(record)) => record.step <= step,
                    Ok(Record::Epoch(record)) => record.epoch <= epoch,
                    Ok(Record::RollBack(roll_back)) => roll_back.to_step <= step,
                    Err(_) => false,
                };
                if keep {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
            if kept != text {
                replace_file(path, kept.as_bytes())?;
            }
        }
        let file =
            OpenOptions::new().create(true).append(true).open(path).map_err(Error::file("open", path))?;
        Ok(MetricsFile { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Appends a step.
    pub(crate) fn step(&mut self, record: StepRecord) -> Result<(), Error> {
        self.write(&Record::Step(record))
    }

    /// Appends an epoch.
    pub(crate) fn epoch(&mut self, record: EpochRecord) -> Result<(), Error> {
        self.write(&Record::Epoch(record))
    }

    /// Appends a way back.
    pub(crate) fn roll_back(&mut self, roll_back: RollBack) -> Result<(), Error> {
        self.write(&Record::RollBack(roll_back))
    }

    fn write(&mut self, record: &Record) -> Result<(), Error> {
        let line = serde_json::to_string(record).map_err(|error| Error::Other(error.to_string()))?;
        writeln!(self.file, "{line}")
            .and_then(|()| self.file.flush())
            .map_err(Error::file("write", &self.path))
    }
}

/// The epoch lines of a metrics file.
pub(crate) fn read_epochs(path: &Path) -> Result<Vec<EpochRecord>, Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepRecord {
        StepRecord {
            epoch: 1,
            step,
            loss: Some(0.1),
            skipped: false,
            loss_spike: false,
            loss_scale: None,
            top1_error: 0.5,
            learning_rate: 0.1,
            skipped_samples: 0,
            images_per_second: 1.0,
            seconds: Phases::default().into(),
            exchange: ExchangeRecord {
                buckets: 1,
                bytes: 4,
                first_started: 0.0,
                last_finished: 0.0,
                busy: 0.0,
            },
            stragglers: Vec::new(),
        }
    }

    fn epoch(epoch: u32) -> EpochRecord {
        EpochRecord {
            epoch,
            step: u64::from(epoch) * 2,
            skipped_steps: 0,
            train_loss: 1.0,
            train_top1_error: 0.25,
            test_loss: Some(1.0),
            test_top1_error: Some(0.5),
            test_top5_error: None,
            test_top1_correct: Some(5),
            test_samples: Some(10),
            averaged_test_loss: None,
            averaged_test_top1_error: None,
            averaged_test_top5_error: None,
            images_per_second: 1.0,
            train_seconds: 1.0,
            test_seconds: 1.0,
        }
    }

    #[test]
    fn reopening_cuts_back_to_the_checkpoint_and_drops_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, 0, 0).unwrap();
        for index in 1..=5 {
            file.step(step(index)).unwrap();
            if index % 2 == 0 {
                file.epoch(epoch(index as u32 / 2)).unwrap();
            }
        }
        drop(file);
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"kind\":\"step\",\"epo").unwrap();
        drop(MetricsFile::open(&path, 1, 3).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let kinds: Vec<_> = text.lines().map(|line| serde_json::from_str::<Record>(line).unwrap()).collect();
        assert_eq!(
            kinds,
            [Record::Step(step(1)), Record::Step(step(2)), Record::Epoch(epoch(1)), Record::Step(step(3))]
        );
        assert_eq!(read_epochs(&path).unwrap(), [epoch(1)]);
    }
}
