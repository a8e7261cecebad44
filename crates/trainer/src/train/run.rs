//! One run on one rank: set up, loop over its steps, evaluate, save and end. The step itself is
//! [`crate::engine`]'s; here stands what comes before and after each one.

mod trouble;

use std::fs::File;
use std::time::{Duration, Instant};

use self::trouble::Judgement;
use super::resume::{Start, fresh_position, resume, share};
use super::saving::{Report, Saving};
use super::stop::StopRequests;
use super::{Finish, StopAfter, TrainOptions, broadcast_state, decoder_threads, training_feed};
use crate::checkpoint::{CheckpointError, Job, LazyTensors, Part, RunState};
use crate::config::Compression;
use crate::device::Compute;
use crate::engine::{Engine, StepError, StepOutcome, WeightSet, Wishes};
use crate::error::Error;
use crate::evaluate::{Evaluation, Views, evaluate_unless};
use crate::feed::Feed;
use crate::health::desync;
use crate::health::straggler::StragglerWatch;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::telemetry::{
    EpochRecord, Exporter, MetricsFile, Progress, Record, StepRecord, draw_curves, export_checkpoint,
    export_epoch, export_step, read_epochs,
};
use crate::transfer;

/// One run on one rank.
pub(super) struct Run<'a> {
    session: &'a Session,
    plan: &'a Plan,
    engine: Engine<'a>,
    dir: RunDir,
    position: RunState,
    workers: usize,
    stop_requests: StopRequests,
    saving: Saving,
    /// Step and epoch of the checkpoint that was begun or found last.
    saved: Option<(u64, u32)>,
    /// On rank 0: what a save in the background found that ends the run, until all ranks hear of it.
    fatal: Option<CheckpointError>,
    progress: Progress,
    stragglers: StragglerWatch,
    /// On rank 0.
    metrics: Option<MetricsFile>,
    /// On rank 0: keeps other runs out of the folder.
    _lock: Option<File>,
    /// Step with which this process began.
    first_step: u64,
    epoch_images: u64,
    epoch_duration: Duration,
    skipped_in_a_row: u64,
    /// The picture of the curves could not be drawn, and the user knows.
    drawing_failed: bool,
}

/// While all ranks wait for rank 0 to write, none waits longer than that for another one.
const WAIT_FOR_SAVE: Duration = Duration::from_millis(200);

impl<'a> Run<'a> {
    /// Collective: everything up to the first step.
    pub(super) fn set_up(
        session: &'a Session,
        plan: &'a Plan,
        compute: Compute,
        dir: RunDir,
        options: &TrainOptions,
        stop_requests: StopRequests,
    ) -> Result<Self, Error> {
        let mut engine = session.agree(Engine::new(plan, compute, session.comm().clone()))?;
        session.agree(engine.rehearse(options.inject_fault))?;
        session.agree_equal("the layout of parameters", &engine.state.layout.description())?;
        session.agree_equal("the table of buckets", &engine.describe_buckets())?;
        let fresh = Start { position: fresh_position(plan), from: None, passed_over: Vec::new() };
        let start = if session.is_leader() { resume(plan, &engine, &dir, options, fresh) } else { Ok(fresh) };
        let Start { position, from, passed_over } = session.agree(start)?;
        let from = from.filter(|path| path.starts_with(dir.checkpoints()));
        let (position, is_saved): (RunState, bool) = share(session, &(position, from.is_some()))?;
        broadcast_state(session, &engine)?;

        let exporter = match plan.config.telemetry.prometheus {
            Some(address) => {
                Exporter::start(address, session.topology().local_rank, session.topology().rank).map(Some)
            }
            None => Ok(None),
        };
        let served_at = session.agree(exporter)?;

        session.flight().keep_in(dir.flight());
        let lock = session.agree(if session.is_leader() { dir.lock().map(Some) } else { Ok(None) })?;
        let metrics = if session.is_leader() {
            dir.describe(plan, compute, session.comm(), &engine.state.layout)
                .and_then(|()| MetricsFile::open(&dir.metrics(), position.epoch, position.step))
                .map(Some)
        } else {
            Ok(None)
        };
        let metrics = session.agree(metrics)?;
        let progress = Progress::new(session.is_leader(), plan.config.train.epochs, plan.steps_per_epoch);
        for error in &passed_over {
            progress.warn(&format!("{error}; it is passed over for the one before it"));
        }
        let mut saving = Saving::new(&plan.config.checkpoint);
        if let Some(path) = from {
            saving.began_at(position.step, path);
        }
        let workers = decoder_threads(plan, session, compute);
        let first_step = position.step;
        let run = Run {
            session,
            plan,
            engine,
            dir,
            saved: is_saved.then_some((position.step, position.epoch)),
            position,
            workers,
            stop_requests,
            saving,
            fatal: None,
            progress,
            stragglers: StragglerWatch::new(
                plan.config.telemetry.straggler_factor,
                session.topology().world_size,
            ),
            metrics,
            _lock: lock,
            first_step,
            epoch_images: 0,
            epoch_duration: Duration::ZERO,
            skipped_in_a_row: 0,
            drawing_failed: false,
        };
        run.introduce(compute, served_at);
        Ok(run)
    }

    fn introduce(&self, compute: Compute, served_at: Option<std::net::SocketAddr>) {
        let plan = self.plan;
        let topology = self.session.topology();
        self.progress.say(&format!(
            "{} ({} parameters) on {} ({} training images), {} rank{} on {:?} with {} thread{} and {} decoder{} each, {}",
            plan.architecture,
            plan.network.parameter_count(),
            plan.config.data.kind,
            plan.data.train.len(),
            topology.world_size,
            if topology.world_size == 1 { "" } else { "s" },
            compute.device,
            compute.threads,
            if compute.threads == 1 { "" } else { "s" },
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.session.comm().description(),
        ));
        self.progress.say(&format!("run directory: {}", self.dir.root().display()));
        if self.position.step > 0 && !self.is_finished() {
            self.progress.say(&format!(
                "resumed after step {} of {} (epoch {})",
                self.position.step,
                plan.total_steps(),
                self.position.step / plan.steps_per_epoch + 1
            ));
        }
        if self.position.step > 0 && plan.config.comm.compression == Compression::PowerSgd {
            self.progress.say(
                "power-sgd begins with an empty memory: what it had left out of earlier gradients was not saved",
            );
        }
        if let Some(address) = served_at {
            self.progress.say(&format!("metrics for Prometheus: http://{address}/metrics"));
        }
    }

    pub(super) fn run(mut self, stop_after: Option<StopAfter>) -> Result<Finish, Error> {
        if !self.is_finished() && self.position.step > 0 && self.reached(stop_after) {
            self.progress.say(
                "nothing to do: the run already stands at --stop-after or beyond; without it, or with a later one, the \
                 same command goes on",
            );
            return Ok(Finish::Reached);
        }
        let mut feed = self.session.agree(self.feed(self.position.step))?;
        while !self.is_finished() {
            let mut wishes = Wishes::default();
            if !self.awaits_evaluation() {
                let Some(StepOutcome { stop, save, .. }) = self.step(&mut feed)? else {
                    drop(feed);
                    feed = self.session.agree(self.feed(self.position.step))?;
                    continue;
                };
                wishes = Wishes { stop: stop || self.reached_within_epoch(stop_after), save };
            }
            let mut epoch_due = false;
            if self.awaits_evaluation() && !wishes.stop {
                wishes.stop = !self.end_epoch()?;
                epoch_due = !wishes.stop
                    && self.position.epoch.is_multiple_of(self.plan.config.checkpoint.every_epochs);
            }
            let finished = self.is_finished();
            let stop = !finished && (wishes.stop || self.reached(stop_after));
            if wishes.save || epoch_due || stop || finished {
                self.save()?;
            }
            if let Some(report) = self.saving.poll() {
                self.tell(report);
            }
            if stop {
                self.progress.finish();
                self.end_saving()?;
                let reason = match self.reached(stop_after) {
                    true => "by --stop-after".into(),
                    false => self.stop_requests.reason(),
                };
                let step = self.position.step;
                let more =
                    if stop_after.is_some() { ", without --stop-after or with a later one," } else { "" };
                self.progress.say(&format!(
                    "stopped {reason} after step {step}; the same command{more} goes on from here"
                ));
                return Ok(Finish::Stopped);
            }
        }
        self.progress.finish();
        self.end_saving()?;
        self.conclude();
        Ok(Finish::Completed)
    }

    /// This rank's micro batches from step `step` on.
    fn feed(&self, step: u64) -> Result<Feed, Error> {
        training_feed(self.plan, self.engine.device(), step, self.workers)
    }

    fn is_finished(&self) -> bool {
        self.position.epoch >= self.plan.config.train.epochs
    }

    /// Whether all steps of an epoch are done, but not its evaluation.
    fn awaits_evaluation(&self) -> bool {
        self.position.step == u64::from(self.position.epoch + 1) * self.plan.steps_per_epoch
    }

    fn reached(&self, stop_after: Option<StopAfter>) -> bool {
        match stop_after {
            Some(StopAfter::Epoch(epoch)) => self.position.epoch >= epoch,
            Some(StopAfter::Step(step)) => self.position.step >= step,
            None => false,
        }
    }

    /// A stop after a step does not wait for an evaluation, but at the end of the run.
    fn reached_within_epoch(&self, stop_after: Option<StopAfter>) -> bool {
        matches!(stop_after, Some(StopAfter::Step(_)))
            && self.position.step < self.plan.total_steps()
            && self.reached(stop_after)
    }

    /// Collective: one step; `None` when the run stands at an earlier checkpoint instead.
    fn step(&mut self, feed: &mut Feed) -> Result<Option<StepOutcome>, Error> {
        let step = self.position.step;
        let learning_rate = self.plan.schedule.rate(step) * self.position.health.rate_factor();
        let loss_scale = self.position.health.loss_scale.map(|loss_scale| loss_scale.scale);
        self.engine.loss_scale = loss_scale.unwrap_or(1.0);
        if self.plan.config.optimizer.reset_momentum_at_milestones == Some(true)
            && self.plan.schedule.milestone_begins(step)
        {
            self.engine.state.optimizer.reset()?;
        }
        let save = self.session.is_leader() && self.saving.wants_after(step + 1);
        let stop_requests = &self.stop_requests;
        let wishes = || Wishes { stop: stop_requests.requested(), save };
        let outcome = match self.engine.step(step, learning_rate, &wishes, feed) {
            Ok(outcome) => outcome,
            Err(StepError::Here(error)) => return self.session.agree(Err(error)),
            Err(StepError::Elsewhere) => {
                self.session.agree(Ok(()))?;
                return Err(Error::Other("a rank announced a failure and then withdrew it".into()));
            }
            Err(StepError::Exchange(error)) => return Err(error),
        };
        if step == self.first_step
            && !outcome.exchange.unready.is_empty()
            && !self.engine.exchanges_afterwards()
        {
            let names = self.engine.segment_names(&outcome.exchange.unready);
            tracing::warn!(
                "gradients that never became ready, so nothing behind them was exchanged early: {names}"
            );
        }
        let images = self.plan.config.train.global_batch;
        let counted = images as u64 - outcome.skipped.min(images as u64);
        if counted == 0 {
            self.session.agree::<()>(Err(no_sample_left(step)))?;
        }
        let judgement = self.judge(step, learning_rate, &outcome)?;
        if judgement == Judgement::RolledBack {
            return Ok(None);
        }
        self.position.step += 1;
        self.position.top1_error = None;
        if outcome.updated {
            self.position.epoch_loss_sum += f64::from(outcome.loss);
            self.position.epoch_correct += outcome.correct;
            self.position.epoch_counted += counted;
        }
        self.position.epoch_skipped_samples += outcome.skipped;
        self.epoch_images += images as u64;
        self.epoch_duration += outcome.phases.step;
        for sentence in self.stragglers.step(self.session, self.position.step, &outcome.phases) {
            self.progress.say(&sentence);
        }
        let record = StepRecord {
            epoch: (step / self.plan.steps_per_epoch) as u32 + 1,
            step: self.position.step,
            loss: Some(outcome.loss).filter(|loss| loss.is_finite()),
            skipped: !outcome.updated,
            top1_error: 1.0 - outcome.correct as f64 / counted as f64,
            loss_spike: judgement == Judgement::Spike,
            loss_scale,
            learning_rate,
            gradient_norm: outcome.gradient_norm,
            skipped_samples: outcome.skipped,
            images_per_second: images as f64 / outcome.phases.step.as_secs_f64(),
            seconds: outcome.phases.into(),
            exchange: (&outcome.exchange).into(),
            stragglers: self.stragglers.named().to_vec(),
        };
        export_step(&record, images);
        self.progress.step(&record);
        self.record(Record::Step(record));
        let check_every = self.plan.config.train.check_replicas_every;
        if self.session.topology().world_size > 1
            && check_every > 0
            && self.position.step.is_multiple_of(check_every)
        {
            desync::check(self.session, &self.plan.network, &self.engine.state, self.position.step)?;
        }
        Ok(Some(outcome))
    }

    /// On rank 0: a line of metrics.
    fn record(&mut self, record: Record) {
        if let Some(warning) = self.metrics.as_mut().and_then(|metrics| metrics.write(&record)) {
            self.progress.warn(&warning);
        }
    }

    /// Collective: evaluates and reports the epoch whose last step has just been done. False if a rank was asked to
    /// stop meanwhile: then the epoch is not complete, and the run goes on with its evaluation.
    fn end_epoch(&mut self) -> Result<bool, Error> {
        self.session.flight().enter(None, "evaluation");
        let (epoch, epochs) = (self.position.epoch + 1, self.plan.config.train.epochs);
        let due = epoch.is_multiple_of(self.plan.config.train.evaluate_every_epochs);
        let (mut evaluation, mut averaged) = (None, None);
        if due || epoch == epochs {
            evaluation = self.evaluate(WeightSet::Current)?;
            if evaluation.is_none() {
                return Ok(false);
            }
            if self.engine.state.averaged.is_some() {
                averaged = self.evaluate(WeightSet::Averaged)?;
                if averaged.is_none() {
                    return Ok(false);
                }
            }
        }
        self.position.epoch = epoch;
        let skipped_steps = std::mem::take(&mut self.position.epoch_skipped);
        let steps = (self.plan.steps_per_epoch - skipped_steps) as f64;
        let train_seconds = self.epoch_duration.as_secs_f64();
        let record = EpochRecord {
            epoch: self.position.epoch,
            step: self.position.step,
            skipped_steps,
            skipped_samples: self.position.epoch_skipped_samples,
            train_loss: self.position.epoch_loss_sum / steps,
            train_top1_error: 1.0 - self.position.epoch_correct as f64 / self.position.epoch_counted as f64,
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

    /// Collective: rank 0 copies what belongs to a checkpoint, once the one before is written, and begins to write.
    fn save(&mut self) -> Result<(), Error> {
        let here = Some((self.position.step, self.position.epoch));
        if self.saved == here {
            return Ok(());
        }
        self.session.flight().enter(None, "checkpoint");
        let began = Instant::now();
        self.await_save()?;
        self.saved = here;
        self.engine.state.optimizer.gather()?;
        if self.session.is_leader()
            && let Err(error) = self.job().and_then(|job| self.saving.start(job, began))
        {
            let report = self.saving.failed_to_start(self.position.step, error);
            self.tell(report);
        }
        self.engine.state.optimizer.release();
        Ok(())
    }

    /// A copy of all that belongs to a checkpoint.
    fn job(&self) -> Result<Job, CheckpointError> {
        let part = |part| -> Result<(Part, LazyTensors), CheckpointError> {
            let tensors = transfer::snapshot(&self.plan.network, &self.engine.state, part);
            Ok((part, tensors.map_err(|error| CheckpointError::Tensors(error.to_string()))?))
        };
        let mut parts = vec![part(Part::Weights)?, part(Part::Optimizer)?];
        if self.engine.state.averaged.is_some() {
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

    /// Collective: waits until nothing is being written any more; fails if that ends the run.
    fn await_save(&mut self) -> Result<(), Error> {
        loop {
            if let Some(report) = self.saving.wait(WAIT_FOR_SAVE) {
                self.tell(report);
            }
            if !self.session.any(!self.saving.is_idle())? {
                let fatal = self.fatal.take().map_or(Ok(()), |error| Err(error.into()));
                return self.session.agree(fatal);
            }
        }
    }

    /// Collective: the run ends here; fails if that loses anything.
    fn end_saving(&mut self) -> Result<(), Error> {
        self.session.flight().enter(None, "checkpoint");
        self.await_save()?;
        let loss = self.saving.loss(self.position.step);
        self.session.agree(loss.map_or(Ok(()), |sentence| Err(Error::Other(sentence))))
    }

    /// What a save that has ended has to say.
    fn tell(&mut self, report: Report) {
        let Report { record, warning, path, fatal } = report;
        if let Some(path) = path {
            let seconds = record.write_seconds;
            tracing::info!(path = %path.display(), seconds, stall = record.stall_seconds, "saved a checkpoint");
        }
        if let Some(warning) = warning {
            self.progress.warn(&warning);
        }
        export_checkpoint(&record);
        self.record(Record::Checkpoint(record));
        self.fatal = self.fatal.take().or(fatal);
    }

    /// Says how the run ended.
    fn conclude(&self) {
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

/// Why a run ends whose step had no sample that could be decoded: what it would go on with is no training.
fn no_sample_left(step: u64) -> Error {
    Error::Other(format!(
        "no sample of step {} could be decoded (the lines above say why); data.on_bad_sample: skip-and-log is for a few \
         bad samples among good ones, and `wrn-dist data verify` finds damage",
        step + 1
    ))
}
