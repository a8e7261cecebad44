//! When to save, and what becomes of it. Rank 0 decides and writes; on the other ranks nothing happens here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::checkpoint::{CheckpointError, Job, Keep, NotFiniteTensor, Outcome, Writer};
use crate::config::CheckpointConfig;
use crate::telemetry::CheckpointRecord;

/// A run that waits for a save says so after each of these.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// The saves of one process.
pub(super) struct Saving {
    every_steps: Option<u64>,
    every: Option<Duration>,
    keep: Keep,
    writer: Writer,
    /// When the last save began, or the run.
    last_began: Instant,
    /// A save that is due but has not begun, since the one before was still being written.
    owed: bool,
    /// For how long training stood still for the save under way.
    stall: Duration,
    /// Step and place of the last save that succeeded.
    last_saved: Option<(u64, PathBuf)>,
    /// Why the last save failed, if it did; the user knows.
    failure: Option<String>,
    /// Checkpoints that should have gone are still there, and the user knows.
    untidy: bool,
}

/// What a save that has ended has to say.
pub(super) struct Report {
    pub(super) record: CheckpointRecord,
    /// For the user, where something has changed.
    pub(super) warnings: Vec<String>,
    /// For the log.
    pub(super) path: Option<PathBuf>,
    /// What the run must not go on with.
    pub(super) not_finite: Option<NotFiniteTensor>,
}

impl Saving {
    pub(super) fn new(config: &CheckpointConfig) -> Self {
        Saving {
            every_steps: config.every_steps,
            every: config.every_minutes.and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok()),
            keep: Keep { last: config.keep_last, best: config.keep_best },
            writer: Writer::default(),
            last_began: Instant::now(),
            owed: false,
            stall: Duration::ZERO,
            last_saved: None,
            failure: None,
            untidy: false,
        }
    }

    pub(super) fn keep(&self) -> Keep {
        self.keep
    }

    /// Whether a save should follow the step that completes `step`, apart from those that all ranks know of. While
    /// one is being written the next is put off.
    pub(super) fn wants_after(&mut self, step: u64) -> bool {
        let by_steps = self.every_steps.is_some_and(|every| step.is_multiple_of(every));
        let by_time = self.every.is_some_and(|every| self.last_began.elapsed() >= every);
        self.owed |= by_steps || by_time;
        self.owed && self.writer.is_idle()
    }

    /// Begins to write; training has stood still for it since `began`.
    pub(super) fn start(&mut self, job: Job, began: Instant) -> Result<(), CheckpointError> {
        self.begins(began);
        self.writer.start(job)
    }

    fn begins(&mut self, began: Instant) {
        self.owed = false;
        self.last_began = began;
        self.stall = began.elapsed();
    }

    /// What to say of a save that has ended meanwhile.
    pub(super) fn poll(&mut self) -> Option<Report> {
        self.writer.poll().map(|outcome| self.report(outcome))
    }

    /// Waits for the save under way, but not for long.
    pub(super) fn wait(&mut self, at_most: Duration) -> Option<Report> {
        self.writer.wait(at_most).map(|outcome| self.report(outcome))
    }

    /// For a run that has waited for the save under way for `waited`, and has said so after `told`: what to say now. A
    /// file system that is gone may let its writer wait for ever, and the run with it.
    pub(super) fn reminder(&self, waited: Duration, told: &mut Duration) -> Option<String> {
        let step = self.writer.step().filter(|_| waited >= *told + REMIND_EVERY)?;
        *told = waited;
        Some(format!(
            "rank 0 has been writing the checkpoint of step {step} for {} s, and the run waits for it: does its file system \
             answer?",
            self.last_began.elapsed().as_secs()
        ))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writer.is_idle()
    }

    /// A save that could not even begin, for which training has stood still since `began`. The next one is tried when
    /// it is due.
    pub(super) fn failed_to_start(&mut self, step: u64, error: CheckpointError, began: Instant) -> Report {
        self.begins(began);
        self.report(Outcome { step, result: Err(error), duration: Duration::ZERO })
    }

    /// A sentence on what is lost when the run ends now after `step`, with the last save failed.
    pub(super) fn loss(&self, step: u64) -> Option<String> {
        let failure = self.failure.as_ref()?;
        let lost = match &self.last_saved {
            Some((saved, path)) => format!("{} steps since {} are lost", step - saved, path.display()),
            None => format!("all {step} steps are lost"),
        };
        Some(format!(
            "the run ends after step {step} and could not be saved: {failure}; {lost}; put that right and start the \
             same command again"
        ))
    }

    /// A checkpoint that was there when the process began.
    pub(super) fn began_at(&mut self, step: u64, path: PathBuf) {
        self.last_saved = Some((step, path));
    }

    fn report(&mut self, Outcome { step, result, duration }: Outcome) -> Report {
        let error = result.as_ref().err().map(ToString::to_string);
        let failed_before = std::mem::replace(&mut self.failure, error.clone()).is_some();
        let record = CheckpointRecord {
            step,
            error,
            bytes: result.as_ref().map_or(0, |written| written.bytes),
            stall_seconds: self.stall.as_secs_f64(),
            write_seconds: duration.as_secs_f64(),
        };
        match result {
            Ok(written) => {
                self.last_saved = Some((step, written.path.clone()));
                let works_again =
                    failed_before.then(|| format!("saving works again: {}", written.path.display()));
                let untidy_before = std::mem::replace(&mut self.untidy, written.untidy.is_some());
                let untidy = written.untidy.filter(|_| !untidy_before).map(|why| {
                    format!(
                        "a checkpoint is saved, but older ones stay: {why}; every save tries again to remove them"
                    )
                });
                let warnings = works_again.into_iter().chain(untidy).collect();
                Report { record, warnings, path: Some(written.path), not_finite: None }
            }
            Err(CheckpointError::NotFinite(found)) => {
                Report { record, warnings: Vec::new(), path: None, not_finite: Some(found) }
            }
            Err(error) => {
                let last = match &self.last_saved {
                    Some((_, path)) => format!("{} is still the newest checkpoint", path.display()),
                    None => "there is no checkpoint yet".into(),
                };
                let warning = (!failed_before).then(|| {
                    format!(
                        "nothing could be saved after step {step}: {error}; {last}; the run goes on, and tries again \
                         when the next save is due"
                    )
                });
                Report { record, warnings: warning.into_iter().collect(), path: None, not_finite: None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::RunState;

    fn saving(config: CheckpointConfig) -> Saving {
        Saving::new(&config)
    }

    #[test]
    fn a_save_that_is_due_while_another_is_written_follows_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut saving = saving(CheckpointConfig { every_steps: Some(3), ..CheckpointConfig::default() });
        assert_eq!([1, 2, 3].map(|step| saving.wants_after(step)), [false, false, true]);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let slow = move || {
            wait.recv().unwrap();
            Ok(Vec::new())
        };
        let job = Job {
            folder: dir.path().to_owned(),
            state: RunState { step: 3, ..RunState::default() },
            parts: vec![(crate::checkpoint::Part::Weights, Box::new(slow))],
            keep: saving.keep(),
            earlier: Vec::new(),
        };
        let stood_still_since = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        let mut told = Duration::ZERO;
        assert_eq!(saving.reminder(Duration::MAX / 2, &mut told), None, "nothing is written");
        saving.start(job, stood_still_since).unwrap();
        assert_eq!([4, 5, 6, 7].map(|step| saving.wants_after(step)), [false; 4], "it is under way");
        let seconds = [0, 29, 30, 31, 59, 60, 75, 90];
        let reminders = seconds.map(|waited| saving.reminder(Duration::from_secs(waited), &mut told));
        let said = [false, false, true, false, false, true, false, true];
        assert_eq!(reminders.each_ref().map(Option::is_some), said);
        assert!(
            reminders[2].as_ref().unwrap().contains("the checkpoint of step 3 for 100 s"),
            "{reminders:?}"
        );
        go.send(()).unwrap();
        let report = saving.wait(Duration::from_secs(60)).unwrap();
        let (stall, write) = (report.record.stall_seconds, report.record.write_seconds);
        assert!(
            (100.0..160.0).contains(&stall) && write < 60.0,
            "{stall} s of standing still, {write} s of writing"
        );
        assert_eq!((report.record.step, report.record.error, report.warnings), (3, None, Vec::new()));
        assert_eq!(saving.last_saved.as_ref().unwrap().0, 3);
        assert!(saving.wants_after(8), "the one that was due at 6");
    }

    #[test]
    fn a_save_that_cannot_begin_is_tried_again_when_the_next_is_due() {
        let mut saving = saving(CheckpointConfig { every_steps: Some(3), ..CheckpointConfig::default() });
        assert!(saving.wants_after(3));
        let report = saving.failed_to_start(3, CheckpointError::Tensors("no room".into()), Instant::now());
        assert!(
            report.warnings[0].contains("tries again when the next save is due"),
            "{:?}",
            report.warnings
        );
        assert_eq!([4, 5, 6].map(|step| saving.wants_after(step)), [false, false, true]);
    }

    #[test]
    fn minutes_count_from_the_last_save() {
        let config = CheckpointConfig { every_minutes: Some(1.0), ..CheckpointConfig::default() };
        let mut saving = saving(config);
        assert!(!saving.wants_after(1));
        saving.last_began = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
        assert!(saving.wants_after(2));
    }

    #[test]
    fn a_failure_is_told_once_and_its_end_too() {
        let full = || CheckpointError::Tensors("no room".into());
        let mut saving = saving(CheckpointConfig::default());
        let first = saving.failed_to_start(1, full(), Instant::now());
        assert!(first.warnings[0].contains("no room") && first.not_finite.is_none());
        assert!(saving.loss(2).unwrap().contains("all 2 steps are lost"));
        saving.began_at(1, "step-1".into());
        assert!(saving.loss(5).unwrap().contains("4 steps since step-1 are lost"));
        let second = saving.failed_to_start(2, full(), Instant::now());
        assert!(second.warnings.is_empty() && second.record.error.is_some());
        let mut written = |step, untidy: Option<&str>| {
            let untidy = untidy.map(str::to_owned);
            let written = crate::checkpoint::Written { path: "step".into(), bytes: 7, untidy };
            saving.report(Outcome { step, result: Ok(written), duration: Duration::ZERO })
        };
        let third = written(3, None);
        assert_eq!((third.record.bytes, third.record.error), (7, None));
        assert!(third.warnings[0].contains("works again"));
        for (untidy, warnings) in
            [(None, 0), (Some("busy"), 1), (Some("busy"), 0), (None, 0), (Some("busy"), 1)]
        {
            let report = written(4, untidy);
            assert_eq!((report.warnings.len(), report.record.error), (warnings, None), "{untidy:?}");
        }
        assert_eq!(saving.loss(5), None);
        let nan = NotFiniteTensor { tensor: "fc".into(), step: 4 };
        assert_eq!(saving.failed_to_start(4, nan.clone().into(), Instant::now()).not_finite, Some(nan));
    }
}
