//! Names the ranks that are slower than the others while the run goes on: every rank tells rank 0 how long it works
//! on a step by itself, and rank 0 compares. Waiting for other ranks does not count, since all ranks wait for the
//! slowest one. With `optimizer.shard` on GPUs it does count where a GPU waits for new weights, within the forward pass.

use std::collections::VecDeque;
use std::time::Duration;

use allreduce::{Pace, RankPace};
use serde::{Deserialize, Serialize};

use crate::engine::Phases;
use crate::session::Session;
use crate::telemetry::export_straggler;

/// Steps that are looked at together.
const WINDOW: usize = 10;
/// The longest of them are left out: a pause now and then is no persistent slowness.
const LEFT_OUT: usize = 2;
/// Ranks speak after every so many steps.
const EVERY: u64 = 5;
/// With more ranks they speak less often, for rank 0's sake.
const RANKS_PER_STEP: u64 = 64;
/// Smaller differences are noise, whatever their ratio is.
const LEAST_EXCESS: Duration = Duration::from_millis(1);

/// The parts of a step in which a rank works by itself.
const PARTS: [&str; 5] = ["data wait", "input", "forward", "backward", "optimizer"];

fn own_times(phases: &Phases) -> [Duration; PARTS.len()] {
    [phases.data_wait, phases.input, phases.forward, phases.backward, phases.optimizer]
}

/// A rank that is slower than the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Straggler {
    pub(crate) rank: usize,
    pub(crate) host: String,
    /// The part of the step that makes most of the difference.
    pub(crate) phase: String,
    /// Its own time as a multiple of the median of the other ranks'.
    pub(crate) times_slower: f64,
    /// Its own time a step.
    pub(crate) seconds: f64,
    /// The median of the other ranks'.
    pub(crate) others_seconds: f64,
}

impl Straggler {
    fn sentence(&self) -> String {
        format!(
            "rank {} on {} is slow: over the last {WINDOW} steps {:.1} times the median of the other ranks ({:.0} ms a step \
             instead of {:.0} ms without waiting for others), mostly in {}",
            self.rank,
            self.host,
            self.times_slower,
            1e3 * self.seconds,
            1e3 * self.others_seconds,
            self.phase
        )
    }
}

/// The watch of one rank: measures on every rank, judges on rank 0.
pub(crate) struct StragglerWatch {
    factor: f64,
    every: u64,
    /// Own times of the latest steps.
    recent: VecDeque<[Duration; PARTS.len()]>,
    /// What this rank said last, until it has been compared.
    own: Option<Pace>,
    named: Vec<Straggler>,
}

/// Steps after which ranks speak.
fn every(world_size: usize) -> u64 {
    EVERY.max(world_size as u64 / RANKS_PER_STEP)
}

/// The step with which a rank is named, at the earliest, that is slow from `step` on, with nothing but slow steps to
/// look at.
pub(crate) fn named_with(step: u64, world_size: usize) -> u64 {
    (step + WINDOW as u64 - 1).next_multiple_of(every(world_size)) + 1
}

impl StragglerWatch {
    pub(crate) fn new(factor: f64, world_size: usize) -> Self {
        StragglerWatch {
            factor,
            every: every(world_size),
            recent: VecDeque::with_capacity(WINDOW),
            own: None,
            named: Vec::new(),
        }
    }

    /// Takes the times of `step`. On rank 0 the sentences about ranks that have become slow, or keep up again.
    pub(crate) fn step(&mut self, session: &Session, step: u64, phases: &Phases) -> Vec<String> {
        let Some(control) = session.control() else { return Vec::new() };
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(own_times(phases));
        let mut sentences = Vec::new();
        if let Some(own) = &self.own {
            // Messages are quick, but not as quick as a step may be: ranks are compared when all have spoken.
            let mut ranks = control.paces();
            if ranks.len() + 1 == session.topology().world_size
                && ranks.iter().all(|of| of.pace.step == own.step)
            {
                let host = session.topology().host.clone();
                ranks.insert(0, RankPace { rank: 0, host, pace: own.clone() });
                self.own = None;
                let named = judge(&ranks, self.factor, &self.named);
                sentences = changes(&self.named, &named);
                for former in &self.named {
                    export_straggler(former.rank, 0.0);
                }
                for straggler in &named {
                    export_straggler(straggler.rank, straggler.times_slower);
                }
                self.named = named;
            }
        }
        if self.recent.len() == WINDOW && step.is_multiple_of(self.every) {
            let pace = Pace { step, parts: usual_times(&self.recent) };
            match session.is_leader() {
                true => self.own = Some(pace),
                false => control.tell_pace(pace),
            }
        }
        sentences
    }

    /// On rank 0, the ranks that are slow now.
    pub(crate) fn named(&self) -> &[Straggler] {
        &self.named
    }
}

/// Mean time of each part over the steps that did not take longest.
fn usual_times(recent: &VecDeque<[Duration; PARTS.len()]>) -> Vec<Duration> {
    let mut steps: Vec<_> = recent.iter().collect();
    steps.sort_by_key(|parts| parts.iter().sum::<Duration>());
    steps.truncate(recent.len().saturating_sub(LEFT_OUT).max(1));
    let mean = |part: usize| steps.iter().map(|parts| parts[part]).sum::<Duration>() / steps.len() as u32;
    (0..PARTS.len()).map(mean).collect()
}

/// The ranks that take `factor` times as long as the median of the others. One that was named before stays so until
/// it has come half the way back.
fn judge(ranks: &[RankPace], factor: f64, before: &[Straggler]) -> Vec<Straggler> {
    let part_of = |of: &RankPace, part: usize| of.pace.parts.get(part).copied().unwrap_or_default();
    let totals: Vec<Duration> = ranks.iter().map(|of| of.pace.parts.iter().sum()).collect();
    let sorted_totals = sorted(&totals);
    let mut named = Vec::new();
    for (of, &total) in ranks.iter().zip(&totals) {
        let others = median_without(&sorted_totals, total);
        let was_named = before.iter().any(|straggler| straggler.rank == of.rank);
        let limit = if was_named { f64::midpoint(1.0, factor) } else { factor };
        let times_slower = total.as_secs_f64() / others.as_secs_f64().max(f64::MIN_POSITIVE);
        if times_slower < limit || total < others + LEAST_EXCESS {
            continue;
        }
        let excess = |part: usize| {
            let times: Vec<Duration> = ranks.iter().map(|of| part_of(of, part)).collect();
            let own = part_of(of, part);
            own.saturating_sub(median_without(&sorted(&times), own))
        };
        let phase = (0..PARTS.len()).max_by_key(|&part| excess(part)).map_or("", |part| PARTS[part]);
        named.push(Straggler {
            rank: of.rank,
            host: of.host.clone(),
            phase: phase.to_owned(),
            times_slower,
            seconds: total.as_secs_f64(),
            others_seconds: others.as_secs_f64(),
        });
    }
    named
}

fn sorted(times: &[Duration]) -> Vec<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times
}

/// The median of sorted `times` without one that equals `own`; of an even number the mean of the middle two.
fn median_without(times: &[Duration], own: Duration) -> Duration {
    let skipped = times.partition_point(|&time| time < own);
    let at = |index: usize| times.get(index + usize::from(index >= skipped)).copied().unwrap_or(own);
    match times.len() - 1 {
        0 => own,
        others if others % 2 == 1 => at(others / 2),
        others => (at(others / 2 - 1) + at(others / 2)) / 2,
    }
}

/// What is new, in sentences.
fn changes(before: &[Straggler], now: &[Straggler]) -> Vec<String> {
    let among = |ranks: &[Straggler], wanted: &Straggler| ranks.iter().any(|of| of.rank == wanted.rank);
    let new = now.iter().filter(|straggler| !among(before, straggler)).map(Straggler::sentence);
    let over = before
        .iter()
        .filter(|straggler| !among(now, straggler))
        .map(|straggler| format!("rank {} on {} keeps up again", straggler.rank, straggler.host));
    new.chain(over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rank whose parts take so many milliseconds.
    fn rank(rank: usize, parts: [u64; PARTS.len()]) -> RankPace {
        let parts = parts.map(Duration::from_millis).to_vec();
        RankPace { rank, host: format!("n{rank}"), pace: Pace { step: 10, parts } }
    }

    const USUAL: [u64; PARTS.len()] = [1, 2, 30, 60, 7];

    #[test]
    fn the_slow_rank_is_named_with_its_phase_and_nobody_else() {
        /// Name, the slow ranks among so many, what they take, and whether they are named in which phase.
        type Case = (&'static str, usize, &'static [usize], [u64; PARTS.len()], Option<&'static str>);
        let cases: [Case; 7] = [
            ("one of two", 2, &[1], [1, 2, 60, 120, 7], Some("backward")),
            ("rank 0", 2, &[0], [100, 2, 30, 60, 7], Some("data wait")),
            ("one of three", 3, &[2], [1, 2, 90, 80, 7], Some("forward")),
            ("two of five", 5, &[1, 3], [1, 80, 30, 60, 7], Some("input")),
            ("one of a thousand", 1000, &[700], [1, 2, 30, 60, 107], Some("optimizer")),
            ("not slow enough", 4, &[1], [1, 2, 40, 80, 7], None),
            ("nobody", 4, &[], USUAL, None),
        ];
        for (name, world_size, slow, times, phase) in cases {
            let ranks: Vec<_> = (0..world_size)
                .map(|index| rank(index, if slow.contains(&index) { times } else { USUAL }))
                .collect();
            let named = judge(&ranks, 1.5, &[]);
            let found: Vec<_> = named.iter().map(|straggler| straggler.rank).collect();
            assert_eq!(found, if phase.is_some() { slow } else { &[] }, "{name}");
            assert!(
                named.iter().all(|straggler| Some(straggler.phase.as_str()) == phase),
                "{name}: {named:?}"
            );
        }
    }

    #[test]
    fn a_rank_is_named_once_and_stays_named_until_it_has_come_half_the_way_back() {
        let mut named = Vec::new();
        let sentences: Vec<Vec<String>> = [100, 160, 170, 140, 120, 130]
            .into_iter()
            .map(|total| {
                let now = judge(&[rank(0, [0, 0, 100, 0, 0]), rank(1, [0, 0, total, 0, 0])], 1.5, &named);
                let sentences = changes(&named, &now);
                named = now;
                sentences
            })
            .collect();
        assert!(sentences[1][0].starts_with("rank 1 on n1 is slow: over the last 10 steps 1.6 times"));
        assert!(
            sentences[1][0]
                .ends_with("(160 ms a step instead of 100 ms without waiting for others), mostly in forward")
        );
        assert_eq!(sentences[4], ["rank 1 on n1 keeps up again"]);
        let counts: Vec<_> = sentences.iter().map(Vec::len).collect();
        assert_eq!(counts, [0, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn a_long_step_now_and_then_changes_nothing() {
        let step = |milliseconds| [milliseconds; PARTS.len()].map(Duration::from_millis);
        let mut recent: VecDeque<_> = (0..WINDOW).map(|_| step(3)).collect();
        recent[1] = step(2000);
        recent[7] = step(500);
        assert_eq!(usual_times(&recent), [Duration::from_millis(3); PARTS.len()]);
        recent[3] = step(500);
        assert!(usual_times(&recent)[0] > Duration::from_millis(60), "a third one counts");
    }

    #[test]
    fn differences_below_a_millisecond_are_noise() {
        let micros = |rank, micros| RankPace {
            rank,
            host: String::new(),
            pace: Pace { step: 10, parts: vec![Duration::from_micros(micros)] },
        };
        assert!(judge(&[micros(0, 100), micros(1, 900)], 1.5, &[]).is_empty());
        assert_eq!(judge(&[micros(0, 100), micros(1, 1200)], 1.5, &[]).len(), 1);
    }
}
