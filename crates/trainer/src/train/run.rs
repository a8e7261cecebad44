//! One run on one rank: set up, loop over its steps, evaluate, save and end. The step itself is
//! [`crate::engine`]'s; here stands what comes before and after each one.

mod trouble;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use data_sharding::Pool;

use self::trouble::Judgement;
use super::resume::{fresh_position, resume, share_position};
use super::signals::listen_for_stop_signals;
use super::{Finish, StopAfter, TrainOptions, broadcast_state, decoder_threads, next_batch, training_pool};
use crate::checkpoint::{self, Checkpoint, RunState};
use crate::device::Compute;
use crate::engine::{Engine, StepError, StepOutcome, WeightSet};
use crate::error::Error;
use crate::evaluate::{Evaluation, Views, evaluate};
use crate::health::desync;
use crate::health::straggler::StragglerWatch;
use crate::optimizer::Optimizer;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::telemetry::{
    EpochRecord, Exporter, MetricsFile, Progress, StepRecord, draw_curves, export_epoch, export_step,
    read_epochs,
};
use crate::transfer::{self, Part};

/// One run on one rank.
pub(super) struct Run<'a> {
    session: &'a Session,
    plan: &'a Plan,
    engine: Engine<'a>,
    dir: RunDir,
    position: RunState,
    workers: usize,
    stop_signal: Arc<AtomicBool>,
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
}

impl<'a> Run<'a> {
    /// Collective: everything up to the first step.
    pub(super) fn set_up(
        session: &'a Session,
        plan: &'a Plan,
        compute: Compute,
        dir: RunDir,
        options: &TrainOptions,
    ) -> Result<Self, Error> {
        let mut engine = session.agree(Engine::new(plan, compute, session.comm().clone()))?;
        session.agree(engine.rehearse(options.inject_fault))?;
        session.agree_equal("the layout of parameters", &engine.state.layout.description())?;
        session.agree_equal("the table of buckets", &engine.describe_buckets())?;
        let fresh = fresh_position(plan);
        let position =
            if session.is_leader() { resume(plan, &engine, &dir, options, fresh.clone()) } else { Ok(fresh) };
        let position = share_position(session, position)?;
        broadcast_state(session, &engine)?;

        let stop_signal = session.agree(listen_for_stop_signals())?;
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
        let workers = decoder_threads(plan, session, compute);
        let first_step = position.step;
        let run = Run {
            session,
            plan,
            engine,
            dir,
            position,
            workers,
            stop_signal,
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
        if self.position.step > 0 && self.position.step < plan.total_steps() {
            self.progress.say(&format!(
                "resumed after step {} of {} (epoch {})",
                self.position.step,
                plan.total_steps(),
                self.position.step / plan.steps_per_epoch + 1
            ));
        }
        if let Some(address) = served_at {
            self.progress.say(&format!("metrics for Prometheus: http://{address}/metrics"));
        }
    }

    pub(super) fn run(mut self, stop_after: Option<StopAfter>) -> Result<Finish, Error> {
        if self.position.step < self.plan.total_steps() && self.position.step > 0 && self.reached(stop_after)
        {
            self.progress.say("nothing to do: the run stands at or beyond --stop-after");
            return Ok(Finish::Stopped);
        }
        let mut pool = self.session.agree(training_pool(self.plan, self.position.step, self.workers))?;
        while self.position.step < self.plan.total_steps() {
            let Some(outcome) = self.step(&mut pool)? else {
                drop(pool);
                pool = self.session.agree(training_pool(self.plan, self.position.step, self.workers))?;
                continue;
            };
            let epoch_complete = self.position.step.is_multiple_of(self.plan.steps_per_epoch);
            if epoch_complete {
                self.end_epoch()?;
            }
            let finished = self.position.step == self.plan.total_steps();
            let stop = !finished && (outcome.stop || self.reached(stop_after));
            let due = epoch_complete
                && self.position.epoch.is_multiple_of(self.plan.config.checkpoint.every_epochs);
            if due || stop || finished {
                self.save()?;
            }
            if stop {
                self.progress.finish();
                self.progress.say(&format!(
                    "stopped on request after step {}; with --resume auto and without --stop-after it goes on from here",
                    self.position.step
                ));
                return Ok(Finish::Stopped);
            }
        }
        self.progress.finish();
        self.conclude()?;
        Ok(Finish::Completed)
    }

    fn reached(&self, stop_after: Option<StopAfter>) -> bool {
        match stop_after {
            Some(StopAfter::Epoch(epoch)) => self.position.epoch >= epoch,
            Some(StopAfter::Step(step)) => self.position.step >= step,
            None => false,
        }
    }

    /// Collective: one step; `None` when the run stands at an earlier checkpoint instead.
    fn step(&mut self, pool: &mut Pool) -> Result<Option<StepOutcome>, Error> {
        let step = self.position.step;
        let learning_rate = self.plan.schedule.rate(step) * self.position.health.rate_factor();
        let loss_scale = self.position.health.loss_scale.map(|loss_scale| loss_scale.scale);
        self.engine.loss_scale = loss_scale.unwrap_or(1.0);
        if self.plan.config.optimizer.reset_momentum_at_milestones
            && self.plan.schedule.milestone_begins(step)
        {
            Optimizer::reset_momentum(&mut self.engine.state)?;
        }
        let stop_requested = self.stop_signal.load(Ordering::Relaxed);
        let outcome = match self.engine.step(step, learning_rate, stop_requested, &mut || next_batch(pool)) {
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
        let judgement = self.judge(step, learning_rate, &outcome)?;
        if judgement == Judgement::RolledBack {
            return Ok(None);
        }
        self.position.step += 1;
        if outcome.updated {
            self.position.epoch_loss_sum += f64::from(outcome.loss);
            self.position.epoch_correct += outcome.correct;
        }
        let images = self.plan.config.train.global_batch;
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
            loss_spike: judgement == Judgement::Spike,
            loss_scale,
            top1_error: 1.0 - outcome.correct as f64 / images as f64,
            learning_rate,
            skipped_samples: outcome.skipped,
            images_per_second: images as f64 / outcome.phases.step.as_secs_f64(),
            seconds: outcome.phases.into(),
            exchange: (&outcome.exchange).into(),
            stragglers: self.stragglers.named().to_vec(),
        };
        export_step(&record, images);
        self.progress.step(&record);
        if let Some(metrics) = &mut self.metrics {
            metrics.step(record)?;
        }
        let check_every = self.plan.config.train.check_replicas_every;
        if self.session.topology().world_size > 1
            && check_every > 0
            && self.position.step.is_multiple_of(check_every)
        {
            desync::check(self.session, &self.plan.network, &self.engine.state, self.position.step)?;
        }
        Ok(Some(outcome))
    }

    /// Collective: evaluates and reports the epoch that has just been completed.
    fn end_epoch(&mut self) -> Result<(), Error> {
        self.session.flight().enter(None, "evaluation");
        self.position.epoch += 1;
        let epochs = self.plan.config.train.epochs;
        let due = self.position.epoch.is_multiple_of(self.plan.config.train.evaluate_every_epochs);
        let (mut evaluation, mut averaged) = (None, None);
        if due || self.position.epoch == epochs {
            evaluation = Some(self.evaluate(WeightSet::Current)?);
            if self.engine.state.averaged.is_some() {
                averaged = Some(self.evaluate(WeightSet::Averaged)?);
            }
        }
        let skipped_steps = std::mem::take(&mut self.position.epoch_skipped);
        let steps = (self.plan.steps_per_epoch - skipped_steps) as f64;
        let samples = steps * self.plan.config.train.global_batch as f64;
        let train_seconds = self.epoch_duration.as_secs_f64();
        let record = EpochRecord {
            epoch: self.position.epoch,
            step: self.position.step,
            skipped_steps,
            train_loss: self.position.epoch_loss_sum / steps,
            train_top1_error: 1.0 - self.position.epoch_correct as f64 / samples,
            test_loss: evaluation.map(|evaluation| evaluation.loss()),
            test_top1_error: evaluation.map(|evaluation| evaluation.top1_error()),
            test_top5_error: evaluation.map(|evaluation| evaluation.top5_error()),
            test_top1_correct: evaluation.map(|evaluation| evaluation.top1_correct),
            test_samples: evaluation.map(|evaluation| evaluation.samples),
            averaged_test_loss: averaged.map(|averaged| averaged.loss()),
            averaged_test_top1_error: averaged.map(|averaged| averaged.top1_error()),
            averaged_test_top5_error: averaged.map(|averaged| averaged.top5_error()),
            images_per_second: self.epoch_images as f64 / train_seconds,
            train_seconds,
            test_seconds: evaluation.iter().chain(&averaged).map(|of| of.duration.as_secs_f64()).sum(),
        };
        self.position.epoch_loss_sum = 0.0;
        self.position.epoch_correct = 0;
        self.epoch_images = 0;
        self.epoch_duration = Duration::ZERO;
        if let Some(error) = record.test_top1_error {
            let best = self.position.best_top1_error.unwrap_or(1.0);
            self.position.best_top1_error = Some(best.min(error));
        }
        export_epoch(&record);
        self.progress.epoch(&record);
        let written = match &mut self.metrics {
            Some(metrics) => metrics.epoch(record).and_then(|()| self.draw()),
            None => Ok(()),
        };
        self.session.agree(written)
    }

    fn evaluate(&self, weights: WeightSet) -> Result<Evaluation, Error> {
        evaluate(self.session, self.plan, &self.engine, self.workers, Views::One, weights)
    }

    fn draw(&self) -> Result<(), Error> {
        let title = format!("{} on {}", self.plan.architecture, self.plan.config.data.kind);
        draw_curves(&self.dir.curves(), &title, &read_epochs(&self.dir.metrics())?)
    }

    /// Collective: rank 0 writes a checkpoint; all ranks learn whether it is complete.
    fn save(&mut self) -> Result<(), Error> {
        self.session.flight().enter(None, "checkpoint");
        let written = if self.session.is_leader() { self.write_checkpoint() } else { Ok(()) };
        self.session.agree(written)
    }

    fn write_checkpoint(&self) -> Result<(), Error> {
        let begin = Instant::now();
        let (network, state) = (&self.plan.network, &self.engine.state);
        let saved = Checkpoint {
            state: self.position.clone(),
            weights: transfer::export(network, state, Part::Weights)?,
            optimizer: transfer::export(network, state, Part::Optimizer)?,
            averaged: transfer::export(network, state, Part::Averaged)?,
        };
        let mut tensors = saved.weights.iter().chain(&saved.optimizer).chain(&saved.averaged);
        if let Some(tensor) = tensors.find(|tensor| tensor.values.iter().any(|value| !value.is_finite())) {
            return Err(Error::Other(format!(
                "{} is no longer finite after step {}: nothing is saved; lower schedule.rate and resume from the last \
                 checkpoint",
                tensor.name, self.position.step
            )));
        }
        let path = checkpoint::save(&self.dir.checkpoints(), &saved, self.plan.config.checkpoint.keep_last)?;
        tracing::info!(path = %path.display(), seconds = begin.elapsed().as_secs_f64(), "saved a checkpoint");
        Ok(())
    }

    /// Says how the run ended.
    fn conclude(&self) -> Result<(), Error> {
        if !self.session.is_leader() {
            return Ok(());
        }
        let epochs = read_epochs(&self.dir.metrics())?;
        if let Some(error) = epochs.last().and_then(|epoch| epoch.test_top1_error) {
            self.progress.say(&format!(
                "test accuracy {:.2} % (top-1 error {:.2} %) after {} epochs",
                100.0 * (1.0 - error),
                100.0 * error,
                self.position.epoch
            ));
        }
        self.progress.say(&format!("curves: {}", self.dir.curves().display()));
        Ok(())
    }
}
