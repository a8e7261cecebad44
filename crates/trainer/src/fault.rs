//! Faults on demand, `--inject-fault STEP:RANK:KIND`: how a cluster takes a rank's failure can be rehearsed
//! before it matters. The tests of failures use them too.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::config::{Config, OnSpike};
use crate::engine::Engine;
use crate::error::Error;
use crate::health::{spike, straggler};

/// One fault of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The step, counted from 1, in which it happens: just before the last backward pass.
    pub(crate) step: u64,
    /// The rank that it happens to.
    pub(crate) rank: usize,
    pub(crate) kind: FaultKind,
}

/// Times as long as another takes a rank that is slow on demand, or nearly so.
const SLOWNESS: f64 = 2.0;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Panic,
    Kill,
    Stop,
    Hang,
    Exit,
    Reorder,
    Nan,
    Spike,
    /// From its step on.
    Slow,
    FlipBit,
}

/// Names on the command line.
const KINDS: [(&str, FaultKind); 10] = [
    ("panic", FaultKind::Panic),
    ("kill", FaultKind::Kill),
    ("stop", FaultKind::Stop),
    ("hang", FaultKind::Hang),
    ("exit", FaultKind::Exit),
    ("reorder", FaultKind::Reorder),
    ("nan", FaultKind::Nan),
    ("spike", FaultKind::Spike),
    ("slow", FaultKind::Slow),
    ("flip-bit", FaultKind::FlipBit),
];

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let step = parts.next()?.parse().ok().filter(|&step| step > 0)?;
            let rank = parts.next()?.parse().ok()?;
            let name = parts.next()?;
            let (_, kind) = KINDS.into_iter().find(|(known, _)| *known == name)?;
            Some(Fault { step, rank, kind })
        };
        let names = KINDS.map(|(name, _)| name).join(", ");
        parse().ok_or_else(|| {
            format!("expected STEP:RANK:KIND with a step of 1 or more and a kind among {names}")
        })
    }
}

/// What a run has in which a fault is to happen.
pub(crate) struct Stage<'a> {
    pub(crate) config: &'a Config,
    /// Those that are to be done, counted from 1.
    pub(crate) steps: RangeInclusive<u64>,
    pub(crate) ranks: usize,
    pub(crate) buckets: usize,
}

impl Fault {
    /// Refuses a fault that this run would never see, with what would have to be otherwise.
    pub(crate) fn check(&self, stage: &Stage) -> Result<(), Error> {
        self.why_void(stage).map_or(Ok(()), |why| Err(Error::Usage(format!("--inject-fault: {why}"))))
    }

    fn why_void(&self, stage: &Stage) -> Option<String> {
        let Fault { step, rank, kind } = *self;
        let Stage { ref steps, ranks, buckets, .. } = *stage;
        let (first, last) = (*steps.start(), *steps.end());
        let train = &stage.config.train;
        // What is slow from an earlier step on still is.
        let is_past = step < first && kind != FaultKind::Slow;
        if first > last {
            return Some(format!("the run has no step left, so step {step} never comes"));
        }
        if is_past || step > last || rank >= ranks {
            return Some(format!(
                "steps {first} to {last} are to come, on ranks 0 to {}, so step {step} of rank {rank} never comes",
                ranks - 1
            ));
        }
        let compared_every = train.check_replicas_every;
        let first_judged = spike::first_judged(&train.loss_spike);
        let slower = stage.config.telemetry.straggler_factor;
        let named_with = straggler::named_with(step.max(first), ranks);
        match kind {
            FaultKind::Hang | FaultKind::Stop | FaultKind::Exit if ranks == 1 => {
                Some("with one rank there is no other that could notice; expected 2 ranks or more".into())
            }
            FaultKind::Slow if ranks == 1 => {
                Some("with one rank there is no other that it could be slower than; expected 2 ranks or more".into())
            }
            FaultKind::Slow if stage.config.model.sync_norm => Some(
                "with model.sync_norm ranks wait for each other within each layer, so that all are as slow; expected \
                 model.sync_norm: false"
                    .into(),
            ),
            FaultKind::Slow if slower >= SLOWNESS => Some(format!(
                "the rank takes {SLOWNESS} times as long, and telemetry.straggler_factor is {slower}; expected less"
            )),
            FaultKind::Slow if named_with > last => Some(format!(
                "a rank that is slow from step {} on is named with step {named_with} at the earliest, which never comes",
                step.max(first)
            )),
            FaultKind::Reorder if buckets < 2 => Some(
                "the exchange has one bucket, so there is no order to change; smaller comm.first_bucket_kib and \
                 comm.bucket_kib make more"
                    .into(),
            ),
            FaultKind::Reorder | FaultKind::FlipBit if ranks == 1 => {
                Some("with one rank there is no other that could differ; expected 2 ranks or more".into())
            }
            FaultKind::FlipBit if stage.config.optimizer.shard => Some(
                "with optimizer.shard the ranks give each other their weights in every step, which overwrites the \
                 flipped bit or gives it to all; expected optimizer.shard: false"
                    .into(),
            ),
            FaultKind::FlipBit if compared_every == 0 => Some(
                "with train.check_replicas_every: 0 nothing compares the ranks' weights; expected 1 or more".into(),
            ),
            FaultKind::FlipBit if step > last - last % compared_every => Some(format!(
                "the ranks compare their weights after each {compared_every} steps (train.check_replicas_every), and of \
                 {last} steps no such one comes after a bit that flips in step {step}"
            )),
            FaultKind::Spike if train.loss_spike.action == OnSpike::Ignore => {
                Some("with train.loss_spike.action: ignore nothing looks for a spike; expected another action".into())
            }
            FaultKind::Spike if step < first_judged => Some(format!(
                "a loss is compared with those of half a window of steps before it (train.loss_spike.window: {}), so a \
                 spike can be seen from step {first_judged} on",
                train.loss_spike.window
            )),
            _ => None,
        }
    }
}

impl FaultKind {
    /// Lets it happen on this rank.
    pub(crate) fn strike(self, engine: &mut Engine) -> Result<(), Error> {
        use signal_hook::consts::{SIGKILL, SIGSTOP};
        let raise = |signal| {
            signal_hook::low_level::raise(signal)
                .map_err(|error| Error::Other(format!("cannot raise {signal}: {error}")))
        };
        tracing::warn!(kind = ?self, "the fault that was asked for happens now");
        match self {
            FaultKind::Panic => panic!("a panic was asked for"),
            FaultKind::Kill => raise(SIGKILL),
            FaultKind::Stop => raise(SIGSTOP),
            FaultKind::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            FaultKind::Exit => std::process::exit(0),
            FaultKind::Reorder => {
                engine.comm().swap_next_two();
                Ok(())
            }
            FaultKind::Nan => engine.spoil_gradient(),
            FaultKind::Spike => engine.spoil_loss(),
            // Not at this moment: the engine lets data come late, or flips the bit when the step is done.
            FaultKind::Slow | FaultKind::FlipBit => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_by_step_rank_and_kind() {
        for (name, kind) in KINDS {
            assert_eq!(format!("17:2:{name}").parse(), Ok(Fault { step: 17, rank: 2, kind }));
        }
        for text in ["", "17", "17:2", "0:2:kill", "17:-1:kill", "17:2:sneeze", "17:2:kill:now"] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains("STEP:RANK:KIND") && error.contains("panic, kill"), "{text}: {error}");
        }
    }

    #[test]
    fn a_fault_that_nothing_would_notice_is_refused_and_its_neighbours_are_not() {
        let config = |keys: &str| -> Config {
            let text = format!(
                "{{model: {{arch: wrn-10-1}}, data: {{kind: cifar10, path: data}}, \
                 schedule: {{kind: constant, rate: 0.1}}, {keys}}}"
            );
            serde_yaml::from_str(&text).unwrap()
        };
        let plain = "train: {epochs: 1, global_batch: 8}";
        let cases = [
            // Keys, ranks, buckets, a fault, and what is said about it.
            (plain, 2, 1, "250:1:kill", None),
            (plain, 2, 1, "251:1:kill", Some("steps 1 to 250 are to come, on ranks 0 to 1")),
            (plain, 2, 1, "1:2:kill", Some("never comes")),
            // Their end tells of them.
            (plain, 1, 1, "1:0:kill", None),
            (plain, 1, 1, "1:0:panic", None),
            (plain, 1, 1, "1:0:nan", None),
            (plain, 1, 1, "1:0:hang", Some("no other that could notice")),
            (plain, 1, 1, "1:0:stop", Some("no other that could notice")),
            (plain, 1, 1, "1:0:exit", Some("no other that could notice")),
            (plain, 2, 1, "1:0:hang", None),
            (plain, 2, 1, "1:0:exit", None),
            (plain, 1, 1, "1:0:slow", Some("no other that it could be slower than")),
            (plain, 2, 1, "236:1:slow", None),
            (plain, 2, 1, "237:1:slow", Some("named with step 251 at the earliest")),
            (
                "telemetry: {straggler_factor: 2}, train: {epochs: 1, global_batch: 8}",
                2,
                1,
                "1:1:slow",
                Some("telemetry.straggler_factor is 2"),
            ),
            (
                "telemetry: {straggler_factor: 1.9}, train: {epochs: 1, global_batch: 8}",
                2,
                1,
                "1:1:slow",
                None,
            ),
            (plain, 2, 1, "1:1:reorder", Some("one bucket")),
            (plain, 1, 2, "1:0:reorder", Some("expected 2 ranks")),
            (plain, 2, 2, "1:0:reorder", None),
            (plain, 1, 1, "1:0:flip-bit", Some("expected 2 ranks")),
            (plain, 2, 1, "200:0:flip-bit", None),
            (plain, 2, 1, "201:0:flip-bit", Some("check_replicas_every")),
            (
                "train: {epochs: 1, global_batch: 8, check_replicas_every: 0}",
                2,
                1,
                "1:0:flip-bit",
                Some("expected 1 or more"),
            ),
            (
                "optimizer: {shard: true}, train: {epochs: 1, global_batch: 8}",
                2,
                1,
                "1:1:flip-bit",
                Some("optimizer.shard: false"),
            ),
            (plain, 1, 1, "26:0:spike", None),
            (plain, 1, 1, "25:0:spike", Some("from step 26 on")),
            (
                "train: {epochs: 1, global_batch: 8, loss_spike: {action: ignore}}",
                1,
                1,
                "26:0:spike",
                Some("ignore"),
            ),
        ];
        for (keys, ranks, buckets, fault, expected) in cases {
            let stage = Stage { config: &config(keys), steps: 1..=250, ranks, buckets };
            expect(fault, &stage, expected);
        }
        let mut synchronized = config(plain);
        synchronized.model.sync_norm = true;
        let stage = Stage { config: &synchronized, steps: 1..=250, ranks: 2, buckets: 1 };
        expect("1:1:slow", &stage, Some("model.sync_norm: false"));
        // A run that goes on, or stops before its end.
        for (first, last, fault, expected) in [
            (101, 250, "101:1:nan", None),
            (101, 250, "100:1:nan", Some("steps 101 to 250 are to come")),
            (101, 250, "100:1:slow", None),
            (237, 250, "100:1:slow", Some("slow from step 237 on is named with step 251")),
            (1, 150, "151:1:kill", Some("steps 1 to 150")),
            (1, 150, "101:1:flip-bit", Some("of 150 steps no such one")),
            (251, 250, "250:1:slow", Some("no step left")),
        ] {
            expect(
                fault,
                &Stage { config: &config(plain), steps: first..=last, ranks: 2, buckets: 1 },
                expected,
            );
        }
    }

    fn expect(fault: &str, stage: &Stage, expected: Option<&str>) {
        let refused = fault.parse::<Fault>().unwrap().check(stage).map_err(|error| error.to_string());
        match (refused, expected) {
            (Ok(()), None) => {}
            (Err(refused), Some(expected)) if refused.contains(expected) => {}
            (other, _) => panic!("{fault} in {:?}: {other:?}", stage.steps),
        }
    }
}
