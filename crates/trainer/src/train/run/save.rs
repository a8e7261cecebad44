//! How the ranks of a run save together: rank 0 copies and writes, the others wait where they must. What a save finds in
//! the numbers is decided here, on all ranks alike; when to save is [`crate::train::saving`]'s business.

use std::time::{Duration, Instant};

use super::trouble::ADVICE;
use super::{Course, Run};
use crate::checkpoint::{CheckpointError, Job, LazyTensors, NotFiniteTensor, Part};
use crate::config::OnNan;
use crate::error::Error;
use crate::telemetry::{MetricsFile, Record, export_checkpoint};
use crate::train::resume::share;
use crate::train::saving::Report;
use crate::transfer;

/// While all ranks wait for rank 0 to write, none waits longer than that for another one.
const WAIT_FOR_SAVE: Duration = Duration::from_millis(200);

impl Run<'_> {
    /// Collective: rank 0 copies what belongs to a checkpoint, once the one before is written, and begins to write.
    /// Nothing is begun where that one has led the run back to an earlier checkpoint.
    pub(super) fn save(&mut self) -> Result<Course, Error> {
        let here = Some((self.position.step, self.position.epoch));
        if self.saved == here {
            return Ok(Course::Same);
        }
        self.session.flight().enter(None, "checkpoint");
        let began = Instant::now();
        if self.await_save()? == Course::Earlier {
            return Ok(Course::Earlier);
        }
        self.saved = here;
        self.engine.state()?.optimizer.gather()?;
        if self.session.is_leader()
            && let Err(error) = self.job().and_then(|job| self.saving.start(job, began))
        {
            let report = self.saving.failed_to_start(self.position.step, error, began);
            self.tell(report);
        }
        self.engine.state()?.optimizer.release();
        Ok(Course::Same)
    }

    /// A copy of all that belongs to a checkpoint.
    fn job(&self) -> Result<Job, CheckpointError> {
        let unreadable = |error: Error| CheckpointError::Tensors(error.to_string());
        let state = self.engine.state().map_err(unreadable)?;
        let part = |part| -> Result<(Part, LazyTensors), CheckpointError> {
            Ok((part, transfer::snapshot(&self.plan.network, state, part).map_err(unreadable)?))
        };
        let mut parts = vec![part(Part::Weights)?, part(Part::Optimizer)?];
        if state.averaged.is_some() {
            parts.push(part(Part::Averaged)?);
        }
        Ok(Job {
            folder: self.dir.checkpoints(),
            state: self.position.clone(),
            parts,
            keep: self.saving.keep(),
            earlier: self.metrics.iter().filter_map(MetricsFile::handle).collect(),
        })
    }

    /// Collective: waits until nothing is being written any more; what was not finite in it, on every rank.
    pub(super) fn await_writer(&mut self) -> Result<Option<NotFiniteTensor>, Error> {
        let (begin, mut told) = (Instant::now(), Duration::ZERO);
        loop {
            if let Some(report) = self.saving.wait(WAIT_FOR_SAVE) {
                self.tell(report);
            }
            if let Some(reminder) = self.saving.reminder(begin.elapsed(), &mut told) {
                self.progress.warn(&reminder);
            }
            if !self.session.any(!self.saving.is_idle())? {
                return share(self.session, &self.not_finite.take());
            }
        }
    }

    /// Collective: as [`Run::await_writer`], and does what `train.on_nan` says about what was found. Weights that are
    /// not finite are not mended by leaving steps out, so only a way back keeps the run from its end.
    fn await_save(&mut self) -> Result<Course, Error> {
        let Some(found) = self.await_writer()? else { return Ok(Course::Same) };
        if self.plan.config.train.on_nan == OnNan::RollBack {
            self.roll_back(found.step.saturating_sub(1), found.to_string())?;
            return Ok(Course::Earlier);
        }
        let sentence = || format!("{found}: nothing is saved; {ADVICE}");
        self.session.agree(match self.session.is_leader() {
            true => Err(Error::Other(sentence())),
            false => Ok(Course::Same),
        })
    }

    /// Collective: the run ends here, unless it must go back; fails if that loses anything.
    pub(super) fn end_saving(&mut self) -> Result<Course, Error> {
        self.session.flight().enter(None, "checkpoint");
        let course = self.await_save()?;
        if course == Course::Same {
            let loss = self.saving.loss(self.position.step);
            self.session.agree(loss.map_or(Ok(()), |sentence| Err(Error::Other(sentence))))?;
        }
        Ok(course)
    }

    /// What a save that has ended has to say.
    pub(super) fn tell(&mut self, report: Report) {
        let Report { record, warnings, path, not_finite } = report;
        if let Some(path) = path {
            let seconds = record.write_seconds;
            tracing::info!(path = %path.display(), seconds, stall = record.stall_seconds, "saved a checkpoint");
        }
        for warning in warnings {
            self.progress.warn(&warning);
        }
        export_checkpoint(&record);
        self.record(Record::Checkpoint(record));
        self.not_finite = self.not_finite.take().or(not_finite);
    }
}
