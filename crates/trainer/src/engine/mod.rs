//! One optimizer step: micro batches forward and backward, gradients exchanged meanwhile, weights updated. It is
//! *launched*, and later *settled*, when the host reads what it brought. Between the two there may be the launch of the
//! next step, so that a device always has work.
//!
//! Knows nothing of epochs, files or schedules; the caller brings batches and the learning rate.
//!
//! | file | holds |
//! |---|---|
//! | [`outcome`] | what goes into a step and what comes of it |
//! | [`laps`] | how long its parts take |
//! | [`numbers`] | what the host reads of it |
//! | [`update`] | what averages change |
//! | [`search`] | where numbers that are not finite come from |
//! | [`rehearsal`] | faults on demand |

mod laps;
mod numbers;
mod outcome;
mod rehearsal;
mod search;
mod update;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use allreduce::{Accumulation, CommThread, Reducer, ReducerOptions};
use model::{BeforeUse, DrawKey, Memory, ModelError, Norm, Pass};
use tch::{Device, Kind, Tensor};
use torch_ext::copy::Readback;
use torch_ext::sync_norm::Ranks;
use torch_ext::{autocast, hooks};

use self::laps::{Laps, Part};
use self::numbers::{Numbers, Told};
use self::outcome::mean_of_counted;
pub(crate) use self::outcome::{Phases, StepError, StepOutcome, WeightSet, Wishes};
use crate::averaging::{Averaged, Rule};
use crate::bucket_hook::{StepHook, StepInputs};
use crate::config::{Config, Determinism, OnNan, Overlap};
use crate::device::Compute;
use crate::error::Error;
use crate::exchange_memory::{self, ExchangeMemory};
use crate::fault::{Fault, FaultKind};
use crate::feed::{Delivery, Feed};
use crate::flat::{FlatLayout, Tail};
use crate::input::{Input, Targets};
use crate::loss_scale::{LossScale, ScaleOnDevice};
use crate::optimizer::Optimizer;
use crate::optimizer::gathering::Gathering;
use crate::optimizer::memory::Shards;
use crate::plan::Plan;
use crate::skip::DeviceDecision;
use crate::state::State;
use crate::sync_norm;

/// The network, its tensors and the exchange of one rank.
pub(crate) struct Engine<'plan> {
    plan: &'plan Plan,
    compute: Compute,
    state: State,
    optimizer: Optimizer,
    input: Input,
    reducer: Arc<Reducer>,
    comm: CommThread,
    /// To happen to this rank.
    fault: Option<Fault>,
    /// How long this rank computed in the last step.
    computed: Duration,
    /// Under fp16.
    loss_scale: Option<ScaleOnDevice>,
    /// Where the exchange happens when the gradients are on a GPU, and not NCCL's to sum: a copy in host memory.
    host_exchange: Option<Tensor>,
    /// For what happens to buckets on the communication thread.
    inputs: Arc<StepInputs>,
    /// Whether that is the update of their weights.
    updates_early: bool,
    /// With whom batch norm is synchronized.
    norm_ranks: Option<Ranks>,
    hooks_count: Arc<AtomicBool>,
    /// Where each parameter begins among the flat ones.
    offsets: Vec<usize>,
    /// Whether averages are used, where the host does not decide that.
    decision: Option<DeviceDecision>,
    /// The oldest first.
    launched: VecDeque<Launched>,
    /// Those that are under way belong to a step.
    readbacks: Vec<Readback>,
    /// When a step was settled last.
    settled: Option<Instant>,
    /// Why this rank computes no more, until the others have heard that it does not.
    failure: Option<Error>,
}

/// A step on its way.
struct Launched {
    step: u64,
    begin: Instant,
    laps: Laps,
    told: Told,
}

impl<'plan> Engine<'plan> {
    /// Allocates everything, and connects each gradient with the exchange. `comm` may differ from the
    /// session's to measure a step without exchange.
    pub(crate) fn new(plan: &'plan Plan, compute: Compute, comm: CommThread) -> Result<Self, Error> {
        let mut state =
            State::new(&plan.network, plan.config.seed, compute.device, plan.batches.world_size())?;
        if let Some(config) = &plan.config.train.averaging {
            let rule = Rule::new(config, plan.steps_per_epoch);
            let (weights, statistics) = (&state.flat_parameters, &state.running_statistics);
            state.averaged = Some(Averaged::new(rule, &plan.network, &state.layout, weights, statistics)?);
        }
        let ExchangeMemory { gradients, host_copy: host_exchange, weights } =
            exchange_memory::choose(plan, compute, &state, &comm)?;
        let segments = state.layout.exchange_segments();
        let comm_config = &plan.config.comm;
        let buckets = state.layout.buckets(comm_config);
        let accumulation = match plan.config.train.determinism {
            Determinism::World => Accumulation::Tree,
            Determinism::Run | Determinism::Off => Accumulation::InPlace,
        };
        let options = ReducerOptions {
            overlap: comm_config.overlap.exchanges_early(),
            scale: 1.0 / plan.batches.micro_batches() as f32,
            accumulation,
            wire: comm_config.compression.wire(),
            sharded: match plan.config.optimizer.shard && comm.topology().world_size > 1 {
                true => state.layout.parameters_len,
                false => 0,
            },
            not_finite: Some(state.layout.tail_offset() + Tail::NotFinite as usize),
            own_not_finite: marks_own(&plan.config)
                .then(|| state.layout.rank_marks().start + comm.topology().rank),
        };
        let on_device = weights.is_some();
        let reducer = Reducer::new(comm.clone(), gradients, segments, buckets.clone(), options);
        let (sharded, scratch) = (reducer.shards(), state.gradients()?);
        let shards = (!sharded.is_empty()).then(|| Shards {
            comm: comm.clone(),
            buckets: sharded,
            scratch,
            weights,
            gathering: Gathering::default(),
        });
        let optimizer = Optimizer::new(&plan.config.optimizer, &mut state, shards)?;
        let inputs = Arc::new(StepInputs::default());
        let world_size = comm.topology().world_size;
        // Gradients that are copied to the host come back when the whole exchange is over.
        let updates_early = comm_config.overlap == Overlap::ExchangeAndStep && host_exchange.is_none();
        let hook = StepHook::new(plan, &state, &buckets, world_size, updates_early, Arc::clone(&inputs))?;
        let config = &plan.config;
        let decides = on_device && hook.is_none() && !config.model.sync_norm && optimizer.runs_on_device();
        let holds = config.train.on_nan != OnNan::Skip;
        let decision = decides.then(|| DeviceDecision::new(compute.device, holds)).transpose()?;
        let reducer = Arc::new(match hook {
            Some(hook) => reducer.with_hook(Box::new(hook)),
            None => reducer,
        });
        let hooks_count = Arc::new(AtomicBool::new(false));
        if host_exchange.is_none() {
            for (segment, placed) in state.layout.segments.iter().enumerate() {
                let (reducer, hooks_count) = (Arc::clone(&reducer), Arc::clone(&hooks_count));
                hooks::on_gradient_ready(&state.parameters[placed.parameter], move || {
                    if hooks_count.load(Ordering::Acquire) {
                        reducer.mark_ready(segment);
                    }
                })?;
            }
        }
        let mut offsets = vec![0; state.parameters.len()];
        for placed in &state.layout.segments {
            offsets[placed.parameter] = placed.offset;
        }
        Ok(Engine {
            offsets,
            optimizer,
            input: Input::new(
                plan.config.data.normalize.as_ref(),
                plan.whitening.as_ref(),
                plan.data.train_augmentation.clone(),
                compute.device,
            )?,
            updates_early,
            norm_ranks: plan.config.model.sync_norm.then(|| sync_norm::ranks(&comm)),
            plan,
            compute,
            state,
            reducer,
            comm,
            fault: None,
            computed: Duration::ZERO,
            loss_scale: (config.precision.loss_scale.is_some())
                .then(|| ScaleOnDevice::new(compute.device))
                .transpose()?,
            host_exchange,
            inputs,
            hooks_count,
            decision,
            launched: VecDeque::new(),
            readbacks: Vec::new(),
            settled: None,
            failure: None,
        })
    }

    /// The tensors between steps, complete.
    pub(crate) fn state(&self) -> Result<&State, Error> {
        self.state.optimizer.await_weights()?;
        Ok(&self.state)
    }

    /// Where each parameter lies; the same at all times.
    pub(crate) fn layout(&self) -> &FlatLayout {
        &self.state.layout
    }

    /// Where it computes.
    pub(crate) fn device(&self) -> Device {
        self.compute.device
    }

    pub(crate) fn comm(&self) -> &CommThread {
        &self.comm
    }

    /// The buckets of the exchange as text, one a line; ranks must agree on it.
    pub(crate) fn describe_buckets(&self) -> String {
        self.reducer.description()
    }

    /// Whether gradients are exchanged after backward as a whole, as those of a GPU are over MPI.
    pub(crate) fn exchanges_afterwards(&self) -> bool {
        self.host_exchange.is_some()
    }

    /// Names of parameters, by segment.
    pub(crate) fn segment_names(&self, segments: &[usize]) -> String {
        let parameters = self.plan.network.parameters();
        let name = |&segment: &usize| parameters[self.state.layout.segments[segment].parameter].name.as_str();
        segments.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Computes step `step` of the whole run and has its averages exchanged and used; what it brought is
    /// [`Engine::settle`]'s to tell. `feed` yields this rank's micro batches in order, `wishes` is asked as late as
    /// possible. A failure of this rank still takes part in the exchange, so that no other rank waits for it in vain; so
    /// it does in the next step, where that is launched before the others have heard of it.
    ///
    /// Fails where the exchange failed, or cannot go on; anything else is told when the step is settled.
    pub(crate) fn launch(
        &mut self,
        step: u64,
        learning_rate: f64,
        wishes: &dyn Fn() -> Wishes,
        feed: &mut Feed,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        let mut laps = Laps::begin(self.compute.device, self.launched.back().map(|before| &before.laps))?;
        self.inputs.begin(step, learning_rate);
        self.reducer.begin_step(self.plan.batches.local_micro_batches().len());
        if self.failure.is_none() {
            let computed = self.run_micro_batches(step, wishes, feed, &mut laps);
            self.hooks_count.store(false, Ordering::Release);
            if self.norm_ranks.is_some() {
                // The others wait in a batch norm, which a rank that failed cannot come to any more.
                computed?;
            } else {
                self.failure = computed.err();
            }
            if self.failure.is_none() {
                // Behind the last bucket, which has left: a failure now is one that the exchange cannot tell.
                laps.lap(Part::Backward)?;
            }
        } else {
            let _ = self.state.exchange.f_zero_()?;
        }
        if self.failure.is_some() {
            // The last bucket, which carries the tail, cannot have left before backward is through.
            self.announce_failure()?;
        }
        self.enter(step, "communication");
        self.exchange()?;
        laps.lap(Part::Exchange)?;
        self.enter(step, "optimizer");
        let told = if self.decision.is_some() {
            // Also by a rank that failed: weights are gathered from all, whatever the device decides.
            self.state.optimizer.await_weights()?;
            let gradient_norm = self.update(step, learning_rate)?;
            let readback = self.queue_numbers(gradient_norm.as_ref())?;
            if self.failure.is_some() { Told::OfAFailure } else { Told::UnderWay(readback) }
        } else if self.failure.is_some() {
            Told::OfAFailure
        } else {
            let mut numbers = self.read_numbers()?;
            if numbers.tail(Tail::Failed) == 0.0 {
                match numbers.tail(Tail::NotFinite) == 0.0 {
                    true => {
                        let norm = self.update(step, learning_rate)?;
                        numbers.gradient_norm = norm.map(|norm| norm.f_double_value(&[0])).transpose()?;
                    }
                    false => self.forget_batch_statistics()?,
                }
            }
            Told::Read(numbers)
        };
        laps.lap(Part::Optimizer)?;
        laps.waited(Part::Optimizer, self.state.optimizer.take_waited());
        if self.fault_of(step) == Some(FaultKind::FlipBit) {
            self.flip_bit()?;
        }
        self.launched.push_back(Launched { step, begin, laps, told });
        Ok(())
    }

    /// Steps that have been launched and not settled.
    pub(crate) fn in_flight(&self) -> u64 {
        self.launched.len() as u64
    }

    /// Whether a step may be launched before the one before it is settled: nothing that it does depends on what the host
    /// learns then.
    pub(crate) fn can_run_ahead(&self) -> bool {
        self.decision.is_some()
    }

    /// Waits for the oldest step that was launched, and tells what it brought.
    ///
    /// # Panics
    /// When all have been settled.
    pub(crate) fn settle(&mut self) -> Result<StepOutcome, StepError> {
        let launched = self.launched.pop_front().expect("a step is launched before it is settled");
        let Launched { step, begin, laps, told } = launched;
        self.enter(step, "communication");
        let exchange = self.reducer.settle().map_err(|error| StepError::Exchange(error.into()))?;
        let numbers: Numbers = match told {
            Told::Read(numbers) => numbers,
            Told::UnderWay(readback) => self.await_numbers(readback).map_err(StepError::Exchange)?,
            Told::OfAFailure => {
                let unknown = || Error::Other("this rank failed without a reason".into());
                return Err(StepError::Here(self.failure.take().unwrap_or_else(unknown)));
            }
        };
        if numbers.tail(Tail::Failed) > 0.0 {
            return Err(StepError::Elsewhere);
        }
        let mut phases = laps.read().map_err(StepError::Exchange)?;
        self.computed = phases.input + phases.forward + phases.backward + phases.optimizer;
        phases.step = self.settled.map_or(begin, |settled| settled.max(begin)).elapsed();
        self.settled = Some(Instant::now());
        let micro_batches = self.plan.batches.micro_batches() as f32;
        let count = |entry| (numbers.tail(entry) * micro_batches).round() as u64;
        let skipped = count(Tail::Skipped);
        let updated = numbers.tail(Tail::NotFinite) == 0.0;
        Ok(StepOutcome {
            loss: mean_of_counted(numbers.tail(Tail::Loss), self.plan.batches.global_batch(), skipped),
            correct: count(Tail::Correct),
            stop: numbers.tail(Tail::Stop) > 0.0,
            save: numbers.tail(Tail::Save) > 0.0,
            skipped,
            updated,
            rank_losses: self.losses_of_ranks(&numbers),
            not_finite_ranks: self.ranks_not_finite(&numbers),
            gradient_norm: numbers.gradient_norm.filter(|_| updated),
            phases,
            exchange,
        })
    }

    /// Launches a step and settles it.
    pub(crate) fn step(
        &mut self,
        step: u64,
        learning_rate: f64,
        wishes: &dyn Fn() -> Wishes,
        feed: &mut Feed,
    ) -> Result<StepOutcome, StepError> {
        self.launch(step, learning_rate, wishes, feed).map_err(StepError::Exchange)?;
        self.settle()
    }

    /// Waits for the steps that have been launched and not settled, and forgets what they brought. What they may have
    /// changed is looked into no more, or was left alone by them since a step before them was left out.
    pub(crate) fn discard(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failure.take() {
            tracing::warn!("what this rank failed at is forgotten with its step: {error}");
        }
        while self.launched.pop_front().is_some() {
            let _ = self.reducer.settle()?;
        }
        self.decision.as_ref().map_or(Ok(()), DeviceDecision::release)
    }

    /// What the host knows of the loss scale. From here on the device changes it with each step that it
    /// [runs ahead](Engine::can_run_ahead) with, as the host does when it has settled the step.
    pub(crate) fn set_loss_scale(&self, loss_scale: Option<&LossScale>) -> Result<(), Error> {
        match (&self.loss_scale, loss_scale) {
            (Some(on_device), Some(loss_scale)) => on_device.set(loss_scale),
            (None, _) | (_, None) => Ok(()),
        }
    }

    /// For people, steps count from 1.
    fn enter(&self, step: u64, phase: &'static str) {
        self.comm.flight().enter(Some(step + 1), phase);
    }

    fn run_micro_batches(
        &mut self,
        step: u64,
        wishes: &dyn Fn() -> Wishes,
        feed: &mut Feed,
        laps: &mut Laps,
    ) -> Result<(), Error> {
        let _ = self.state.exchange.f_zero_()?;
        laps.lap(Part::Optimizer)?;
        let micro_batches = self.plan.batches.local_micro_batches();
        let (first, last) = (micro_batches.start, micro_batches.end - 1);
        for micro_batch in micro_batches {
            self.enter(step, "data wait");
            if micro_batch == first {
                self.await_slow_data(step)?;
            }
            let mut delivery = feed.next()?;
            laps.lap(Part::DataWait)?;

            self.enter(step, "input");
            let (images, targets) = self.load(&mut delivery, step, micro_batch)?;
            drop(delivery);
            laps.lap(Part::Input)?;

            self.enter(step, "forward");
            let loss = self.forward(&images, &targets, step, micro_batch)?;
            laps.lap(Part::Forward)?;
            laps.waited(Part::Forward, self.state.optimizer.take_waited());

            self.enter(step, "backward");
            if micro_batch == last {
                if let Some(fault) = self.fault_of(step) {
                    fault.strike(self)?;
                }
                self.tell_wishes(wishes())?;
                self.hooks_count.store(self.host_exchange.is_none(), Ordering::Release);
                self.reducer.begin_last_backward();
                self.mark_left_out(step, micro_batch);
                self.reducer.seal();
            }
            self.backward(&loss)?;
            // A GPU is still at work.
            feed.stage_ahead();
            if micro_batch != last {
                laps.lap(Part::Backward)?;
                self.end_micro_batch()?;
            }
        }
        Ok(())
    }

    fn tell_wishes(&self, wishes: Wishes) -> Result<(), Error> {
        for (wish, entry) in [(wishes.stop, Tail::Stop), (wishes.save, Tail::Save)] {
            if wish {
                let _ = self.state.tail(entry)?.f_fill_(1.0)?;
            }
        }
        Ok(())
    }

    /// Gradients of the loss, times the loss scale.
    fn backward(&self, loss: &Tensor) -> Result<(), Error> {
        match &self.loss_scale {
            None => Ok(loss.f_backward()?),
            Some(loss_scale) => Ok(loss.f_mul(loss_scale.scale())?.f_backward()?),
        }
    }

    /// Where slowness is rehearsed, data comes as much later as everything else took in the step before.
    fn await_slow_data(&self, step: u64) -> Result<(), Error> {
        if self.fault.is_some_and(|fault| fault.kind == FaultKind::Slow && fault.step <= step + 1) {
            // A device has nothing to do meanwhile.
            let _ = self.launched.back().map(|before| before.laps.read()).transpose()?;
            std::thread::sleep(self.computed);
        }
        Ok(())
    }

    /// A micro batch on the device, mixed as the configuration says.
    fn load(
        &self,
        delivery: &mut Delivery,
        step: u64,
        micro_batch: usize,
    ) -> Result<(Tensor, Targets), Error> {
        let [len, height, width, _] = delivery.batch().shape();
        let size = (width as u32, height as u32);
        let mix = self.plan.data.mix.draw(self.plan.config.seed, step, micro_batch, len, size);
        self.input.load(delivery, mix.as_ref())
    }

    /// Loss of one micro batch; its batch statistics, loss and correct count are added to the exchange
    /// buffer.
    fn forward(
        &mut self,
        images: &Tensor,
        targets: &Targets,
        step: u64,
        micro_batch: usize,
    ) -> Result<Tensor, Error> {
        let config = &self.plan.config;
        let (batch, running) = (&*self.state.batch_views, &*self.state.running_views);
        let norm = match &self.norm_ranks {
            _ if config.model.frozen_norm => Norm::Running(running),
            Some(ranks) => Norm::Synchronized { batch, ranks },
            None => Norm::Batch { batch, running },
        };
        let draws = Some(self.draw_key(step, micro_batch));
        // Others than its owner may still be getting a parameter.
        let before_use = self.state.optimizer.shards().map(|shards| {
            |parameter: usize| {
                let arrived = shards.gathering.await_element(self.offsets[parameter]);
                arrived.map_err(|error| ModelError::Parameter(error.to_string()))
            }
        });
        let pass = Pass {
            parameters: &self.state.parameters,
            before_use: before_use.as_ref().map(|wait| -> BeforeUse { wait }),
            norm,
            draws,
            memory: config.train.memory,
        };
        let logits = self.logits(images, &pass)?;
        // Those of blocks that were left out.
        self.state.optimizer.await_weights()?;
        let loss = targets.loss(&logits, config.train.label_smoothing)?;
        let _no_grad = tch::no_grad_guard();
        if !config.model.frozen_norm {
            let _ = self.state.summed_statistics()?.f_add_(&self.state.batch_statistics)?;
        }
        self.tell_loss(&loss.f_detach()?)?;
        let _ = self.state.tail(Tail::Correct)?.f_add_(&targets.correct(&logits)?)?;
        if targets.skipped > 0 {
            let _ = self.state.tail(Tail::Skipped)?.f_add_scalar_(targets.skipped as f64)?;
        }
        Ok(loss)
    }

    /// Adds to the mean loss, and to this rank's.
    fn tell_loss(&self, loss: &Tensor) -> Result<(), Error> {
        let _ = self.state.tail(Tail::Loss)?.f_add_(loss)?;
        let _ = self.state.rank_loss(self.comm.topology().rank)?.f_add_(loss)?;
        Ok(())
    }

    fn draw_key(&self, step: u64, micro_batch: usize) -> DrawKey {
        DrawKey { seed: self.plan.config.seed, step, micro_batch: micro_batch as u64 }
    }

    /// Backward has nothing to tell of the parameters that stochastic depth leaves out of the step's last
    /// micro batch: the exchange of their buckets need not wait for its end.
    fn mark_left_out(&self, step: u64, micro_batch: usize) {
        if self.plan.config.model.stochastic_depth == 0.0 || self.host_exchange.is_some() {
            return;
        }
        let left_out = self.plan.network.left_out(self.draw_key(step, micro_batch));
        for (segment, placed) in self.state.layout.segments.iter().enumerate() {
            if left_out.contains(&placed.parameter) {
                self.reducer.mark_ready(segment);
            }
        }
    }

    /// Logits `[N, classes]` in fp32.
    fn logits(&self, images: &Tensor, pass: &Pass) -> Result<Tensor, Error> {
        let _autocast =
            self.compute.autocast.map(|kind| autocast::Guard::new(self.compute.device, kind)).transpose()?;
        Ok(self.plan.network.forward(images, pass)?.f_to_kind(Kind::Float)?)
    }

    /// Logits `[N, classes]` of `weights` and labels `[N]` with running statistics and without dropout or gradients.
    pub(crate) fn evaluate(
        &self,
        delivery: &mut Delivery,
        weights: WeightSet,
    ) -> Result<(Tensor, Tensor), Error> {
        let _no_grad = tch::no_grad_guard();
        self.state.optimizer.await_weights()?;
        let (images, labels) = self.input.load_test(delivery)?;
        let (parameters, running) = match (weights, &self.state.averaged) {
            (WeightSet::Averaged, Some(averaged)) => (&averaged.views, &averaged.running_views),
            (WeightSet::Current, _) | (_, None) => (&self.state.parameters, &self.state.running_views),
        };
        let norm = Norm::Running(running);
        let pass = Pass { parameters, before_use: None, norm, draws: None, memory: Memory::Plain };
        Ok((self.logits(&images, &pass)?, labels))
    }

    fn end_micro_batch(&mut self) -> Result<(), Error> {
        match &mut self.host_exchange {
            None => self.reducer.end_micro_batch(),
            Some(host) if self.plan.config.train.determinism == Determinism::World => {
                host.f_copy_(&self.state.exchange)?;
                self.reducer.end_micro_batch();
                let _ = self.state.exchange.f_zero_()?;
            }
            // Accumulates in place on the device.
            Some(_) => {}
        }
        Ok(())
    }

    fn announce_failure(&mut self) -> Result<(), Error> {
        let _ = self.state.tail(Tail::Failed)?.f_fill_(1.0)?;
        self.reducer.begin_last_backward();
        self.reducer.seal();
        Ok(())
    }

    /// From here on the exchange buffer holds averages, for whatever is queued on its device.
    fn exchange(&mut self) -> Result<(), Error> {
        if let Some(host) = &mut self.host_exchange {
            host.f_copy_(&self.state.exchange)?;
        }
        self.reducer.launch()?;
        if let Some(host) = &self.host_exchange {
            self.state.exchange.f_copy_(host)?;
        }
        Ok(())
    }
}

/// Whether ranks look through their own gradients before the sum, for what is infinite or NaN: where nobody looks for it
/// afterwards, in the step computed once more.
fn marks_own(config: &Config) -> bool {
    let computed_once_more = config.train.on_nan == OnNan::Stop
        && config.comm.overlap != Overlap::ExchangeAndStep
        && !config.model.sync_norm;
    !computed_once_more || config.precision.loss_scale.is_some()
}
