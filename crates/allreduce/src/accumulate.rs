//! Sums the micro batches of one rank and one step, in place or in a binary tree. Does not talk to other
//! ranks.

use std::ops::Range;

use crate::ordered::add;

/// How the gradients of a rank's micro batches are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulation {
    /// In a binary tree over the micro batches. With [`Reduction::Ordered`](crate::Reduction::Ordered) the
    /// tree goes on over the ranks, so that all rank counts for which a rank has a power of two of micro
    /// batches, and one rank with all of them, form the same sums, bit for bit. Costs about log2(micro
    /// batches a rank) more gradient buffers.
    Tree,
    /// One after the other in the gradient buffer itself, as backward does.
    InPlace,
}

/// Elements that are summed in one go, so that they stay in the first-level cache.
const BLOCK: usize = 2048;

/// A binary counter of sums: level k is free or holds the sum of 2^k micro batches, as bit k of their number
/// says.
#[derive(Debug, Default)]
pub(crate) struct SumTree {
    levels: Vec<Vec<f32>>,
    micro_batches: usize,
}

impl SumTree {
    /// Forgets all sums, and provides the levels for `micro_batches` of `len` elements, of which the last
    /// stays outside.
    pub(crate) fn begin_step(&mut self, micro_batches: usize, len: usize) {
        self.micro_batches = 0;
        self.provide_levels(micro_batches.saturating_sub(1), len);
    }

    /// Adds a micro batch that is not the last one of the step, and sets `gradients` to zero.
    pub(crate) fn push(&mut self, gradients: &mut [f32]) {
        self.provide_levels(self.micro_batches + 1, gradients.len());
        let level = self.micro_batches.trailing_ones() as usize;
        let (full, free) = self.levels.split_at_mut(level);
        for begin in (0..gradients.len()).step_by(BLOCK) {
            let block = begin..(begin + BLOCK).min(gradients.len());
            let gradients = &mut gradients[block.clone()];
            for sums in &*full {
                add(gradients, &sums[block.clone()]);
            }
            free[0][block].copy_from_slice(gradients);
            gradients.fill(0.0);
        }
        self.micro_batches += 1;
    }

    /// Adds everything pushed in this step to `values`, which are the last micro batch's elements `range`.
    /// Small sums come first: that is the binary tree over all micro batches in which one without a neighbour
    /// moves up.
    pub(crate) fn fold_into(&self, range: &Range<usize>, values: &mut [f32]) {
        for begin in (0..values.len()).step_by(BLOCK) {
            let block = begin..(begin + BLOCK).min(values.len());
            for (level, sums) in self.levels.iter().enumerate() {
                if self.micro_batches >> level & 1 == 1 {
                    add(&mut values[block.clone()], &sums[range.clone()][block.clone()]);
                }
            }
        }
    }

    /// Enough levels to count to `micro_batches`.
    fn provide_levels(&mut self, micro_batches: usize, len: usize) {
        let needed = (usize::BITS - micro_batches.leading_zeros()) as usize;
        while self.levels.len() < needed {
            self.levels.push(vec![0.0; len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_process::wild_values;

    fn tree_sum(mut rows: Vec<Vec<f32>>) -> Vec<f32> {
        while rows.len() > 1 {
            rows = rows
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => left.iter().zip(right).map(|(a, b)| a + b).collect(),
                    odd => odd[0].clone(),
                })
                .collect();
        }
        rows.remove(0)
    }

    #[test]
    fn pushing_and_folding_is_the_tree_over_all_micro_batches() {
        let len = 2 * BLOCK + 3;
        let mut tree = SumTree::default();
        for micro_batches in [1, 2, 3, 4, 5, 6, 7, 8, 12, 1] {
            let rows: Vec<_> = (0..micro_batches).map(|index| wild_values(len, index as u64)).collect();
            tree.begin_step(micro_batches, len);
            let mut gradients = vec![0.0; len];
            for row in &rows[..micro_batches - 1] {
                gradients.copy_from_slice(row);
                tree.push(&mut gradients);
                assert!(gradients.iter().all(|&gradient| gradient == 0.0));
            }
            gradients.copy_from_slice(&rows[micro_batches - 1]);
            let (head, tail) = gradients.split_at_mut(BLOCK + 7);
            tree.fold_into(&(0..BLOCK + 7), head);
            tree.fold_into(&(BLOCK + 7..len), tail);
            assert_eq!(gradients, tree_sum(rows), "{micro_batches} micro batches");
        }
    }

    #[test]
    fn levels_are_logarithmic_and_allocated_at_the_start_of_the_step() {
        for (micro_batches, levels) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4)] {
            let mut tree = SumTree::default();
            tree.begin_step(micro_batches, 10);
            assert_eq!(tree.levels.len(), levels, "{micro_batches} micro batches");
            for _ in 1..micro_batches {
                tree.push(&mut [1.0; 10]);
            }
            assert_eq!(tree.levels.len(), levels, "{micro_batches} micro batches");
        }
    }
}
