//! The main job: `wrn-dist train`, and the evaluation of what it left. Brings the ranks to a common plan and
//! hands over to [`run`], which loops over steps.

pub(crate) mod initial;
mod position;
mod resume;
mod run;
mod saving;
mod stop;

use std::path::{Path, PathBuf};
use std::time::Instant;

use data_sharding::{EpochOrder, SampleKey};
use tch::Device;

use self::resume::{DERIVED, recorded, refuse_other_architecture, refuse_other_keys};
use self::run::Run;
use self::stop::StopRequests;
use crate::backend;
use crate::checkpoint;
use crate::config::{self, AutoOr, CollectiveCheck, CommConfig, Config, LoadedConfig};
use crate::device::Compute;
use crate::engine::{Engine, WeightSet};
use crate::error::Error;
use crate::evaluate::{Evaluation, Views, evaluate};
use crate::fault::Fault;
use crate::feed::Feed;
use crate::input::Whitening;
use crate::micro_batch;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::session::{Command, Session, given, with_session};
use crate::telemetry::print_warning;
use crate::transfer::{self, Classifier, Part};
use crate::weights;

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
    /// A failure to rehearse.
    pub inject_fault: Option<Fault>,
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
    /// When this many steps of the whole run are complete. An evaluation that is then due comes first when the run
    /// goes on; that of the last step is part of it.
    Step(u64),
}

impl StopAfter {
    /// Completed steps of the run that stops there.
    fn steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            StopAfter::Epoch(epoch) => u64::from(epoch).saturating_mul(steps_per_epoch),
            StopAfter::Step(step) => step,
        }
    }
}

impl TrainOptions {
    fn command(&self) -> Command {
        Command::new(
            "train",
            &[
                ("out", given(self.out.as_ref())),
                ("resume", format!("{:?}", self.resume)),
                ("stop-after", given(self.stop_after)),
                ("inject-fault", given(self.inject_fault)),
            ],
        )
    }
}

/// How a training command ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finish {
    /// All epochs are done.
    Completed,
    /// Saved and stopped on request.
    Stopped,
    /// The run stood at `--stop-after`, or beyond, already.
    Reached,
}

/// Trains; collective over all ranks.
///
/// # Errors
/// The failure that ended the run, already printed by the rank it belongs to.
pub fn train(options: &TrainOptions) -> Result<Finish, Error> {
    let begin = Instant::now();
    let stop_requests = StopRequests::listen();
    let loaded = config::load(&options.config, &options.overrides);
    with_session(&options.command(), &configured_comm(&loaded), |session| {
        let mut loaded = session.agree(loaded.map_err(Error::from))?;
        let mut stop_requests = session.agree(stop_requests)?;
        stop_requests.limit(loaded.config.train.max_wall, begin);
        let root = options.out.clone().unwrap_or_else(|| Path::new("runs").join(loaded.name()));
        let dir = RunDir::new(&root);
        micro_batch::keep(session, &mut loaded, || recorded(&dir, options, DERIVED))?;
        micro_batch::trial::resolve(session, &mut loaded)?;
        let mut plan = open_plan(session, &loaded)?;
        initial::identify(session, &loaded, &mut plan, &dir, options)?;
        let compute = Compute::set_up(session, &loaded)?;
        session.spin_on_a_spare_core(compute.threads);
        Run::set_up(session, &plan, compute, dir, options, stop_requests)?.run(options.stop_after)
    })
}

/// Beginnings of the keys that decide what a network computes from an image.
const KEYS_OF_EVALUATION: &[&str] = &[
    "model.shortcut_input",
    "model.projection",
    "model.stochastic_depth",
    "data.kind",
    "data.pad_to",
    "data.channels",
    "data.normalize",
];

/// Makes the keys of training suit any number of ranks, where nothing is trained. The size of batches that the
/// configuration names stays, since it decides on roundings.
fn fit_to(ranks: usize, config: &mut Config) {
    let share = (config.train.global_batch / ranks).max(1);
    let micro_batch = match config.train.micro_batch {
        Some(AutoOr::Exactly(micro_batch)) => micro_batch.get(),
        Some(AutoOr::Auto) | None => share,
    };
    config.train.global_batch = micro_batch.saturating_mul(ranks);
    config.model.sync_norm = false;
}

/// Evaluates a checkpoint on the test set; collective over all ranks. The counts are rank 0's to report,
/// `None` elsewhere.
///
/// # Errors
/// As [`train`].
pub fn evaluate_checkpoint(
    config: &Path,
    overrides: &[String],
    path: &Path,
    views: Views,
) -> Result<Option<Evaluation>, Error> {
    let loaded = config::load(config, overrides);
    let options = [("checkpoint", format!("{path:?}")), ("ten-crop", (views == Views::Ten).to_string())];
    with_session(&Command::new("eval", &options), &configured_comm(&loaded), |session| {
        let mut loaded = session.agree(loaded.map_err(Error::from))?;
        fit_to(session.topology().world_size, &mut loaded.config);
        let plan = open_plan(session, &loaded)?;
        let compute = Compute::set_up(session, &loaded)?;
        let engine = session.agree(Engine::new(&plan, compute, session.comm().clone()))?;
        let read = if session.is_leader() {
            if let Some(warning) = checkpoint::pointer_warning(path) {
                print_warning(&warning);
            }
            let parameters = plan.network.parameter_count();
            checkpoint::load(path, &[Part::Weights], parameters).map_err(Error::from).and_then(|saved| {
                weights::require_classifier(&saved.state, path)?;
                refuse_other_architecture(&plan, &saved.state, path)?;
                refuse_other_keys(&plan, &saved.state, path, |key| {
                    KEYS_OF_EVALUATION.iter().any(|of| key.starts_with(of))
                })?;
                let (network, state, weights) =
                    (&plan.network, engine.state()?, saved.tensors(Part::Weights));
                transfer::import(network, state, Part::Weights, Classifier::Saved, weights, path)
            })
        } else {
            Ok(())
        };
        session.agree(read)?;
        broadcast_state(session, &engine)?;
        let workers = decoder_threads(&plan, session, compute);
        let evaluation = evaluate(session, &plan, &engine, workers, views, WeightSet::Current)?;
        Ok(session.is_leader().then_some(evaluation))
    })
}

/// How this rank would like to communicate, before the ranks have agreed on a configuration.
pub(crate) fn configured_comm(loaded: &Result<LoadedConfig, config::ConfigError>) -> CommConfig {
    let Ok(LoadedConfig { config, .. }) = loaded else { return CommConfig::default() };
    // What is wrong with the launcher's variables, the session says.
    let world_size = allreduce::discover().ok().flatten().map_or(1, |launched| launched.world_size);
    CommConfig { backend: backend::choose(config, world_size), ..config.comm.clone() }
}

/// Collective: the plan, the same on every rank.
pub(crate) fn open_plan(session: &Session, loaded: &LoadedConfig) -> Result<Plan, Error> {
    let topology = session.topology();
    let mut plan = session.agree(Plan::open(loaded, topology.rank, topology.world_size))?;
    let keys = plan.config.common_to_ranks();
    let text: String = keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    session.agree_equal("the configuration", &text)?;
    session.agree_on_backend()?;
    if plan.config.comm.check == CollectiveCheck::Every {
        session.comm().check_every_collective();
    }
    session.agree_equal("the training data", plan.data.train.fingerprint())?;
    session.agree_equal("the test data", plan.data.test.fingerprint())?;
    plan.whitening = Whitening::prepare(session, &plan)?;
    Ok(plan)
}

/// Decoder threads of this rank: as configured, or its share of the host's cores without those that compute.
pub(crate) fn decoder_threads(plan: &Plan, session: &Session, compute: Compute) -> usize {
    match plan.config.data.workers {
        AutoOr::Exactly(workers) => workers.get(),
        AutoOr::Auto => data_sharding::default_workers(session.topology().local_size, compute.threads),
    }
}

/// This rank's micro batches of all steps from `first_step` on, for `device`.
pub(crate) fn training_feed(
    plan: &Plan,
    device: Device,
    first_step: u64,
    workers: usize,
) -> Result<Feed, Error> {
    let (sampler, batches, steps_per_epoch) = (plan.data.sampler.clone(), plan.batches, plan.steps_per_epoch);
    let mut current: Option<EpochOrder> = None;
    let requests = (first_step..plan.total_steps()).flat_map(move |step| {
        let (epoch, within) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
        let order = match current.take() {
            Some(order) if order.epoch() == epoch => order,
            _ => sampler.epoch(epoch),
        };
        let keys = |micro_batch| order.keys(batches.positions(within, micro_batch));
        let requests: Vec<Vec<SampleKey>> = batches.local_micro_batches().map(keys).collect();
        current = Some(order);
        requests
    });
    let options = plan.data.pool_options(workers, plan.micro_batch(), plan.config.data.prefetch);
    let augmentation = plan.data.train_augmentation.clone();
    Feed::start(device, plan.data.train.clone(), augmentation, Box::new(requests), options)
}

/// Collective: rank 0's weights, running statistics, averages of both, and optimizer state on every rank.
fn broadcast_state(session: &Session, engine: &Engine) -> Result<(), Error> {
    let state = engine.state()?;
    let mut tensors = vec![&state.flat_parameters, &state.running_statistics];
    if let Some(averaged) = &state.averaged {
        tensors.extend([&averaged.parameters, &averaged.running_statistics]);
    }
    for tensor in tensors {
        let host = tensor.f_to_device(Device::Cpu)?;
        session.comm().broadcast(crate::memory::region_of(&host)?, 0)?;
        if tensor.device() != Device::Cpu {
            let _no_grad = tch::no_grad_guard();
            tensor.shallow_clone().f_copy_(&host)?;
        }
    }
    state.optimizer.broadcast(session.comm())
}
