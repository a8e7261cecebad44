//! The end of an epoch of a run, and of its last one: evaluation, the line of metrics, the curves. Weights are not
//! changed here.

use std::time::Duration;

use super::Run;
use crate::engine::WeightSet;
use crate::error::Error;
use crate::evaluate::{Evaluation, Views, evaluate_unless};
use crate::telemetry::{EpochRecord, Record, draw_curves, export_epoch, read_epochs};

impl Run<'_> {
    /// Collective: evaluates and reports the epoch whose last step has just been done. False if a rank was asked to
    /// stop meanwhile: then the epoch is not complete, and the run goes on with its evaluation.
    pub(super) fn end_epoch(&mut self) -> Result<bool, Error> {
        self.session.flight().enter(None, "evaluation");
        let (epoch, epochs) = (self.position.epoch + 1, self.plan.config.train.epochs);
        let due = epoch.is_multiple_of(self.plan.config.train.evaluate_every_epochs);
        let (mut evaluation, mut averaged) = (None, None);
        if due || epoch == epochs {
            evaluation = self.evaluate(WeightSet::Current)?;
            if evaluation.is_none() {
                return Ok(false);
            }
            if self.plan.config.train.averaging.is_some() {
                averaged = self.evaluate(WeightSet::Averaged)?;
                if averaged.is_none() {
                    return Ok(false);
                }
            }
        }
        self.position.epoch = epoch;
        let skipped_steps = std::mem::take(&mut self.position.epoch_skipped);
        let (steps, counted) = (self.plan.steps_per_epoch - skipped_steps, self.position.epoch_counted);
        let train_seconds = self.epoch_duration.as_secs_f64();
        let record = EpochRecord {
            epoch: self.position.epoch,
            step: self.position.step,
            skipped_steps,
            skipped_samples: self.position.epoch_skipped_samples,
            train_loss: (steps > 0).then(|| self.position.epoch_loss_sum / steps as f64),
            train_top1_error: (counted > 0)
                .then(|| 1.0 - self.position.epoch_correct as f64 / counted as f64),
            test_loss: evaluation.map(|evaluation| evaluation.loss()),
            test_top1_error: evaluation.map(|evaluation| evaluation.top1_error()),
            test_top5_error: evaluation.and_then(|evaluation| evaluation.top5_error()),
            test_top1_correct: evaluation.map(|evaluation| evaluation.top1_correct),
            test_samples: evaluation.map(|evaluation| evaluation.samples),
            test_skipped_samples: evaluation.map(|evaluation| evaluation.skipped),
            averaged_test_loss: averaged.map(|averaged| averaged.loss()),
            averaged_test_top1_error: averaged.map(|averaged| averaged.top1_error()),
            averaged_test_top5_error: averaged.and_then(|averaged| averaged.top5_error()),
            images_per_second: if self.epoch_images == 0 {
                0.0
            } else {
                self.epoch_images as f64 / train_seconds
            },
            train_seconds,
            test_seconds: evaluation.iter().chain(&averaged).map(|of| of.duration.as_secs_f64()).sum(),
        };
        self.position.epoch_loss_sum = 0.0;
        self.position.epoch_correct = 0;
        self.position.epoch_counted = 0;
        self.position.epoch_skipped_samples = 0;
        self.epoch_images = 0;
        self.epoch_duration = Duration::ZERO;
        if let Some(error) = record.test_top1_error {
            let best = self.position.best_top1_error.unwrap_or(1.0);
            self.position.best_top1_error = Some(best.min(error));
        }
        self.position.top1_error = record.test_top1_error;
        export_epoch(&record);
        self.progress.epoch(&record);
        self.record(Record::Epoch(record));
        if self.session.is_leader() {
            self.draw();
        }
        Ok(true)
    }

    /// Collective; `None` if a rank was asked to stop meanwhile.
    fn evaluate(&self, weights: WeightSet) -> Result<Option<Evaluation>, Error> {
        let stop = || self.stop_requests.requested();
        evaluate_unless(&stop, self.session, self.plan, &self.engine, self.workers, Views::One, weights)
    }

    fn draw(&mut self) {
        let title = format!("{} on {}", self.plan.architecture, self.plan.config.data.kind);
        let drawn = read_epochs(&self.dir.metrics())
            .and_then(|epochs| draw_curves(&self.dir.curves(), &title, &epochs));
        let failed_before = std::mem::replace(&mut self.drawing_failed, drawn.is_err());
        if let (Err(error), false) = (drawn, failed_before) {
            self.progress.warn(&format!("the curves cannot be drawn: {error}; the run goes on without them"));
        }
    }

    /// Says how the run ended.
    pub(super) fn conclude(&self) {
        if !self.session.is_leader() {
            return;
        }
        match read_epochs(&self.dir.metrics()) {
            Err(error) => self.progress.warn(&error.to_string()),
            Ok(epochs) => {
                if let Some(error) = epochs.last().and_then(|epoch| epoch.test_top1_error) {
                    self.progress.say(&format!(
                        "test accuracy {:.2} % (top-1 error {:.2} %) after {} epochs",
                        100.0 * (1.0 - error),
                        100.0 * error,
                        self.position.epoch
                    ));
                }
            }
        }
        self.progress.say(&format!("curves: {}", self.dir.curves().display()));
    }
}
