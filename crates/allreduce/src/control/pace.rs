//! How fast each rank works, as it tells rank 0 now and then. Only carried here; who is too slow is judged
//! elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a rank works on a step by itself, without waiting for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The last step that it counts.
    pub step: u64,
    /// Mean time of each part of a step, in an order that all ranks know.
    pub parts: Vec<Duration>,
}

/// The pace of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankPace {
    /// Which rank.
    pub rank: usize,
    /// Its host.
    pub host: String,
    /// What it told last.
    pub pace: Pace,
}

/// What rank 0 was told last by every other rank: written by the control plane's thread, read by the trainer.
#[derive(Clone, Debug, Default)]
pub(super) struct Paces(Arc<Mutex<BTreeMap<usize, RankPace>>>);

impl Paces {
    fn by_rank(&self) -> MutexGuard<'_, BTreeMap<usize, RankPace>> {
        // Every change is complete before the lock opens.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, rank: usize, host: &str, pace: Pace) {
        self.by_rank().insert(rank, RankPace { rank, host: host.to_owned(), pace });
    }

    pub(super) fn all(&self) -> Vec<RankPace> {
        self.by_rank().values().cloned().collect()
    }
}
