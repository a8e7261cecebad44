//! How to wait for other ranks without burning a core that computes.

use std::time::{Duration, Instant};

/// A look that takes longer than this moved data, so the other side is at work and more will come soon.
const PROGRESS: Duration = Duration::from_micros(5);
const LONGEST_SLEEP: Duration = Duration::from_micros(500);
/// Sleeping this part of the time waited so far makes a wait longer by no more than that part.
const SLEEP_SHARE: u32 = 8;

/// What a wait may cost, and what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// After less than this without progress, the next look follows at once.
    spin: Duration,
    shortest_sleep: Duration,
    /// Whether there is another spin after progress.
    spins_again: bool,
}

impl Patience {
    /// For ranks that share memory: whole messages come at once. Ranks that sleep and wake in turn wait the shortest
    /// sleep for each message.
    pub(crate) const WITHIN_HOST: Patience = Patience {
        spin: Duration::from_micros(20),
        shortest_sleep: Duration::from_micros(10),
        spins_again: true,
    };

    /// For ranks behind a network: its buffers go on without us, and who looks at once finds the next packet, by a
    /// system call for each.
    pub(crate) const BETWEEN_HOSTS: Patience = Patience {
        spin: Duration::from_micros(20),
        shortest_sleep: Duration::from_micros(100),
        spins_again: false,
    };

    /// For a thread that has a core of its own.
    pub(crate) const fn with_a_spare_core(spin: Duration) -> Patience {
        Patience { spin, ..Patience::WITHIN_HOST }
    }

    fn pause_after(self, waited: Duration) -> Option<Duration> {
        (waited >= self.spin).then(|| (waited / SLEEP_SHARE).clamp(self.shortest_sleep, LONGEST_SLEEP))
    }
}

/// One wait.
pub(crate) struct Backoff {
    patience: Patience,
    /// The start of the wait, or the last progress.
    since: Instant,
}

impl Backoff {
    pub(crate) fn new(patience: Patience) -> Self {
        Backoff { patience, since: Instant::now() }
    }

    /// Passes the time until the next look, after one that took from `looked` until now in vain.
    pub(crate) fn pause(&mut self, looked: Instant) {
        let now = Instant::now();
        let mut waited = now - self.since;
        if now - looked > PROGRESS {
            self.since = now;
            waited = if self.patience.spins_again { Duration::ZERO } else { self.patience.spin };
        }
        match self.patience.pause_after(waited) {
            // Not a yield: Linux takes it as leave to run every other thread for whole slices first.
            None => std::hint::spin_loop(),
            Some(sleep) => std::thread::sleep(sleep),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_grow_with_the_wait_between_fixed_bounds() {
        let micros = Duration::from_micros;
        let spare = Patience::with_a_spare_core(micros(1000));
        let cases = [
            (Patience::WITHIN_HOST, 0, None),
            (Patience::WITHIN_HOST, 19, None),
            (Patience::WITHIN_HOST, 20, Some(10)),
            (Patience::WITHIN_HOST, 400, Some(50)),
            (Patience::WITHIN_HOST, 4000, Some(500)),
            (Patience::WITHIN_HOST, 60_000_000, Some(500)),
            (Patience::BETWEEN_HOSTS, 19, None),
            (Patience::BETWEEN_HOSTS, 20, Some(100)),
            (Patience::BETWEEN_HOSTS, 1600, Some(200)),
            (spare, 999, None),
            (spare, 1000, Some(125)),
        ];
        for (patience, waited, sleep) in cases {
            assert_eq!(
                patience.pause_after(micros(waited)),
                sleep.map(micros),
                "{patience:?} after {waited} µs"
            );
        }
    }

    #[test]
    fn what_trickles_in_is_not_spun_for() {
        let began = Instant::now() - Duration::from_micros(30);
        for (patience, sleeps) in [(Patience::WITHIN_HOST, false), (Patience::BETWEEN_HOSTS, true)] {
            // Another thread may delay this one; the quickest of many pauses tells.
            let quickest = (0..100).map(|_| {
                let before = Instant::now();
                Backoff { patience, since: before }.pause(began);
                before.elapsed()
            });
            let slept = quickest.min().unwrap() >= patience.shortest_sleep;
            assert_eq!(slept, sleeps, "{patience:?}");
        }
    }
}
