//! How a global batch is cut into micro batches and ranks, and a test set into batches. Moves no data.

use std::ops::Range;

use crate::error::DataError;

/// The cut of a global batch: micro batch j is samples [j·m, (j+1)·m) of it, and rank r of W runs the micro
/// batches [r·M/W, (r+1)·M/W), where m is the size of a micro batch and M their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    global_batch: usize,
    micro_batch: usize,
    rank: usize,
    world_size: usize,
}

impl BatchLayout {
    /// Sizes in samples.
    ///
    /// # Errors
    /// If a number is 0, the rank is not below `world_size`, or `global_batch` is no multiple of
    /// `micro_batch * world_size`.
    pub fn new(
        global_batch: usize,
        micro_batch: usize,
        rank: usize,
        world_size: usize,
    ) -> Result<Self, DataError> {
        let positive =
            [("global batch", global_batch), ("micro batch", micro_batch), ("number of ranks", world_size)];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(DataError::OutOfRange { name, value: 0, expected: "1 or more".into() });
        }
        if rank >= world_size {
            let expected = format!("less than the number of ranks, {world_size}");
            return Err(DataError::OutOfRange { name: "rank", value: rank as u64, expected });
        }
        let unit = micro_batch.saturating_mul(world_size);
        if !global_batch.is_multiple_of(unit) {
            let below = global_batch - global_batch % unit;
            let nearest = match (below, below.checked_add(unit)) {
                (0, _) => unit.to_string(),
                (_, Some(above)) => format!("{below} or {above}"),
                (_, None) => below.to_string(),
            };
            return Err(DataError::GlobalBatch { global_batch, micro_batch, world_size, nearest });
        }
        Ok(BatchLayout { global_batch, micro_batch, rank, world_size })
    }

    /// Samples a step over all ranks.
    #[must_use]
    pub fn global_batch(&self) -> usize {
        self.global_batch
    }

    /// Samples of one forward pass.
    #[must_use]
    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Micro batches a step over all ranks.
    #[must_use]
    pub fn micro_batches(&self) -> usize {
        self.global_batch / self.micro_batch
    }

    /// Which micro batches of the global batch are this rank's.
    #[must_use]
    pub fn local_micro_batches(&self) -> Range<usize> {
        let share = self.micro_batches() / self.world_size;
        self.rank * share..(self.rank + 1) * share
    }

    /// Whole global batches in an epoch; samples that do not fill one are left out (others in each shuffled
    /// epoch).
    #[must_use]
    pub fn steps_per_epoch(&self, samples: usize) -> usize {
        samples / self.global_batch
    }

    /// Where in the epoch's order the samples of a micro batch stand.
    ///
    /// # Panics
    /// If the step has no such micro batch.
    #[must_use]
    pub fn positions(&self, step: usize, micro_batch: usize) -> Range<usize> {
        assert!(micro_batch < self.micro_batches(), "a step has {} micro batches", self.micro_batches());
        let begin = step * self.global_batch + micro_batch * self.micro_batch;
        begin..begin + self.micro_batch
    }
}

/// One batch of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluationBatch {
    /// Index among the batches of all ranks.
    pub index: usize,
    /// The samples in it.
    pub samples: Range<usize>,
}

/// The batches that `rank` evaluates of a test set: batch j holds the samples [j·b, (j+1)·b) and goes to rank
/// j mod `world_size`. Over all ranks every sample comes once; the last batch may be smaller.
///
/// # Panics
/// If `batch` or `world_size` is 0.
#[must_use]
pub fn evaluation_batches(
    samples: usize,
    batch: usize,
    rank: usize,
    world_size: usize,
) -> Vec<EvaluationBatch> {
    (rank..samples.div_ceil(batch))
        .step_by(world_size)
        .map(|index| EvaluationBatch { index, samples: index * batch..samples.min((index + 1) * batch) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_batch_is_the_same_samples_for_any_number_of_ranks() {
        for world_size in [1, 2, 4, 8] {
            let mut step_samples = Vec::new();
            for rank in 0..world_size {
                let layout = BatchLayout::new(32, 4, rank, world_size).unwrap();
                assert_eq!((layout.micro_batches(), layout.steps_per_epoch(100)), (8, 3));
                assert_eq!(layout.local_micro_batches().len(), 8 / world_size);
                for micro_batch in layout.local_micro_batches() {
                    step_samples.extend(layout.positions(2, micro_batch));
                }
            }
            assert_eq!(step_samples, (64..96).collect::<Vec<_>>(), "{world_size} ranks");
        }
    }

    #[test]
    fn impossible_cuts_are_refused_with_the_numbers() {
        let cases = [
            (
                (100, 16, 0, 2),
                "a global batch of 100 is no multiple of micro batch 16 x 2 rank(s); nearest valid global batch: 96 or 128",
            ),
            (
                (8, 8, 1, 3),
                "a global batch of 8 is no multiple of micro batch 8 x 3 rank(s); nearest valid global batch: 24",
            ),
            (
                (usize::MAX, 4, 0, 2),
                "a global batch of 18446744073709551615 is no multiple of micro batch 4 x 2 rank(s); nearest valid global batch: 18446744073709551608",
            ),
            ((0, 1, 0, 1), "global batch is 0; expected 1 or more"),
            ((8, 0, 0, 1), "micro batch is 0; expected 1 or more"),
            ((8, 8, 0, 0), "number of ranks is 0; expected 1 or more"),
            ((8, 4, 2, 2), "rank is 2; expected less than the number of ranks, 2"),
        ];
        for ((global, micro, rank, world), message) in cases {
            assert_eq!(BatchLayout::new(global, micro, rank, world).unwrap_err().to_string(), message);
        }
        let huge = BatchLayout::new(64, usize::MAX, 0, 2).unwrap_err().to_string();
        assert!(huge.contains("micro batch 18446744073709551615 x 2"), "{huge}");
    }

    #[test]
    fn evaluation_sees_every_sample_once() {
        for (samples, batch, world_size) in
            [(10, 4, 1), (10, 4, 2), (10, 4, 5), (8, 4, 3), (0, 4, 2), (1, 64, 4)]
        {
            let mut all: Vec<EvaluationBatch> = (0..world_size)
                .flat_map(|rank| evaluation_batches(samples, batch, rank, world_size))
                .collect();
            all.sort_by_key(|batch| batch.index);
            let seen: Vec<usize> = all.iter().flat_map(|batch| batch.samples.clone()).collect();
            assert_eq!(seen, (0..samples).collect::<Vec<_>>(), "{samples} {batch} {world_size}");
            assert!(all.iter().all(|found| (1..=batch).contains(&found.samples.len())));
        }
        let second = evaluation_batches(10, 4, 1, 2);
        assert_eq!(second, [EvaluationBatch { index: 1, samples: 4..8 }]);
    }
}
