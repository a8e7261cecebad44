//! What is wrong with a job, from what its ranks said last. Pure functions from statuses to sentences.

use std::fmt::Write;
use std::time::Duration;

use crate::flight::Status;

/// Ranks that are described one by one; of larger jobs the others are counted.
const MOST_DESCRIBED: usize = 16;
/// What keeps a rank from speaking.
const SILENT: &str = "stopped, or its host or network is down";

/// What is known of one rank.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) rank: usize,
    pub(super) host: String,
    /// As it said last; absent before its first word.
    pub(super) status: Option<Status>,
    /// Time since it said so; zero for the rank that judges.
    pub(super) age: Duration,
}

impl Seen {
    pub(super) fn name(&self) -> String {
        format!("rank {} on {}", self.rank, self.host)
    }

    fn place(&self) -> String {
        self.status.as_ref().map_or_else(|| "no word yet".into(), place)
    }

    /// How long its collective has been under way, if one is.
    fn waiting(&self) -> Option<Duration> {
        self.status.as_ref().filter(|status| status.under_way).map(|status| status.collective_for + self.age)
    }

    fn collectives(&self) -> u64 {
        self.status.as_ref().map_or(0, |status| status.collectives)
    }

    fn collective(&self) -> Option<String> {
        let status = self.status.as_ref()?;
        Some(format!("collective {} ({})", status.collectives, status.collective.as_ref()?))
    }

    fn describe(&self, silence: Duration) -> String {
        let mut text = format!("{}: ", self.name());
        if self.age > silence {
            let _ = write!(text, "silent for {} s, before that ", seconds(self.age));
        }
        text += &self.place();
        if let (Some(status), Some(collective)) = (&self.status, self.collective()) {
            let duration = seconds(status.collective_for + self.age);
            let _ = match (self.age > silence, status.under_way) {
                (true, _) => write!(text, ", {collective}"),
                (false, true) => write!(text, "; in {collective} for {duration} s"),
                (false, false) => write!(text, "; last was {collective}, {duration} s ago"),
            };
        }
        text
    }
}

/// Step and phase.
fn place(status: &Status) -> String {
    match status.step {
        Some(step) => format!("step {step}, {}", status.phase),
        None => status.phase.to_string(),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64())
}

/// The connection to `dead` ended, for the reason `why`; `judge` is the rank that noticed.
pub(super) fn died(dead: &Seen, why: &str, judge: &Seen) -> String {
    let mut sentence = format!("{} died ({why})", dead.name());
    let _ = match &dead.status {
        // It may have gone on since.
        Some(status) => {
            write!(sentence, ", last heard of at {}, {} s before", place(status), seconds(dead.age))
        }
        None => write!(sentence, " before its first word"),
    };
    match (judge.waiting(), judge.collective()) {
        (Some(_), Some(collective)) => {
            let _ = write!(sentence, "; rank {} waits for it in {collective}", judge.rank);
        }
        _ => {
            let _ = write!(sentence, "; rank {} is in {}", judge.rank, judge.place());
        }
    }
    sentence
}

/// Nothing was heard of `silent` for longer than `timeout`.
pub(super) fn silent(silent: &Seen, timeout: Duration) -> String {
    format!(
        "no word from {} for {} s, and comm.timeout_s is {}: {SILENT}\n  {}",
        silent.name(),
        seconds(silent.age),
        timeout.as_secs_f64(),
        silent.describe(timeout)
    )
}

/// Whether a collective or a silence has lasted longer than `timeout`, with who is to blame. A rank that said
/// nothing for `silence` counts as silent.
pub(super) fn stuck(ranks: &[Seen], timeout: Duration, silence: Duration) -> Option<String> {
    let limit = format!("{} s (comm.timeout_s)", timeout.as_secs_f64());
    let silent: Vec<&Seen> = ranks.iter().filter(|rank| rank.age > silence).collect();
    let longest = ranks.iter().filter(|rank| rank.age <= silence).max_by_key(|rank| rank.waiting());
    let waiter = longest.filter(|rank| rank.waiting().is_some_and(|waiting| waiting > timeout));
    let (mut sentence, blamed) = match waiter {
        Some(waiter) => {
            let collective = waiter.collective().unwrap_or_default();
            let sentence = format!("{collective} has not finished within {limit}: ");
            let behind = |rank: &&Seen| rank.collectives() < waiter.collectives();
            let blamed = match silent.is_empty() {
                false => silent.clone(),
                true => ranks.iter().filter(behind).collect(),
            };
            (sentence, blamed)
        }
        // Somewhat later than the collective that waits for it, which says more.
        None if silent.iter().any(|rank| rank.age > timeout + timeout / 4) => (String::new(), silent.clone()),
        None => return None,
    };
    if blamed.is_empty() {
        sentence +=
            "every rank is in it, so the network between them or the library that carries it is stuck";
    } else {
        let mut names: Vec<_> = blamed.iter().take(MOST_DESCRIBED).map(|rank| rank.name()).collect();
        if blamed.len() > names.len() {
            names.push(format!("{} more ranks", blamed.len() - names.len()));
        }
        let names = names.join(", ");
        let _ = match (sentence.is_empty(), silent.is_empty()) {
            (true, _) => write!(sentence, "no word from {names} for {limit}: {SILENT}"),
            (false, false) => write!(sentence, "it waits for {names}, of which nothing is heard: {SILENT}"),
            (false, true) => write!(sentence, "it waits for {names}"),
        };
    }
    for rank in blamed
        .iter()
        .copied()
        .chain(ranks.iter().filter(|rank| !is_among(&blamed, rank)))
        .take(MOST_DESCRIBED)
    {
        let _ = write!(sentence, "\n  {}", rank.describe(silence));
    }
    if ranks.len() > MOST_DESCRIBED {
        let _ = write!(sentence, "\n  and {} more ranks", ranks.len() - MOST_DESCRIBED);
    }
    Some(sentence)
}

fn is_among(ranks: &[&Seen], wanted: &Seen) -> bool {
    ranks.iter().any(|rank| rank.rank == wanted.rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flight::{Collective, CollectiveKind};

    const SECOND: Duration = Duration::from_secs(1);

    /// A rank in step 8 whose latest collective is number `collectives`, for `seconds`.
    fn rank(rank: usize, collectives: u64, under_way: bool, seconds: u32) -> Seen {
        let status = Status {
            step: Some(8),
            phase: if under_way { "communication" } else { "data wait" }.into(),
            collectives,
            collective: Some(Collective {
                bucket: Some(2),
                ..Collective::of_kind(CollectiveKind::AllReduce)
            }),
            under_way,
            collective_for: seconds * SECOND,
        };
        Seen { rank, host: format!("n{rank}"), status: Some(status), age: Duration::ZERO }
    }

    fn silent_for(seconds: u32, rank: Seen) -> Seen {
        Seen { age: seconds * SECOND, ..rank }
    }

    #[test]
    fn who_is_waited_for_is_who_is_silent_or_else_who_is_behind() {
        let late = "collective 5 (all-reduce of bucket 2) has not finished within 10 s (comm.timeout_s): ";
        let late_for = |whom: &str| Some(format!("{late}it waits for {whom}"));
        let no_word = "no word from rank 1 on n1 for 10 s (comm.timeout_s): \
                       stopped, or its host or network is down\n  rank 1 on n1: silent for 13.0 s, before that step 8, data wait, collective 5 ";
        let cases = [
            ("all is well", vec![rank(0, 5, true, 3), rank(1, 4, false, 3)], None),
            ("nothing is under way", vec![rank(0, 5, false, 100), rank(1, 5, false, 100)], None),
            (
                "one is behind",
                vec![rank(0, 5, true, 11), rank(1, 4, false, 12), rank(2, 5, true, 11)],
                late_for("rank 1 on n1\n  rank 1 on n1: step 8, data wait; last was collective 4 "),
            ),
            (
                "one is stuck in an earlier one",
                vec![rank(0, 5, true, 11), rank(1, 3, true, 9)],
                late_for("rank 1 on n1\n"),
            ),
            (
                "one is silent, so that it may be further than it said last",
                vec![rank(0, 5, true, 11), silent_for(6, rank(1, 5, true, 0)), rank(2, 4, false, 1)],
                late_for("rank 1 on n1, of which nothing is heard: stopped"),
            ),
            (
                "a silent one that nobody waits for yet",
                vec![rank(0, 5, false, 1), silent_for(13, rank(1, 5, false, 0))],
                Some(no_word.to_owned()),
            ),
            ("a shorter silence", vec![rank(0, 5, false, 1), silent_for(9, rank(1, 5, false, 0))], None),
            (
                "all are in it",
                vec![rank(0, 5, true, 11), rank(1, 5, true, 11)],
                Some(format!("{late}every rank is in it")),
            ),
        ];
        for (name, ranks, expected) in cases {
            let sentence = stuck(&ranks, 10 * SECOND, 5 * SECOND);
            match expected {
                Some(expected) => {
                    let sentence = sentence.unwrap_or_else(|| panic!("{name}: nothing is found"));
                    assert!(sentence.starts_with(&expected), "{name}: {sentence}");
                    assert_eq!(sentence.lines().count(), 1 + ranks.len(), "{name}: every rank has a line");
                }
                None => assert_eq!(sentence, None, "{name}"),
            }
        }
    }

    #[test]
    fn of_many_ranks_those_to_blame_are_described_first_and_the_others_counted() {
        let ranks: Vec<_> =
            (0..1000).map(|index| rank(index, if index == 700 { 4 } else { 5 }, index != 700, 11)).collect();
        let sentence = stuck(&ranks, 10 * SECOND, 5 * SECOND).unwrap();
        let lines: Vec<_> = sentence.lines().collect();
        assert!(lines[1].starts_with("  rank 700 on n700: "), "{sentence}");
        assert_eq!(lines.len(), 2 + MOST_DESCRIBED);
        assert_eq!(lines[1 + MOST_DESCRIBED], "  and 984 more ranks");
        let behind: Vec<_> =
            (0..1000).map(|index| rank(index, 5 - u64::from(index > 0), index == 0, 11)).collect();
        let sentence = stuck(&behind, 10 * SECOND, 5 * SECOND).unwrap();
        assert!(sentence.contains("rank 16 on n16, 983 more ranks\n"), "{sentence}");
    }

    #[test]
    fn a_death_is_told_with_what_the_rank_did_last_and_who_waits() {
        let dead = silent_for(1, rank(2, 4, false, 0));
        assert_eq!(
            died(&dead, "its connection closed", &rank(0, 5, true, 1)),
            "rank 2 on n2 died (its connection closed), last heard of at step 8, data wait, 1.0 s before; \
             rank 0 waits for it in collective 5 (all-reduce of bucket 2)"
        );
        let dead = Seen { status: None, ..dead };
        assert_eq!(
            died(&dead, "its connection closed", &rank(0, 5, false, 1)),
            "rank 2 on n2 died (its connection closed) before its first word; rank 0 is in step 8, data wait"
        );
    }
}
