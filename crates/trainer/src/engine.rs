//! One optimizer step: micro batches forward and backward, gradients exchanged meanwhile, weights updated.
//!
//! Knows nothing of epochs, files or schedules; the caller brings batches and the learning rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use allreduce::{Accumulation, CommThread, Reducer, ReducerOptions, StepExchange};
use model::{BeforeUse, DrawKey, Memory, ModelError, Norm, Pass};
use tch::{Device, Kind, Tensor};
use torch_ext::sync_norm::Ranks;
use torch_ext::{autocast, hooks};

use crate::averaging::{Averaged, Rule};
use crate::bucket_hook::{StepHook, StepInputs};
use crate::config::{Determinism, Overlap};
use crate::device::Compute;
use crate::error::Error;
use crate::exchange_memory::{self, ExchangeMemory};
use crate::fault::{Fault, FaultKind, Stage};
use crate::feed::{Delivery, Feed};
use crate::flat::{FlatLayout, Tail};
use crate::health::evidence::NotFinite;
use crate::input::{Input, Targets};
use crate::optimizer::Optimizer;
use crate::optimizer::gathering::Gathering;
use crate::optimizer::memory::Shards;
use crate::plan::Plan;
use crate::state::State;
use crate::sync_norm;

/// Seconds that this rank spent in each part of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phases {
    pub(crate) data_wait: Duration,
    pub(crate) input: Duration,
    pub(crate) forward: Duration,
    pub(crate) backward: Duration,
    pub(crate) exposed_communication: Duration,
    pub(crate) optimizer: Duration,
    pub(crate) step: Duration,
}

/// What one step brought, equal on all ranks but for the times.
#[derive(Clone, Debug)]
pub(crate) struct StepOutcome {
    /// Mean loss over the samples of the global batch that were not skipped.
    pub(crate) loss: f32,
    /// Correct predictions among the global batch.
    pub(crate) correct: u64,
    /// Some rank was asked to stop.
    pub(crate) stop: bool,
    /// Rank 0 wants to save.
    pub(crate) save: bool,
    /// Samples of the global batch that could not be decoded and were skipped.
    pub(crate) skipped: u64,
    /// Whether the averages were finite numbers; otherwise nothing was updated.
    pub(crate) updated: bool,
    /// L2 norm of the averaged gradient, where it is clipped.
    pub(crate) gradient_norm: Option<f64>,
    pub(crate) phases: Phases,
    pub(crate) exchange: StepExchange,
}

/// What a rank tells the others with a step, just before its last backward pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// To stop after it.
    pub(crate) stop: bool,
    /// To save after it.
    pub(crate) save: bool,
}

/// Why a step ended without an update.
#[derive(Debug)]
pub(crate) enum StepError {
    /// This rank failed; every rank knows that some rank did, and waits to hear which.
    Here(Error),
    /// Another rank failed.
    Elsewhere,
    /// The exchange itself failed: the ranks can no longer speak to each other.
    Exchange(Error),
}

/// Which weights are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightSet {
    /// Those that are trained.
    Current,
    /// Their moving average, where there is one.
    Averaged,
}

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
    /// What the loss is multiplied by.
    pub(crate) loss_scale: f32,
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
}

impl<'plan> Engine<'plan> {
    /// Allocates everything, and connects each gradient with the exchange. `comm` may differ from the
    /// session's to measure a step without exchange.
    pub(crate) fn new(plan: &'plan Plan, compute: Compute, comm: CommThread) -> Result<Self, Error> {
        let mut state = State::new(&plan.network, plan.config.seed, compute.device)?;
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
        };
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
            loss_scale: 1.0,
            host_exchange,
            inputs,
            hooks_count,
        })
    }

    /// Lets `fault` happen when its step comes, if it is this rank's.
    pub(crate) fn rehearse(&mut self, fault: Option<Fault>) -> Result<(), Error> {
        let Some(fault) = fault else { return Ok(()) };
        fault.check(&Stage {
            config: &self.plan.config,
            steps: self.plan.total_steps(),
            ranks: self.comm.topology().world_size,
            buckets: self.state.layout.buckets(&self.plan.config.comm).len(),
        })?;
        self.fault = Some(fault).filter(|fault| fault.rank == self.comm.topology().rank);
        Ok(())
    }

    /// A fault happens once: no repetition of its step brings it again.
    pub(crate) fn forget_fault(&mut self) {
        self.fault = None;
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

    /// A gradient that is not a number.
    pub(crate) fn spoil_gradient(&mut self) -> Result<(), Error> {
        let _ = self.state.gradients()?.f_narrow(0, 0, 1)?.f_fill_(f64::NAN)?;
        Ok(())
    }

    /// A loss that is far too high, on this rank alone. The weights do not notice.
    pub(crate) fn spoil_loss(&mut self) -> Result<(), Error> {
        // The average over all micro batches is to be as much higher however many there are.
        let excess = 1e3 * self.plan.batches.micro_batches() as f64;
        let _ = self.state.tail(Tail::Loss)?.f_add_scalar_(excess)?;
        Ok(())
    }

    /// Another bit in one weight.
    fn flip_bit(&mut self) -> Result<(), Error> {
        self.state.optimizer.await_weights()?;
        let _no_grad = tch::no_grad_guard();
        let _ = self
            .state
            .flat_parameters
            .f_narrow(0, 0, 1)?
            .f_view_dtype(Kind::Int)?
            .f_bitwise_xor_(1_i64 << 16)?;
        Ok(())
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

    /// Runs step `step` of the whole run. `feed` yields this rank's micro batches in order, `wishes` is asked
    /// as late as possible. A failure of this rank still takes part in the exchange, so that no other rank waits for it
    /// in vain.
    pub(crate) fn step(
        &mut self,
        step: u64,
        learning_rate: f64,
        wishes: &dyn Fn() -> Wishes,
        feed: &mut Feed,
    ) -> Result<StepOutcome, StepError> {
        let begin = Instant::now();
        let mut phases = Phases::default();
        self.inputs.begin(step, learning_rate);
        self.reducer.begin_step(self.plan.batches.local_micro_batches().len());
        let local = self.run_micro_batches(step, wishes, feed, &mut phases);
        self.hooks_count.store(false, Ordering::Release);
        let local = match local {
            // The others wait in a batch norm, which this rank cannot come to any more.
            Err(error) if self.norm_ranks.is_some() => return Err(StepError::Exchange(error)),
            local => local,
        };
        if local.is_err() {
            // The last bucket, which carries the tail, cannot have left before backward is through.
            self.announce_failure().map_err(StepError::Exchange)?;
        }
        self.enter(step, "communication");
        let exchange = self.exchange().map_err(StepError::Exchange)?;
        phases.exposed_communication += exchange.exposed;
        local.map_err(StepError::Here)?;
        let tail = self.state.read_tail().map_err(StepError::Exchange)?;
        if tail[Tail::Failed as usize] > 0.0 {
            return Err(StepError::Elsewhere);
        }
        self.enter(step, "optimizer");
        let updated = self.state.optimizer.all_ranks(exchange.is_finite()).map_err(StepError::Exchange)?;
        let update_begin = Instant::now();
        let gradient_norm = match updated {
            true => self.update(step, learning_rate).map_err(StepError::Exchange)?,
            false => {
                // Batch norm adds zero times what was there before, and zero times NaN is NaN.
                let _ = self.state.batch_statistics.f_zero_().map_err(|it| StepError::Exchange(it.into()))?;
                None
            }
        };
        let waited = self.state.optimizer.take_waited();
        phases.exposed_communication += waited;
        phases.optimizer = update_begin.elapsed().saturating_sub(waited);
        if self.fault_of(step) == Some(FaultKind::FlipBit) {
            self.flip_bit().map_err(StepError::Exchange)?;
        }
        self.computed = phases.input + phases.forward + phases.backward + phases.optimizer;
        phases.step = begin.elapsed();
        let micro_batches = self.plan.batches.micro_batches() as f32;
        let skipped = (tail[Tail::Skipped as usize] * micro_batches).round() as u64;
        Ok(StepOutcome {
            loss: mean_of_counted(tail[Tail::Loss as usize], self.plan.batches.global_batch(), skipped),
            correct: (tail[Tail::Correct as usize] * micro_batches).round() as u64,
            stop: tail[Tail::Stop as usize] > 0.0,
            save: tail[Tail::Save as usize] > 0.0,
            skipped,
            updated,
            gradient_norm,
            phases,
            exchange,
        })
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
        phases: &mut Phases,
    ) -> Result<(), Error> {
        let _ = self.state.exchange.f_zero_()?;
        let micro_batches = self.plan.batches.local_micro_batches();
        let (first, last) = (micro_batches.start, micro_batches.end - 1);
        for micro_batch in micro_batches {
            self.enter(step, "data wait");
            let clock = Instant::now();
            if micro_batch == first {
                self.await_slow_data(step);
            }
            let mut delivery = feed.next()?;
            phases.data_wait += clock.elapsed();

            self.enter(step, "input");
            let clock = Instant::now();
            let (images, targets) = self.load(&mut delivery, step, micro_batch)?;
            drop(delivery);
            phases.input += clock.elapsed();

            self.enter(step, "forward");
            let clock = Instant::now();
            let loss = self.forward(&images, &targets, step, micro_batch)?;
            let waited = self.state.optimizer.take_waited();
            phases.exposed_communication += waited;
            phases.forward += clock.elapsed().saturating_sub(waited);

            self.enter(step, "backward");
            let clock = Instant::now();
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
            phases.backward += clock.elapsed();
            // A GPU is still at work.
            feed.stage_ahead();
            if micro_batch != last {
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
        if self.loss_scale == 1.0 {
            return Ok(loss.f_backward()?);
        }
        Ok(loss.f_mul_scalar(f64::from(self.loss_scale))?.f_backward()?)
    }

    /// Where slowness is rehearsed, data comes as much later as everything else took in the step before.
    fn await_slow_data(&self, step: u64) {
        if self.fault.is_some_and(|fault| fault.kind == FaultKind::Slow && fault.step <= step + 1) {
            std::thread::sleep(self.computed);
        }
    }

    fn fault_of(&self, step: u64) -> Option<FaultKind> {
        self.fault.filter(|fault| fault.step == step + 1).map(|fault| fault.kind)
    }

    /// Whether a step cannot be computed once more as it was. With weights that are updated early what was not finite is
    /// in them already, and ranks that normalise together would have to search together and find at the same place.
    fn hides_origins(&self) -> bool {
        self.updates_early || self.norm_ranks.is_some()
    }

    /// The first parameter whose gradient is not finite in the average of the last step, where the step
    /// [hides](Engine::hides_origins) what that comes from.
    pub(crate) fn not_finite_in_average(&self) -> Result<Option<String>, Error> {
        if !self.hides_origins() || self.state.optimizer.shards().is_some() {
            return Ok(None);
        }
        Ok(self.first_not_finite()?.map(|segment| self.segment_names(&[segment])))
    }

    /// The first segment whose gradient is not finite.
    fn first_not_finite(&self) -> Result<Option<usize>, Error> {
        let gradients = self.state.gradients()?;
        for (index, segment) in self.state.layout.segments.iter().enumerate() {
            let gradient = gradients.f_narrow(0, segment.offset as i64, segment.len as i64)?;
            if gradient.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Computes this rank's part of `step` once more, without the others, to find out what is not finite in it.
    /// `feed` yields the same micro batches again.
    pub(crate) fn find_not_finite(&mut self, step: u64, feed: &mut Feed) -> Result<Option<NotFinite>, Error> {
        if self.hides_origins() {
            return Ok(None);
        }
        self.enter(step, "search for what is not finite");
        for micro_batch in self.plan.batches.local_micro_batches() {
            let _ = self.state.exchange.f_zero_()?;
            let (images, targets) = self.load(&mut feed.next()?, step, micro_batch)?;
            let loss = self.forward(&images, &targets, step, micro_batch)?;
            let value = loss.f_double_value(&[])?;
            if !value.is_finite() {
                let what = format!("the loss became {value}");
                return Ok(Some(NotFinite { micro_batch, what, tensor: None }));
            }
            if self.fault_of(step) == Some(FaultKind::Nan) {
                self.spoil_gradient()?;
            }
            self.backward(&loss)?;
            if let Some(segment) = self.first_not_finite()? {
                let name = self.segment_names(&[segment]);
                let what = format!("the gradient of {name} became infinite or NaN");
                return Ok(Some(NotFinite { micro_batch, what, tensor: Some(name) }));
            }
        }
        Ok(None)
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
        let _ = self.state.tail(Tail::Loss)?.f_add_(&loss.f_detach()?)?;
        let _ = self.state.tail(Tail::Correct)?.f_add_(&targets.correct(&logits)?)?;
        if targets.skipped > 0 {
            let _ = self.state.tail(Tail::Skipped)?.f_add_scalar_(targets.skipped as f64)?;
        }
        Ok(loss)
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

    fn exchange(&mut self) -> Result<StepExchange, Error> {
        if let Some(host) = &mut self.host_exchange {
            host.f_copy_(&self.state.exchange)?;
        }
        let exchange = self.reducer.finish()?;
        if let Some(host) = &self.host_exchange {
            self.state.exchange.f_copy_(host)?;
        }
        Ok(exchange)
    }

    /// Gives the norm of the gradient, where it is clipped.
    fn update(&mut self, step: u64, learning_rate: f64) -> Result<Option<f64>, Error> {
        let _no_grad = tch::no_grad_guard();
        if self.loss_scale != 1.0 {
            let _ = self.state.gradients()?.f_mul_scalar_(1.0 / f64::from(self.loss_scale))?;
        }
        let config = &self.plan.config.model;
        if !config.frozen_norm {
            let mut averaged = self.state.summed_statistics()?;
            let _ = averaged.f_mul_scalar_(config.norm_momentum)?;
            let _ = self.state.running_statistics.f_mul_scalar_(1.0 - config.norm_momentum)?;
            let _ = self.state.running_statistics.f_add_(&averaged)?;
        }
        let norm = if self.updates_early { None } else { self.update_weights(learning_rate)? };
        let state = &self.state;
        if let Some(averaged) = &state.averaged {
            state.optimizer.await_weights()?;
            averaged.update(step + 1, &state.flat_parameters, &state.running_statistics)?;
        }
        Ok(norm)
    }

    fn update_weights(&self, learning_rate: f64) -> Result<Option<f64>, Error> {
        let norm = self.optimizer.step(learning_rate)?;
        if let Some(shards) = self.state.optimizer.shards() {
            shards.gather_weights(&self.state.flat_parameters)?;
            if !self.plan.config.comm.overlap.exchanges_early() {
                self.state.optimizer.await_weights()?;
            }
        }
        Ok(norm)
    }
}

/// A mean over all samples in which the `skipped` ones are zeros, as the mean over the others.
fn mean_of_counted(mean: f32, samples: usize, skipped: u64) -> f32 {
    match (samples as u64).saturating_sub(skipped) {
        _ if skipped == 0 => mean,
        counted => (f64::from(mean) * samples as f64 / counted as f64) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_samples_do_not_lower_the_loss() {
        assert_eq!(mean_of_counted(2.5, 8, 0), 2.5);
        // Six losses of 4 and two zeros.
        assert_eq!(mean_of_counted(3.0, 8, 2), 4.0);
        assert!(mean_of_counted(0.0, 8, 8).is_nan(), "there is nothing to take the mean of");
    }
}
