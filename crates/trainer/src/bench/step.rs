//! `wrn-dist bench step`: where the time of a training step goes, and what the exchange of gradients costs.
//!
//! Two engines run turn by turn in one process group: one exchanges its gradients as configured, the other
//! keeps them. Their difference is the exposed cost of the exchange, free of the machine's mood.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use allreduce::{CommThread, Solo};
use serde::Serialize;

use super::median;
use crate::config::ranges::MOST_EPOCHS;
use crate::config::{self, Compression, LoadedConfig};
use crate::device::Compute;
use crate::engine::{Engine, StepError, StepOutcome, Wishes};
use crate::error::Error;
use crate::feed::Feed;
use crate::session::{Command, Session, with_delayed_session};
use crate::telemetry::PhaseSeconds;
use crate::train::{configured_comm, decoder_threads, open_plan, training_feed};

/// Steps of one kind in a row, where one is launched while the one before is under way.
const BURST: usize = 8;

/// What `wrn-dist bench step` was asked to do.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// `--set` arguments.
    pub overrides: Vec<String>,
    /// Measured steps of each kind.
    pub steps: usize,
    /// Steps of each kind before that.
    pub warmup: usize,
    /// Added to the all-reduce of each bucket, as a slower network would; with `optimizer.shard` half of it to each half.
    pub delay: Duration,
}

/// Medians over the measured steps, of rank 0.
#[derive(Clone, Debug, Serialize)]
pub struct StepBench {
    /// Number of ranks.
    pub world_size: usize,
    /// Images of a step over all ranks.
    pub global_batch: usize,
    /// With the configured exchange.
    pub with_exchange: StepMedians,
    /// Without any exchange.
    pub without_exchange: StepMedians,
    /// Growth of the step by the exchange, as a share of the step without it.
    pub exposed_share: f64,
}

/// Medians of one kind of step.
#[derive(Clone, Debug, Serialize)]
pub struct StepMedians {
    /// Over all ranks.
    pub images_per_second: f64,
    /// Medians of each part.
    #[serde(flatten)]
    seconds: PhaseSeconds,
    /// Median of the share of backward that had passed when the first bucket's all-reduce started.
    /// Absent where a GPU computes: the host queues both long before.
    pub first_exchange_at_share_of_backward: Option<f64>,
    /// Number of buckets.
    pub buckets: usize,
    /// Median of the processor time of the communication thread for all buckets: of this, no core can hide anything
    /// while all compute.
    pub exchange_processor_seconds: f64,
}

/// Measures; collective over all ranks.
///
/// # Errors
/// As [`crate::train`].
pub fn bench_step(options: &BenchOptions) -> Result<Option<StepBench>, Error> {
    let loaded = config::load(&options.config, &options.overrides);
    let command = Command::new(
        "bench step",
        &[
            ("steps", options.steps.to_string()),
            ("warmup", options.warmup.to_string()),
            ("delay-ms", format!("{:?}", options.delay)),
        ],
    );
    with_delayed_session(&command, &configured_comm(&loaded), options.delay, |session| {
        let mut loaded = session.agree(loaded.map_err(Error::from))?;
        // The pool ends with the run: make it long enough.
        loaded.config.train.epochs = MOST_EPOCHS;
        let plan = open_plan(session, &loaded)?;
        let uncompressed =
            without_power_sgd(&loaded).map(|loaded| open_plan(session, &loaded)).transpose()?;
        let compute = Compute::set_up(session, &loaded)?;
        session.spin_on_a_spare_core(compute.threads);
        let exchanging = Engine::new(&plan, compute, session.comm().clone());
        let alone = CommThread::start(|| Ok(Box::new(Solo::new()))).map_err(Error::from);
        let keeping =
            alone.and_then(|comm| Engine::new(uncompressed.as_ref().unwrap_or(&plan), compute, comm));
        let mut engines = [session.agree(exchanging)?, session.agree(keeping)?];
        let workers = decoder_threads(&plan, session, compute);
        let mut feed = session.agree(training_feed(&plan, compute.device, 0, workers))?;
        let mut outcomes: [Vec<StepOutcome>; 2] = [Vec::new(), Vec::new()];
        // A delay keeps the host until a step is computed, so that the other engine must not run ahead either.
        let ahead = options.delay.is_zero() && engines.iter().all(Engine::can_run_ahead);
        let burst = if ahead { BURST } else { 1 };
        for (steps, measured) in bursts(options.warmup, options.steps, burst) {
            for (engine, outcomes) in engines.iter_mut().zip(&mut outcomes) {
                session.comm().barrier()?;
                let local = match run_steps(engine, steps.clone(), plan.schedule.rate(0), &mut feed) {
                    Ok(burst) => Ok(burst),
                    Err(StepError::Here(error)) => Err(error),
                    Err(StepError::Elsewhere) => return session.agree(Ok(())).map(|()| None),
                    Err(StepError::Exchange(error)) => return Err(error),
                };
                let burst = session.agree(local)?;
                if measured {
                    outcomes.extend(burst);
                }
            }
        }
        let [with, without] = outcomes;
        let (global_batch, on_gpu) = (plan.config.train.global_batch, compute.device.is_cuda());
        Ok(session.is_leader().then(|| summarise(session, global_batch, on_gpu, &with, &without)))
    })
}

/// So many steps without and then with measurement, in bursts of `most` or less: the steps of each, and whether they are
/// measured.
fn bursts(warmup: usize, measured: usize, most: usize) -> impl Iterator<Item = (Range<u64>, bool)> {
    let of = move |steps: Range<usize>, is_measured: bool| {
        let end = steps.end;
        steps.step_by(most).map(move |first| (first as u64..end.min(first + most) as u64, is_measured))
    };
    of(0..warmup, false).chain(of(warmup..warmup + measured, true))
}

/// Steps that are launched one after the other, each while the one before is under way where that is possible; the time
/// of a step is then its share of all.
fn run_steps(
    engine: &mut Engine,
    steps: Range<u64>,
    learning_rate: f64,
    feed: &mut Feed,
) -> Result<Vec<StepOutcome>, StepError> {
    let (begin, count) = (Instant::now(), steps.end - steps.start);
    let mut outcomes = Vec::new();
    for step in steps {
        engine.launch(step, learning_rate, &Wishes::default, feed).map_err(StepError::Exchange)?;
        if engine.in_flight() > 1 {
            outcomes.push(engine.settle()?);
        }
    }
    outcomes.push(engine.settle()?);
    let each = begin.elapsed() / count as u32;
    outcomes.iter_mut().for_each(|outcome| outcome.phases.step = each);
    Ok(outcomes)
}

/// PowerSGD costs time on one rank, too, and is part of the exchange: the configuration without it.
fn without_power_sgd(loaded: &LoadedConfig) -> Option<LoadedConfig> {
    let mut loaded = loaded.clone();
    let comm = &mut loaded.config.comm;
    let used = comm.compression == Compression::PowerSgd;
    (comm.power_sgd_rank, comm.power_sgd_start_step, comm.compression) = (None, None, Compression::None);
    used.then_some(loaded)
}

fn summarise(
    session: &Session,
    global_batch: usize,
    on_gpu: bool,
    with: &[StepOutcome],
    without: &[StepOutcome],
) -> StepBench {
    let with_exchange = medians(global_batch, on_gpu, with);
    let without_exchange = medians(global_batch, on_gpu, without);
    StepBench {
        world_size: session.topology().world_size,
        global_batch,
        exposed_share: with_exchange.seconds.step / without_exchange.seconds.step - 1.0,
        with_exchange,
        without_exchange,
    }
}

fn medians(global_batch: usize, on_gpu: bool, outcomes: &[StepOutcome]) -> StepMedians {
    let of = |part: fn(&StepOutcome) -> Duration| median(outcomes.iter().map(|o| part(o).as_secs_f64()));
    let seconds = PhaseSeconds {
        step: of(|o| o.phases.step),
        data_wait: of(|o| o.phases.data_wait),
        input: of(|o| o.phases.input),
        forward: of(|o| o.phases.forward),
        backward: of(|o| o.phases.backward),
        exposed_communication: of(|o| o.phases.exposed_communication),
        optimizer: of(|o| o.phases.optimizer),
    };
    let first_started = |outcome: &StepOutcome| {
        let first = outcome.exchange.buckets.first().map_or(Duration::ZERO, |bucket| bucket.started);
        first.as_secs_f64() / outcome.phases.backward.as_secs_f64()
    };
    let processor = |outcome: &StepOutcome| {
        outcome.exchange.buckets.iter().map(|bucket| bucket.processor.as_secs_f64()).sum()
    };
    StepMedians {
        exchange_processor_seconds: median(outcomes.iter().map(processor)),
        images_per_second: global_batch as f64 / seconds.step,
        seconds,
        first_exchange_at_share_of_backward: (!on_gpu).then(|| median(outcomes.iter().map(first_started))),
        buckets: outcomes.first().map_or(0, |outcome| outcome.exchange.buckets.len()),
    }
}

impl StepBench {
    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} ranks, {} images a step, medians in ms\n{:<24}{:>14}{:>14}\n",
            self.world_size, self.global_batch, "", "exchange", "no exchange"
        );
        type Part = fn(&PhaseSeconds) -> f64;
        let rows: [(&str, Part); 7] = [
            ("step", |s| s.step),
            ("data wait", |s| s.data_wait),
            ("input", |s| s.input),
            ("forward", |s| s.forward),
            ("backward", |s| s.backward),
            ("exposed communication", |s| s.exposed_communication),
            ("optimizer", |s| s.optimizer),
        ];
        for (name, part) in rows {
            let (with, without) = (part(&self.with_exchange.seconds), part(&self.without_exchange.seconds));
            text += &format!("{name:<24}{:>14.3}{:>14.3}\n", 1e3 * with, 1e3 * without);
        }
        text += &format!(
            "{:<24}{:>14.3}{:>14.3}\n",
            "processor, exchange",
            1e3 * self.with_exchange.exchange_processor_seconds,
            1e3 * self.without_exchange.exchange_processor_seconds
        );
        text += &format!(
            "{:<24}{:>14.1}{:>14.1}\n",
            "images/s", self.with_exchange.images_per_second, self.without_exchange.images_per_second
        );
        if self.world_size == 1 {
            return text;
        }
        text += &format!(
            "the exchange makes the step {:.1} % longer; {} bucket(s)",
            100.0 * self.exposed_share,
            self.with_exchange.buckets
        );
        if let Some(share) = self.with_exchange.first_exchange_at_share_of_backward {
            text += &format!(", the first all-reduce starts after {:.0} % of backward", 100.0 * share);
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_steps_are_measured_as_were_asked_for_and_as_many_come_before() {
        for (warmup, measured, most) in [(3, 20, 8), (3, 4, 8), (0, 1, 8), (8, 8, 8), (9, 17, 8), (3, 20, 1)]
        {
            let all: Vec<_> = bursts(warmup, measured, most).collect();
            let steps: Vec<(u64, bool)> = all
                .iter()
                .flat_map(|(steps, measured)| steps.clone().map(|step| (step, *measured)))
                .collect();
            let expected: Vec<(u64, bool)> =
                (0..(warmup + measured) as u64).map(|step| (step, step >= warmup as u64)).collect();
            assert_eq!(steps, expected, "{warmup} and {measured}");
            assert!(all.iter().all(|(steps, _)| (1..=most as u64).contains(&(steps.end - steps.start))));
        }
    }
}
