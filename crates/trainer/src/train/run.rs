//! One run on one rank: set up, and loop over its steps. The step itself is [`crate::engine`]'s; here stands what comes
//! before and after each one, but for the end of an epoch ([`epoch`]), saving ([`save`]) and what is done when numbers
//! go wrong ([`trouble`]).

mod epoch;
mod save;
mod trouble;

use std::fs::File;
use std::time::Duration;

use self::trouble::Judgement;
use super::resume::{Start, fresh_position, lies_in, resume, share};
use super::saving::Saving;
use super::stop::StopRequests;
use super::{Finish, Resume, StopAfter, TrainOptions, broadcast_state, decoder_threads, training_feed};
use crate::backend;
use crate::checkpoint::{self, Later, NotFiniteTensor, RunState};
use crate::config::Compression;
use crate::device::Compute;
use crate::engine::{Engine, StepError, StepOutcome, Wishes};
use crate::error::Error;
use crate::feed::Feed;
use crate::files;
use crate::health::straggler::StragglerWatch;
use crate::health::{desync, roll_back};
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::telemetry::{Exporter, MetricsFile, Progress, Record, StepRecord, export_step};

/// Where a run stands after something that may lead it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// Where it stood before.
    Same,
    /// At an earlier checkpoint.
    Earlier,
}

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
    /// On rank 0: what a save in the background found in the numbers, until all ranks hear of it.
    not_finite: Option<NotFiniteTensor>,
    progress: Progress,
    stragglers: StragglerWatch,
    /// On rank 0.
    metrics: Option<MetricsFile>,
    /// On rank 0: keeps other runs out of the folder.
    _lock: Option<File>,
    /// Step with which this process began.
    first_step: u64,
    /// `--resume` named a checkpoint: to name it again would be to go back to it again.
    taken_back: bool,
    epoch_images: u64,
    epoch_duration: Duration,
    /// The picture of the curves could not be drawn, and the user knows.
    drawing_failed: bool,
}

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
        session.agree_equal("the layout of parameters", &engine.layout().description())?;
        session.agree_equal("the table of buckets", &engine.describe_buckets())?;
        // Before anything in it is read: a run that ends meanwhile would be undone. A folder that is not there yet holds
        // nothing, and is not made for a run that is refused.
        let lock_early = session.is_leader() && dir.root().exists();
        let held = session.agree(if lock_early { dir.lock().map(Some) } else { Ok(None) })?;
        let fresh = Start { position: fresh_position(plan), from: None, warnings: Vec::new() };
        let start = if session.is_leader() { resume(plan, &engine, &dir, options, fresh) } else { Ok(fresh) };
        let Start { position, from, warnings } = session.agree(start)?;
        let from = from.filter(|path| lies_in(path, &dir.checkpoints()));
        let (position, is_saved): (RunState, bool) = share(session, &(position, from.is_some()))?;
        broadcast_state(session, &engine)?;

        let exporter = match plan.config.telemetry.prometheus {
            Some(address) => {
                Exporter::start(address, session.topology().local_rank, session.topology().rank).map(Some)
            }
            None => Ok(None),
        };
        let served_at = session.agree(exporter)?;

        session.flight().keep_in(dir.flight(), files::write_whole);
        let lock = match held {
            None if session.is_leader() => dir.lock().map(Some),
            held => Ok(held),
        };
        let lock = session.agree(lock)?;
        let mut saving = Saving::new(&plan.config.checkpoint);
        let opened = if session.is_leader() {
            dir.describe(plan, compute, session.comm(), engine.layout())
                // Before the lines of their steps go.
                .and_then(|()| {
                    let (folder, step) = (dir.checkpoints(), position.step);
                    Ok(checkpoint::drop_later(&folder, step, Later::SetAside, saving.keep())?)
                })
                .and_then(|set_aside| {
                    let metrics = MetricsFile::open(&dir.metrics(), position.epoch, position.step)?;
                    Ok((Some(metrics), set_aside))
                })
        } else {
            Ok((None, Vec::new()))
        };
        let (metrics, set_aside) = session.agree(opened)?;
        let progress = Progress::new(session.is_leader(), plan.config.train.epochs, plan.steps_per_epoch);
        for warning in &warnings {
            progress.warn(warning);
        }
        if !set_aside.is_empty() {
            let steps: Vec<String> = set_aside.iter().map(u64::to_string).collect();
            progress.say(&format!(
                "moved to {}, since the run goes on from an earlier one: checkpoint of step {}",
                dir.checkpoints().join(checkpoint::ABANDONED).display(),
                steps.join(", ")
            ));
        }
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
            not_finite: None,
            progress,
            stragglers: StragglerWatch::new(
                plan.config.telemetry.straggler_factor,
                session.topology().world_size,
            ),
            metrics,
            _lock: lock,
            first_step,
            taken_back: matches!(options.resume, Resume::Path(_)),
            epoch_images: 0,
            epoch_duration: Duration::ZERO,
            drawing_failed: false,
        };
        run.introduce(compute, served_at);
        Ok(run)
    }

    fn introduce(&self, compute: Compute, served_at: Option<std::net::SocketAddr>) {
        let plan = self.plan;
        let topology = self.session.topology();
        self.progress.say(&format!(
            "{} ({} parameters) on {} ({}), {} rank{} on {:?} with {} thread{} and {} decoder{} each, {}",
            plan.architecture,
            plan.network.parameter_count(),
            plan.config.data.kind,
            plan.training_images(),
            topology.world_size,
            if topology.world_size == 1 { "" } else { "s" },
            compute.device,
            compute.threads,
            if compute.threads == 1 { "" } else { "s" },
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.session.comm().description(),
        ));
        if self.engine.exchanges_afterwards() {
            let why = backend::why_not_nccl(&plan.config, topology.world_size);
            self.progress.say(&format!(
                "gradients are exchanged in host memory, after backward: {}",
                why.unwrap_or("this NCCL sums host memory")
            ));
        }
        self.progress.say(&format!("run directory: {}", self.dir.root().display()));
        if self.position.step > 0 && !self.is_finished() {
            self.progress.say(&format!(
                "resumed after step {} of {} (epoch {})",
                self.position.step,
                plan.total_steps(),
                self.position.step / plan.steps_per_epoch + 1
            ));
        }
        if plan.config.comm.compression == Compression::PowerSgd {
            self.tell_of_power_sgd();
        }
        if let Some(address) = served_at {
            self.progress.say(&format!("metrics for Prometheus: http://{address}/metrics"));
        }
    }

    fn tell_of_power_sgd(&self) {
        if self.position.step > 0 {
            self.progress.say(
                "power-sgd begins with an empty memory: what it had left out of earlier gradients was not saved",
            );
        }
        let begins = self.plan.config.comm.power_sgd_start_step.unwrap_or_default();
        if begins >= self.plan.total_steps() {
            self.progress.warn(&format!(
                "power-sgd compresses nothing: comm.power_sgd_start_step is {begins}, and the run has {} steps",
                self.plan.total_steps()
            ));
        }
    }

    pub(super) fn run(mut self, stop_after: Option<StopAfter>) -> Result<Finish, Error> {
        if self.is_finished() {
            self.progress.finish();
            self.conclude();
            return Ok(Finish::Completed);
        }
        // The evaluation at the end of the run is outstanding where only that was interrupted.
        let evaluation_left = self.awaits_evaluation() && self.position.step == self.plan.total_steps();
        if self.position.step > 0 && self.reached(stop_after) && !evaluation_left {
            self.progress.say(
                "nothing to do: the run already stands at --stop-after or beyond; without it, or with a later one, the \
                 same command goes on",
            );
            return Ok(Finish::Reached);
        }
        let mut feed = self.session.agree(self.feed(self.position.step))?;
        if self.saved.is_none() && roll_back::is_policy(&self.plan.config.train) {
            // Something to go back to before the first save that is due.
            self.save()?;
        }
        loop {
            let mut wishes = Wishes::default();
            if !self.awaits_evaluation() {
                let Some(Wishes { stop, save }) = self.step(&mut feed, stop_after)? else {
                    feed = self.feed_again(feed)?;
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
            let mut course = Course::Same;
            if wishes.save || epoch_due || stop || finished {
                course = self.save()?;
            }
            if let Some(report) = self.saving.poll() {
                self.tell(report);
            }
            if course == Course::Same && (stop || finished) {
                course = self.end_saving()?;
            }
            if course == Course::Earlier {
                // What asked it to stop still does.
                feed = self.feed_again(feed)?;
                continue;
            }
            if stop {
                self.progress.finish();
                let reason = match self.reached(stop_after) {
                    true => "by --stop-after".into(),
                    false => self.stop_requests.reason(),
                };
                let step = self.position.step;
                let more = match (self.taken_back, stop_after.is_some()) {
                    (true, true) => " without --resume, and without --stop-after or with a later one,",
                    (true, false) => " without --resume",
                    (false, true) => ", without --stop-after or with a later one,",
                    (false, false) => "",
                };
                self.progress.say(&format!(
                    "stopped {reason} after step {step}; the same command{more} goes on from here"
                ));
                return Ok(Finish::Stopped);
            }
            if finished {
                break;
            }
        }
        self.progress.finish();
        self.conclude();
        Ok(Finish::Completed)
    }

    /// Collective: the micro batches from where the run stands, in place of those of the course that it has left.
    fn feed_again(&self, former: Feed) -> Result<Feed, Error> {
        drop(former);
        self.session.agree(self.feed(self.position.step))
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

    /// Collective: launches a step and settles those that need not wait any longer. What was wished in these; `None` when
    /// the run stands at an earlier checkpoint instead.
    fn step(&mut self, feed: &mut Feed, stop_after: Option<StopAfter>) -> Result<Option<Wishes>, Error> {
        self.launch(feed)?;
        let mut ahead = u64::from(self.runs_ahead(stop_after));
        let mut wishes = Wishes::default();
        while self.engine.in_flight() > ahead {
            let Some(outcome) = self.settle()? else { return Ok(None) };
            wishes.stop |= outcome.stop;
            wishes.save |= outcome.save;
            if wishes.stop || wishes.save || !outcome.updated {
                ahead = 0;
            }
        }
        Ok(Some(wishes))
    }

    /// Whether the step after the one that was launched last may be launched before that one is settled: all ranks know
    /// that nothing comes between the two, as far as they can know it before.
    fn runs_ahead(&self, stop_after: Option<StopAfter>) -> bool {
        let completed = self.position.step + self.engine.in_flight();
        let due = |every: u64| every > 0 && completed.is_multiple_of(every);
        let config = &self.plan.config;
        self.engine.can_run_ahead()
            && self.position.health.skipped_in_a_row == 0
            && !due(self.plan.steps_per_epoch)
            && !due(config.checkpoint.every_steps.unwrap_or_default())
            && !due(config.train.check_replicas_every)
            && stop_after != Some(StopAfter::Step(completed))
    }

    fn learning_rate(&self, step: u64) -> f64 {
        self.plan.schedule.rate(step) * self.position.health.rate_factor()
    }

    /// Collective: launches the next step.
    fn launch(&mut self, feed: &mut Feed) -> Result<(), Error> {
        let step = self.position.step + self.engine.in_flight();
        self.engine.loss_scale = self.position.health.loss_scale.map_or(1.0, |loss_scale| loss_scale.scale);
        if self.plan.config.optimizer.reset_momentum_at_milestones == Some(true)
            && self.plan.schedule.milestone_begins(step)
        {
            self.engine.state()?.optimizer.reset()?;
        }
        // A save is also where the ranks hear of what the one before it found.
        let save =
            self.session.is_leader() && (self.saving.wants_after(step + 1) || self.not_finite.is_some());
        let learning_rate = self.learning_rate(step);
        let stop_requests = &self.stop_requests;
        let wishes = || Wishes { stop: stop_requests.requested(), save };
        self.engine.launch(step, learning_rate, &wishes, feed)
    }

    /// Collective: what the oldest step that was launched brought; `None` when the run stands at an earlier checkpoint
    /// instead.
    fn settle(&mut self) -> Result<Option<StepOutcome>, Error> {
        let step = self.position.step;
        let learning_rate = self.learning_rate(step);
        let loss_scale = self.position.health.loss_scale.map(|loss_scale| loss_scale.scale);
        let outcome = match self.engine.settle() {
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
            desync::check(self.session, &self.plan.network, self.engine.state()?, self.position.step)?;
        }
        Ok(Some(outcome))
    }

    /// On rank 0: a line of metrics.
    fn record(&mut self, record: Record) {
        if let Some(warning) = self.metrics.as_mut().and_then(|metrics| metrics.write(&record)) {
            self.progress.warn(&warning);
        }
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
