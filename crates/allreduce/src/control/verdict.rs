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
        let mut text = format!("{}: {}", self.name(), self.place());
        if let (Some(status), Some(collective)) = (&self.status, self.collective()) {
            let duration = seconds(status.collective_for + self.age);
            let _ = match status.under_way {
                true => write!(text, "; in {collective} for {duration} s"),
                false => write!(text, "; last was {collective}, {duration} s ago"),
            };
        }
        if self.age > silence {
            let _ = write!(text, "; silent for {} s", seconds(self.age));
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
        Some(status) => write!(sentence, ", last heard of {} s ago in {}", seconds(dead.age), place(status)),
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
        None if silent.iter().any(|rank| rank.age > timeout) => (String::new(), silent.clone()),
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
