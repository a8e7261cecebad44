//! `wrn-dist bench model`: memory and time of a training step of a network on the CPU, from made-up images and
//! without any exchange. One process measures one memory mode.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use model::{Architecture, DrawKey, Memory, Network, Norm, Options, Pass};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};
use torch_ext::{autocast, layout, memory, runtime};

use super::median;
use crate::config::{Dtype, OptimizerConfig};
use crate::device::usable_cores;
use crate::error::Error;
use crate::optimizer::Optimizer;
use crate::state::State;

const SEED: u64 = 1;
const LEARNING_RATE: f64 = 0.1;

/// What `wrn-dist bench model` was asked to do.
#[derive(Clone, Debug)]
pub struct ModelBenchOptions {
    /// Architecture string.
    pub arch: String,
    /// Images that go through the network at once.
    pub batch: NonZeroUsize,
    /// Number format of the forward and backward pass.
    pub dtype: Dtype,
    /// What is kept for backward.
    pub memory: Memory,
    /// Dropout probability.
    pub dropout: f64,
    /// Side of the images in pixels; the architecture's usual one when absent.
    pub image_size: Option<u32>,
    /// libtorch's threads; all usable cores when absent.
    pub threads: Option<NonZeroUsize>,
    /// Measured steps.
    pub steps: usize,
    /// Steps before that.
    pub warmup: usize,
}

/// Memory and time of a training step; bytes of host memory, medians over the measured steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelBench {
    /// Architecture.
    pub arch: String,
    /// What is kept for backward.
    pub memory: Memory,
    /// Number format.
    pub dtype: Dtype,
    /// Images of a step.
    pub batch: usize,
    /// libtorch's threads.
    pub threads: usize,
    /// What [`Network::activation_bytes`] foretells for the batch.
    pub estimated_activation_bytes: u64,
    /// Tensors that forward left for backward.
    pub activation_bytes: u64,
    /// The most that tensors took at once within a step, beyond what stays from step to step.
    pub peak_bytes: u64,
    /// Growth of the process (high-water mark of its resident memory) since before the network existed, with
    /// weights, gradients, momentum and whatever else stays.
    pub process_peak_bytes: u64,
    /// A whole step.
    pub step_seconds: f64,
    /// Its forward pass.
    pub forward_seconds: f64,
    /// Its backward pass.
    pub backward_seconds: f64,
    /// The fastest step.
    pub fastest_step_seconds: f64,
    /// Processor time of a step over all threads, mean: on a busy machine the fairer measure, with one thread.
    pub cpu_seconds: f64,
}

/// Measures in this process, which must not have used libtorch before.
///
/// # Errors
/// An impossible network or option, or libtorch's refusal.
pub fn bench_model(options: &ModelBenchOptions) -> Result<ModelBench, Error> {
    memory::count_host_memory()?;
    let threads = options.threads.map_or_else(usable_cores, NonZeroUsize::get);
    runtime::set_threads(threads, 1)?;
    runtime::keep_freed_memory();
    let architecture: Architecture = options.arch.parse()?;
    let network = Network::new(
        &architecture,
        &Options {
            dropout: options.dropout,
            classes: architecture.usual_classes(),
            image_size: options.image_size.unwrap_or_else(|| architecture.usual_image_size()),
            ..Options::default()
        },
    )?;
    let resident_before = reset_peak_of_process()?;
    let mut step = Step::new(&network, options)?;
    let mut measured = Vec::with_capacity(options.steps);
    let mut cpu_before = 0.0;
    for number in 0..options.warmup + options.steps {
        if number == options.warmup {
            cpu_before = cpu_seconds_of_process()?;
        }
        let outcome = step.run(number as u64)?;
        if number >= options.warmup {
            measured.push(outcome);
        }
    }
    let cpu_seconds = (cpu_seconds_of_process()? - cpu_before) / options.steps as f64;
    let seconds = |of: fn(&Measured) -> Duration| measured.iter().map(move |m| of(m).as_secs_f64());
    let bytes = |of: fn(&Measured) -> u64| measured.iter().map(of).max().unwrap_or(0);
    Ok(ModelBench {
        arch: architecture.to_string(),
        memory: options.memory,
        dtype: options.dtype,
        batch: options.batch.get(),
        threads,
        estimated_activation_bytes: options.batch.get() as u64
            * network.activation_bytes(options.memory, options.dtype.kind()),
        activation_bytes: bytes(|m| m.activation_bytes),
        peak_bytes: bytes(|m| m.peak_bytes),
        process_peak_bytes: status_bytes("VmHWM")?.saturating_sub(resident_before),
        step_seconds: median(seconds(|m| m.step)),
        forward_seconds: median(seconds(|m| m.forward)),
        backward_seconds: median(seconds(|m| m.backward)),
        fastest_step_seconds: seconds(|m| m.step).fold(f64::INFINITY, f64::min),
        cpu_seconds,
    })
}

/// One step's memory and time.
struct Measured {
    activation_bytes: u64,
    peak_bytes: u64,
    forward: Duration,
    backward: Duration,
    step: Duration,
}

/// Everything that stays from step to step.
struct Step<'a> {
    network: &'a Network,
    options: &'a ModelBenchOptions,
    state: State,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
}

impl<'a> Step<'a> {
    fn new(network: &'a Network, options: &'a ModelBenchOptions) -> Result<Self, Error> {
        let mut state = State::new(network, SEED, Device::Cpu, 1)?;
        let batch = options.batch.get() as i64;
        let (channels, side) = network.image_shape();
        tch::manual_seed(SEED as i64);
        let images = Tensor::f_randn(
            [batch, i64::from(channels), i64::from(side), i64::from(side)],
            (Kind::Float, Device::Cpu),
        )?;
        Ok(Step {
            optimizer: Optimizer::new(&OptimizerConfig::default(), &mut state, None)?,
            images: layout::channels_last(&images)?,
            labels: Tensor::f_randint(i64::from(network.classes()), [batch], (Kind::Int64, Device::Cpu))?,
            network,
            options,
            state,
        })
    }

    fn run(&mut self, number: u64) -> Result<Measured, Error> {
        let before = memory::host_bytes();
        let _ = memory::take_host_peak_bytes();
        let begin = Instant::now();
        let _ = self.state.exchange.f_zero_()?;
        let clock = Instant::now();
        let pass = Pass {
            parameters: &self.state.parameters,
            norm: Norm::Batch { batch: &self.state.batch_views, running: &self.state.running_views },
            draws: Some(DrawKey { seed: SEED, step: number, micro_batch: 0 }),
            memory: self.options.memory,
            before_use: None,
        };
        let logits = {
            let _autocast = autocast::Guard::new(Device::Cpu, self.options.dtype.kind())?;
            self.network.forward(&self.images, &pass)?.f_to_kind(Kind::Float)?
        };
        let loss = logits.f_cross_entropy_loss::<&Tensor>(&self.labels, None, Reduction::Mean, -100, 0.0)?;
        drop(logits);
        let forward = clock.elapsed();
        let activation_bytes = memory::host_bytes().saturating_sub(before);
        let clock = Instant::now();
        loss.f_backward()?;
        let backward = clock.elapsed();
        drop(loss);
        {
            let _no_grad = tch::no_grad_guard();
            let _ = self.optimizer.step(LEARNING_RATE, None)?;
        }
        Ok(Measured {
            activation_bytes,
            peak_bytes: memory::take_host_peak_bytes().saturating_sub(before),
            forward,
            backward,
            step: begin.elapsed(),
        })
    }
}

/// Bytes that the process holds now; from here on counts its high-water mark.
fn reset_peak_of_process() -> Result<u64, Error> {
    // proc(5): 5 resets the peak resident set size.
    std::fs::write("/proc/self/clear_refs", "5")
        .map_err(|error| Error::Other(format!("cannot reset the process's peak memory: {error}")))?;
    status_bytes("VmRSS")
}

/// A line of `/proc/self/status`, which counts in KiB.
fn status_bytes(key: &str) -> Result<u64, Error> {
    let path = "/proc/self/status";
    let missing = |reason: String| Error::Other(format!("{path} does not tell {key}: {reason}"));
    let status = std::fs::read_to_string(path).map_err(|error| missing(error.to_string()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| missing("no such line".into()))
}

/// Processor time that the process has used.
fn cpu_seconds_of_process() -> Result<f64, Error> {
    let path = "/proc/self/stat";
    let missing = |reason: String| Error::Other(format!("{path} does not tell processor times: {reason}"));
    let stat = std::fs::read_to_string(path).map_err(|error| missing(error.to_string()))?;
    // proc(5): after the name in brackets from field 3 on; fields 14 and 15 are user and system time in
    // hundredths of a second.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<u64>, _> = fields.map(str::parse).collect();
    Ok(ticks.map_err(|error| missing(error.to_string()))?.iter().sum::<u64>() as f64 / 100.0)
}

impl ModelBench {
    /// A table for people, one row a mode; memory and time of the step also as multiples of the first row's.
    #[must_use]
    pub fn table(rows: &[ModelBench]) -> String {
        let Some(first) = rows.first() else { return String::new() };
        const MIB: f64 = 1024.0 * 1024.0;
        type Column = fn(&ModelBench) -> f64;
        let columns: [(&str, bool, Column); 8] = [
            ("estimate", false, |row| row.estimated_activation_bytes as f64 / MIB),
            ("kept", true, |row| row.activation_bytes as f64 / MIB),
            ("peak", true, |row| row.peak_bytes as f64 / MIB),
            ("process", false, |row| row.process_peak_bytes as f64 / MIB),
            ("forward", false, |row| 1e3 * row.forward_seconds),
            ("backward", false, |row| 1e3 * row.backward_seconds),
            ("step", true, |row| 1e3 * row.step_seconds),
            ("processor", true, |row| 1e3 * row.cpu_seconds),
        ];
        let mut text = format!(
            "{}, {} images, {}, {} thread(s); memory in MiB, times of a step in ms\n{:<11}",
            first.arch, first.batch, first.dtype, first.threads, "memory"
        );
        for (name, compared, _) in columns {
            text += &format!("{name:>11}{:>1$}", "", if compared { 7 } else { 0 });
        }
        for row in rows {
            text += &format!("\n{:<11}", row.memory);
            for (_, compared, value) in columns {
                text += &format!("{:>11.1}", value(row));
                if compared {
                    text += &format!("{:>6.2}x", value(row) / value(first));
                }
            }
        }
        text + "\n"
    }
}
