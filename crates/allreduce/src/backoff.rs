//! How to wait for other ranks without burning a core that computes.

use std::time::{Duration, Instant};

/// After less than this without progress, the next look follows at once.
const SPIN: Duration = Duration::from_micros(20);
/// A look that takes longer than this moved data, so the other side is at work and more will come soon.
const PROGRESS: Duration = Duration::from_micros(5);
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);
const LONGEST_SLEEP: Duration = Duration::from_micros(500);
/// Sleeping this part of the time waited so far makes a wait longer by no more than that part.
const SLEEP_SHARE: u32 = 8;

/// One wait.
pub(crate) struct Backoff {
    /// The start of the wait, or the last progress.
    since: Instant,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Backoff { since: Instant::now() }
    }

    /// Passes the time until the next look, after one that took from `looked` until now in vain.
    pub(crate) fn pause(&mut self, looked: Instant) {
        let now = Instant::now();
        if now - looked > PROGRESS {
            self.since = now;
        }
        match pause_after(now - self.since) {
            // Not a yield: Linux takes it as leave to run every other thread for whole slices first.
            None => std::hint::spin_loop(),
            Some(sleep) => std::thread::sleep(sleep),
        }
    }
}

fn pause_after(waited: Duration) -> Option<Duration> {
    (waited >= SPIN).then(|| (waited / SLEEP_SHARE).clamp(SHORTEST_SLEEP, LONGEST_SLEEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_grow_with_the_wait_between_fixed_bounds() {
        let micros = Duration::from_micros;
        let cases = [
            (0, None),
            (19, None),
            (20, Some(50)),
            (400, Some(50)),
            (800, Some(100)),
            (4000, Some(500)),
            (60_000_000, Some(500)),
        ];
        for (waited, sleep) in cases {
            assert_eq!(pause_after(micros(waited)), sleep.map(micros), "after {waited} µs");
        }
    }
}
