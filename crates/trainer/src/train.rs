//! The main job: `wrn-dist train`. Sets a run up on all ranks, loops over its steps, evaluates, saves and ends.
//!
//! The step itself is [`crate::engine`]'s; this module decides what comes before and after each one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use data_sharding::{Batch, Pool, PoolOptions, SampleKey};

use crate::checkpoint::{self, Checkpoint, CheckpointError, RunState};
use crate::config::{self, AutoOr, LoadedConfig, Reduce};
use crate::device::Compute;
use crate::engine::{Engine, StepError, StepOutcome};
use crate::error::Error;
use crate::evaluate::{Evaluation, evaluate};
use crate::optimizer::Optimizer;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::{Session, with_session};
use crate::telemetry::{
    EpochRecord, Exporter, MetricsFile, Progress, StepRecord, draw_curves, export_epoch, export_step,
    read_epochs,
};
use crate::transfer::{self, Part};

/// What `wrn-dist train` was asked to do.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// `--set` arguments, each `key=value`.
    pub overrides: Vec<String>,
    /// The run's folder; `runs/` and the configuration's name when absent.
    pub out: Option<PathBuf>,
    /// Where to go on from.
    pub resume: Resume,
    /// Where to save and stop before the end.
    pub stop_after: Option<StopAfter>,
}

/// `--resume`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From the latest checkpoint in the run's folder, or from the start when there is none.
    Auto,
    /// From the start, in a folder that holds no run yet.
    None,
    /// From this checkpoint, run folder or checkpoints folder.
    Path(PathBuf),
}

/// `--stop-after`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAfter {
    /// When this many epochs are complete.
    Epoch(u32),
    /// When this many steps of the whole run are complete.
    Step(u64),
}

/// How a training command ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finish {
    /// All epochs are done.
    Completed,
    /// Saved and stopped on request.
    Stopped,
}

/// Trains; collective over all ranks.
///
/// # Errors
/// The failure that ended the run, already printed by the rank it belongs to.
pub fn train(options: &TrainOptions) -> Result<Finish, Error> {
    let loaded = config::load(&options.config, &options.overrides);
    with_session(configured_reduce(&loaded), |session| {
        let loaded = session.agree(loaded.map_err(Error::from))?;
        let plan = open_plan(session, &loaded)?;
        let compute = session.agree(Compute::set_up(&plan.config, session.topology()))?;
        let root = options.out.clone().unwrap_or_else(|| Path::new("runs").join(loaded.name()));
        Run::set_up(session, &plan, compute, RunDir::new(&root), options)?.run(options.stop_after)
    })
}

/// Evaluates a checkpoint on the test set; collective over all ranks. The counts are rank 0's to report, `None` elsewhere.
///
/// # Errors
/// As [`train`].
pub fn evaluate_checkpoint(
    config: &Path,
    overrides: &[String],
    path: &Path,
) -> Result<Option<Evaluation>, Error> {
    let loaded = config::load(config, overrides);
    with_session(configured_reduce(&loaded), |session| {
        let loaded = session.agree(loaded.map_err(Error::from))?;
        let plan = open_plan(session, &loaded)?;
        let compute = session.agree(Compute::set_up(&plan.config, session.topology()))?;
        let engine = session.agree(Engine::new(&plan, compute, session.comm().clone()))?;
        let read = if session.is_leader() {
            checkpoint::load(path, false).map_err(Error::from).and_then(|saved| {
                refuse_other_architecture(&plan, &saved.state, path)?;
                transfer::import(&plan.network, &engine.state, Part::Weights, &saved.weights, path)
            })
        } else {
            Ok(())
        };
        session.agree(read)?;
        broadcast_state(session, &engine)?;
        let evaluation = evaluate(session, &plan, &engine, decoder_threads(&plan, session))?;
        Ok(session.is_leader().then_some(evaluation))
    })
}

pub(crate) fn configured_reduce(loaded: &Result<LoadedConfig, config::ConfigError>) -> Reduce {
    loaded.as_ref().map_or_else(|_| Reduce::default(), |loaded| loaded.config.comm.reduce)
}

/// Collective: the plan, the same on every rank.
pub(crate) fn open_plan(session: &Session, loaded: &LoadedConfig) -> Result<Plan, Error> {
    let topology = session.topology();
    let plan = session.agree(Plan::open(loaded, topology.rank, topology.world_size))?;
    session.agree_equal("the configuration", &plan.meaning_hash())?;
    session.agree_equal("the training data", plan.train.fingerprint())?;
    session.agree_equal("the test data", plan.test.fingerprint())?;
    Ok(plan)
}

pub(crate) fn decoder_threads(plan: &Plan, session: &Session) -> usize {
    match plan.config.data.workers {
        AutoOr::Exactly(workers) => workers.get(),
        AutoOr::Auto => data_sharding::default_workers(session.topology().local_size),
    }
}

/// This rank's micro batches of all steps from `first_step` on.
pub(crate) fn training_pool(plan: &Plan, first_step: u64, workers: usize) -> Result<Pool, Error> {
    let (sampler, batches, steps_per_epoch) = (plan.sampler.clone(), plan.batches, plan.steps_per_epoch);
    let mut order: Option<(u64, Arc<[u32]>)> = None;
    let requests = (first_step..plan.total_steps()).flat_map(move |step| {
        let (epoch, within) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
        let samples = match &order {
            Some((known, samples)) if *known == epoch => Arc::clone(samples),
            _ => sampler.epoch(epoch),
        };
        order = Some((epoch, Arc::clone(&samples)));
        let keys = |micro_batch| -> Vec<SampleKey> {
            batches
                .samples(&samples, within, micro_batch)
                .iter()
                .map(|&sample| SampleKey { sample, epoch, repetition: 0 })
                .collect()
        };
        batches.local_micro_batches().map(keys).collect::<Vec<_>>()
    });
    let options =
        PoolOptions { workers, batch_size: plan.micro_batch(), prefetch: plan.config.data.prefetch };
    Ok(Pool::start(Arc::clone(&plan.train), plan.transform, Box::new(requests), options)?)
}

/// The next micro batch of the pool.
pub(crate) fn next_batch(pool: &mut Pool) -> Result<Batch, Error> {
    Ok(pool.next().ok_or_else(|| Error::Other("the decoder pool ended early".into()))??)
}

/// Collective: rank 0's weights, momentum and running statistics on every rank.
fn broadcast_state(session: &Session, engine: &Engine) -> Result<(), Error> {
    let state = &engine.state;
    for tensor in [&state.flat_parameters, &state.momentum, &state.running_statistics] {
        let host = tensor.f_to_device(tch::Device::Cpu)?;
        session.comm().broadcast(crate::memory::region_of(&host)?, 0)?;
        if tensor.device() != tch::Device::Cpu {
            let _no_grad = tch::no_grad_guard();
            tensor.shallow_clone().f_copy_(&host)?;
        }
    }
    Ok(())
}

fn refuse_other_architecture(plan: &Plan, saved: &RunState, origin: &Path) -> Result<(), Error> {
    let classes = plan.network.classes();
    let arch = plan.architecture.to_string();
    if saved.arch == arch && saved.classes == classes {
        return Ok(());
    }
    Err(CheckpointError::Foreign {
        path: origin.to_owned(),
        reason: format!(
            "it holds {} for {} classes, the configuration says {arch} for {classes}",
            saved.arch, saved.classes
        ),
    }
    .into())
}

/// One run on one rank.
struct Run<'a> {
    session: &'a Session,
    plan: &'a Plan,
    engine: Engine<'a>,
    dir: RunDir,
    position: RunState,
    workers: usize,
    stop_signal: Arc<AtomicBool>,
    progress: Progress,
    /// On rank 0.
    metrics: Option<MetricsFile>,
    epoch_images: u64,
    epoch_duration: Duration,
}

impl<'a> Run<'a> {
    /// Collective: everything up to the first step.
    fn set_up(
        session: &'a Session,
        plan: &'a Plan,
        compute: Compute,
        dir: RunDir,
        options: &TrainOptions,
    ) -> Result<Self, Error> {
        let engine = session.agree(Engine::new(plan, compute, session.comm().clone()))?;
        session.agree_equal("the layout of parameters", &engine.state.layout.description())?;
        let fresh = fresh_position(plan);
        let position =
            if session.is_leader() { resume(plan, &engine, &dir, options, fresh.clone()) } else { Ok(fresh) };
        let position = session.agree(position)?;
        let json = serde_json::to_vec(&position).map_err(|error| Error::Other(error.to_string()))?;
        let json = session.leaders(json)?;
        let position: RunState =
            serde_json::from_slice(&json).map_err(|error| Error::Other(error.to_string()))?;
        broadcast_state(session, &engine)?;

        let metrics = if session.is_leader() {
            dir.describe(plan, compute, session.comm(), &engine.state.layout)
                .and_then(|()| MetricsFile::open(&dir.metrics(), position.epoch, position.step))
                .map(Some)
        } else {
            Ok(None)
        };
        let metrics = session.agree(metrics)?;
        let stop_signal = session.agree(listen_for_stop_signals())?;
        let exporter = match plan.config.telemetry.prometheus {
            Some(address) => {
                Exporter::start(address, session.topology().local_rank, session.topology().rank).map(Some)
            }
            None => Ok(None),
        };
        let served_at = session.agree(exporter)?;

        let progress = Progress::new(session.is_leader(), plan.config.train.epochs, plan.steps_per_epoch);
        let workers = decoder_threads(plan, session);
        let run = Run {
            session,
            plan,
            engine,
            dir,
            position,
            workers,
            stop_signal,
            progress,
            metrics,
            epoch_images: 0,
            epoch_duration: Duration::ZERO,
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
            plan.train.len(),
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
        if self.position.step > 0 {
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

    fn run(mut self, stop_after: Option<StopAfter>) -> Result<Finish, Error> {
        let mut pool = self.session.agree(training_pool(self.plan, self.position.step, self.workers))?;
        while self.position.step < self.plan.total_steps() {
            let outcome = self.step(&mut pool)?;
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
                    "stopped on request after step {}; the same command without --stop-after goes on from here",
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

    fn step(&mut self, pool: &mut Pool) -> Result<StepOutcome, Error> {
        let step = self.position.step;
        let learning_rate = self.plan.schedule.rate(step);
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
        self.position.step += 1;
        self.position.epoch_loss_sum += f64::from(outcome.loss);
        self.position.epoch_correct += outcome.correct;
        let images = self.plan.config.train.global_batch;
        self.epoch_images += images as u64;
        self.epoch_duration += outcome.phases.step;
        let record = StepRecord {
            epoch: (step / self.plan.steps_per_epoch) as u32 + 1,
            step: self.position.step,
            loss: outcome.loss,
            top1_error: 1.0 - outcome.correct as f64 / images as f64,
            learning_rate,
            images_per_second: images as f64 / outcome.phases.step.as_secs_f64(),
            seconds: outcome.phases.into(),
            exchange: (&outcome.exchange).into(),
        };
        export_step(&record, images);
        self.progress.step(&record);
        if !outcome.loss.is_finite() {
            // The loss is a sum over all ranks, so they all come here.
            return self.session.agree(Err(Error::Other(format!(
                "the loss became {} at step {} (epoch {}, learning rate {learning_rate}); lower schedule.rate or lengthen \
                 the warm-up and resume from the last checkpoint",
                outcome.loss, record.step, record.epoch
            ))));
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.step(record)?;
        }
        Ok(outcome)
    }

    /// Collective: evaluates and reports the epoch that has just been completed.
    fn end_epoch(&mut self) -> Result<(), Error> {
        self.position.epoch += 1;
        let epochs = self.plan.config.train.epochs;
        let due = self.position.epoch.is_multiple_of(self.plan.config.train.evaluate_every_epochs);
        let evaluation = match due || self.position.epoch == epochs {
            true => Some(evaluate(self.session, self.plan, &self.engine, self.workers)?),
            false => None,
        };
        let steps = self.plan.steps_per_epoch as f64;
        let samples = steps * self.plan.config.train.global_batch as f64;
        let train_seconds = self.epoch_duration.as_secs_f64();
        let record = EpochRecord {
            epoch: self.position.epoch,
            step: self.position.step,
            train_loss: self.position.epoch_loss_sum / steps,
            train_top1_error: 1.0 - self.position.epoch_correct as f64 / samples,
            test_loss: evaluation.map(|evaluation| evaluation.loss()),
            test_top1_error: evaluation.map(|evaluation| evaluation.top1_error()),
            test_top5_error: evaluation.map(|evaluation| evaluation.top5_error()),
            test_top1_correct: evaluation.map(|evaluation| evaluation.top1_correct),
            test_samples: evaluation.map(|evaluation| evaluation.samples),
            images_per_second: self.epoch_images as f64 / train_seconds,
            train_seconds,
            test_seconds: evaluation.map_or(0.0, |evaluation| evaluation.duration.as_secs_f64()),
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

    fn draw(&self) -> Result<(), Error> {
        let title = format!("{} on {}", self.plan.architecture, self.plan.config.data.kind);
        draw_curves(&self.dir.curves(), &title, &read_epochs(&self.dir.metrics())?)
    }

    /// Collective: rank 0 writes a checkpoint; all ranks learn whether it is complete.
    fn save(&mut self) -> Result<(), Error> {
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
        };
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

fn fresh_position(plan: &Plan) -> RunState {
    RunState {
        format: RunState::FORMAT,
        arch: plan.architecture.to_string(),
        classes: plan.network.classes(),
        epoch: 0,
        step: 0,
        epoch_loss_sum: 0.0,
        epoch_correct: 0,
        best_top1_error: None,
        meaning: plan.config.meaning().into_iter().collect(),
        data: plan.train.fingerprint().to_owned(),
        checksums: std::collections::BTreeMap::new(),
    }
}

/// On rank 0: finds the checkpoint to go on from and loads its tensors.
fn resume(
    plan: &Plan,
    engine: &Engine,
    dir: &RunDir,
    options: &TrainOptions,
    fresh: RunState,
) -> Result<RunState, Error> {
    let found = match &options.resume {
        Resume::Path(path) => Some(path.clone()),
        Resume::Auto => checkpoint::latest(&dir.checkpoints())?,
        Resume::None if dir.metrics().exists() || dir.checkpoints().exists() => {
            return Err(Error::Other(format!(
                "{} already holds a run; name another --out, or leave --resume at auto to go on with it",
                dir.root().display()
            )));
        }
        Resume::None => None,
    };
    let Some(path) = found else { return Ok(fresh) };
    let saved = checkpoint::load(&path, true)?;
    refuse_other_architecture(plan, &saved.state, &path)?;
    let foreign = |reason: String| Error::from(CheckpointError::Foreign { path: path.clone(), reason });
    let mut differences: Vec<String> = Vec::new();
    for (key, value) in &fresh.meaning {
        let then = saved.state.meaning.get(key).map_or("absent", String::as_str);
        if then != value {
            differences.push(format!("{key} was {then}, is {value}"));
        }
    }
    if !differences.is_empty() {
        return Err(foreign(format!(
            "{}; name another --out to start a run of its own",
            differences.join("; ")
        )));
    }
    if saved.state.data != fresh.data {
        return Err(foreign(format!(
            "its training data had fingerprint {}, this has {}",
            saved.state.data, fresh.data
        )));
    }
    transfer::import(&plan.network, &engine.state, Part::Weights, &saved.weights, &path)?;
    transfer::import(&plan.network, &engine.state, Part::Optimizer, &saved.optimizer, &path)?;
    Ok(RunState { checksums: fresh.checksums, ..saved.state })
}

/// The first signal asks the run to save and stop at the next step; a second one ends the process at once.
fn listen_for_stop_signals() -> Result<Arc<AtomicBool>, Error> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    let requested = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requested))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&requested)))
            .map_err(|error| Error::Other(format!("cannot listen for signal {signal}: {error}")))?;
    }
    Ok(requested)
}
