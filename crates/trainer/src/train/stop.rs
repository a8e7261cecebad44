//! Requests to stop: by signal, or since the time is over. One rank's request is enough; how the others learn of it
//! is [`super::run`]'s business.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use allreduce::Way;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::config::MaxWall;
use crate::error::Error;

/// With names for people.
const SIGNALS: [(i32, &str); 4] =
    [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGUSR1, "SIGUSR1"), (SIGUSR2, "SIGUSR2")];
/// A signal that reaches a process twice, by two ways, is one request.
const SAME_REQUEST: Duration = Duration::from_secs(1);
/// Before the end of a Slurm job, to save.
const MARGIN: Duration = Duration::from_secs(120);
/// At most this share of a Slurm job's time.
const MARGIN_SHARE: u32 = 10;
/// Between the first and the last rank of a job to begin, whose deadlines then differ by so much.
const SPREAD: Duration = Duration::from_secs(2);
const NO_SIGNAL: i32 = 0;

/// What this rank was asked.
pub(super) struct StopRequests {
    signal: Arc<AtomicI32>,
    deadline: Option<Deadline>,
}

struct Deadline {
    at: Instant,
    /// Why then.
    reason: String,
}

impl StopRequests {
    /// Listens from now on. The first signal is a request; a second one ends the process at once, with 128 and its
    /// number as exit code.
    pub(super) fn listen() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Other(format!("cannot listen for signals: {error}"));
        let signal = Arc::new(AtomicI32::new(NO_SIGNAL));
        let mut signals = Signals::new(SIGNALS.map(|(number, _)| number)).map_err(failed)?;
        let first = Arc::clone(&signal);
        let listen = move || {
            let mut requested = None;
            for number in signals.forever() {
                match requested {
                    None => {
                        requested = Some(Instant::now());
                        first.store(number, Ordering::Relaxed);
                    }
                    Some(at) if at.elapsed() < SAME_REQUEST => {}
                    Some(_) => signal_hook::low_level::exit(128 + number),
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(StopRequests { signal, deadline: None })
    }

    /// From now on, `limit` is a reason to stop, too. `begin` is when the process began.
    pub(super) fn limit(&mut self, limit: MaxWall, begin: Instant) {
        let variable = |name: &str| std::env::var(name).ok();
        self.deadline = match limit {
            MaxWall::None => None,
            MaxWall::After(duration) => begin.checked_add(duration).map(|at| Deadline {
                at,
                reason: format!("by train.max_wall ({})", humantime::format_duration(duration)),
            }),
            MaxWall::Auto => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                slurm_time_left(variable, now).and_then(|left| Instant::now().checked_add(left)).map(|at| {
                    Deadline {
                        at,
                        reason: "before the end of the Slurm job's time (train.max_wall: auto)".into(),
                    }
                })
            }
        };
    }

    /// Whether this rank wants to stop.
    pub(super) fn requested(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != NO_SIGNAL || self.is_late(Duration::ZERO)
    }

    /// Whether the deadline is no further away than `within`.
    fn is_late(&self, within: Duration) -> bool {
        self.deadline.as_ref().is_some_and(|deadline| Instant::now() + within >= deadline.at)
    }

    /// Why a run stops that this rank or another one wanted to stop, to follow the word "stopped".
    pub(super) fn reason(&self) -> String {
        // What is wrong with the launcher's variables would have been said before.
        let launched = allreduce::discover().ok().flatten();
        self.reason_under(launched.map(|launched| launched.way))
    }

    fn reason_under(&self, way: Option<Way>) -> String {
        let signal = self.signal.load(Ordering::Relaxed);
        match (SIGNALS.iter().find(|(number, _)| *number == signal), &self.deadline) {
            // Ranks hear it where somebody has pressed Ctrl-C there.
            (Some((SIGTERM, name)), _) if matches!(way, Some(Way::Mpi)) => {
                format!("by {name} (mpirun turns Ctrl-C into it)")
            }
            (Some((_, name)), _) => format!("by {name}"),
            (None, Some(deadline)) if self.is_late(SPREAD) => deadline.reason.clone(),
            _ => "on request".into(),
        }
    }
}

/// How long a process in a Slurm job has until it should stop, by the job's variables. `now` is counted from 1970.
fn slurm_time_left(variable: impl Fn(&str) -> Option<String>, now: Duration) -> Option<Duration> {
    let time = |name| variable(name)?.trim().parse().ok().map(Duration::from_secs);
    let end = time("SLURM_JOB_END_TIME")?;
    let whole = end.saturating_sub(time("SLURM_JOB_START_TIME").unwrap_or(now));
    Some(end.saturating_sub(now).saturating_sub(MARGIN.min(whole / MARGIN_SHARE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slurm_job_stops_before_its_end() {
        let left = |start: Option<&str>, end: Option<&str>, now: u64| {
            let variable = |name: &str| match name {
                "SLURM_JOB_START_TIME" => start.map(str::to_owned),
                "SLURM_JOB_END_TIME" => end.map(str::to_owned),
                _ => None,
            };
            slurm_time_left(variable, Duration::from_secs(now)).map(|left| left.as_secs())
        };
        assert_eq!(left(Some("1000"), Some("4600"), 1600), Some(3000 - 120));
        assert_eq!(left(Some("1000"), Some("1060"), 1010), Some(50 - 6), "of a short job the last tenth");
        assert_eq!(left(None, Some("4600"), 1000), Some(3600 - 120));
        assert_eq!(left(Some("1000"), Some("4600"), 5000), Some(0), "over");
        assert_eq!(left(None, None, 1000), None);
        assert_eq!(left(None, Some("UNLIMITED"), 1000), None);
    }

    #[test]
    fn a_signal_is_named_with_what_mpirun_may_have_made_it_of() {
        for (number, way, reason) in [
            (SIGTERM, None, "by SIGTERM"),
            (SIGTERM, Some(Way::Mpi), "by SIGTERM (mpirun turns Ctrl-C into it)"),
            (SIGINT, Some(Way::Mpi), "by SIGINT"),
            (SIGUSR1, Some(Way::Mpi), "by SIGUSR1"),
            (NO_SIGNAL, Some(Way::Mpi), "on request"),
        ] {
            let requests = StopRequests { signal: Arc::new(AtomicI32::new(number)), deadline: None };
            assert_eq!(requests.reason_under(way), reason);
        }
    }

    #[test]
    fn the_time_is_over_when_it_is() {
        let requests = |limit, ago| {
            let begin = Instant::now().checked_sub(Duration::from_secs(ago)).unwrap();
            let mut requests = StopRequests { signal: Arc::new(AtomicI32::new(NO_SIGNAL)), deadline: None };
            requests.limit(limit, begin);
            requests
        };
        let minute = MaxWall::After(Duration::from_secs(60));
        assert!(!requests(minute, 50).requested());
        assert_eq!(requests(minute, 50).reason(), "on request", "another rank's");
        assert!(!requests(minute, 59).requested());
        assert!(requests(minute, 59).reason().contains("max_wall"), "the rank that began a second earlier");
        assert!(requests(minute, 60).requested());
        assert_eq!(requests(minute, 60).reason(), "by train.max_wall (1m)");
        assert!(!requests(MaxWall::None, 60).requested());
        assert!(!requests(MaxWall::After(Duration::MAX), 60).requested());
    }
}
