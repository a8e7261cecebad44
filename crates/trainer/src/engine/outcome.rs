//! What goes into a step beside its batches, and what comes of it.

use std::time::Duration;

use allreduce::StepExchange;

use crate::error::Error;

/// How long this rank took for each part of a step. Where it computes on a GPU, that GPU: it waits for data when the host
/// has queued nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phases {
    pub(crate) data_wait: Duration,
    pub(crate) input: Duration,
    pub(crate) forward: Duration,
    pub(crate) backward: Duration,
    pub(crate) exposed_communication: Duration,
    pub(crate) optimizer: Duration,
    /// From beginning to end, or from the end of the step before, if that was later.
    pub(crate) step: Duration,
}

/// What one step brought, equal on all ranks but for the times.
#[derive(Clone, Debug)]
pub(crate) struct StepOutcome {
    /// Mean loss over the samples of the global batch that were not skipped.
    pub(crate) loss: f32,
    /// Correct predictions among the global batch.
    pub(crate) correct: u64,
    /// Some rank was asked to stop.
    pub(crate) stop: bool,
    /// Rank 0 wants to save.
    pub(crate) save: bool,
    /// Samples of the global batch that could not be decoded and were skipped.
    pub(crate) skipped: u64,
    /// Whether the averages were finite numbers; otherwise nothing was updated.
    pub(crate) updated: bool,
    /// Of each rank, the mean loss over its samples.
    pub(crate) rank_losses: Vec<f32>,
    /// Ranks whose own gradient was infinite or NaN somewhere, where they look for that themselves.
    pub(crate) not_finite_ranks: Vec<usize>,
    /// L2 norm of the averaged gradient, where it is clipped.
    pub(crate) gradient_norm: Option<f64>,
    pub(crate) phases: Phases,
    pub(crate) exchange: StepExchange,
}

/// What a rank tells the others with a step, just before its last backward pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// To stop after it.
    pub(crate) stop: bool,
    /// To save after it.
    pub(crate) save: bool,
}

/// Why a step ended without an update.
#[derive(Debug)]
pub(crate) enum StepError {
    /// This rank failed; every rank knows that some rank did, and waits to hear which.
    Here(Error),
    /// Another rank failed.
    Elsewhere,
    /// The exchange itself failed: the ranks can no longer speak to each other.
    Exchange(Error),
}

/// Which weights are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightSet {
    /// Those that are trained.
    Current,
    /// Their moving average, where there is one.
    Averaged,
}

/// A mean over all samples in which the `skipped` ones are zeros, as the mean over the others.
pub(super) fn mean_of_counted(mean: f32, samples: usize, skipped: u64) -> f32 {
    match (samples as u64).saturating_sub(skipped) {
        _ if skipped == 0 => mean,
        counted => (f64::from(mean) * samples as f64 / counted as f64) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_samples_do_not_lower_the_loss() {
        assert_eq!(mean_of_counted(2.5, 8, 0), 2.5);
        // Six losses of 4 and two zeros.
        assert_eq!(mean_of_counted(3.0, 8, 2), 4.0);
        assert!(mean_of_counted(0.0, 8, 8).is_nan(), "there is nothing to take the mean of");
    }
}
