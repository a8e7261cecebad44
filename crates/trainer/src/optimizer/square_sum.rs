//! Sums of squares in a fixed order. Plain arithmetic: no tensors, no ranks.
//!
//! The squares of a tensor are added in fp64 along a binary tree over the places of its elements. Whoever adds up
//! whole branches, and however many do, the sum has the same bits: that is what lets ranks with a part of a tensor
//! each agree with one rank that has all of it.

/// Elements of one leaf of the tree. Parts of a tensor begin at multiples of it.
pub(super) const LEAF: usize = 16;
/// A branch of this height is added up without looking left or right.
const BLOCK_HEIGHT: u32 = 6;
const BLOCK_LEAVES: usize = 1 << BLOCK_HEIGHT;

/// The sum over one branch of the tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Branch {
    /// It has two to the power of this many leaves.
    pub(super) height: u32,
    /// How many branches of its height stand before it.
    pub(super) index: u64,
    pub(super) sum: f64,
}

impl Branch {
    /// Its first leaf.
    pub(super) fn begin(self) -> u64 {
        self.index << self.height
    }
}

/// The sum of a part of a tensor, as few branches.
#[derive(Clone, Debug, Default)]
pub(super) struct SquareSum {
    branches: Vec<Branch>,
}

impl SquareSum {
    /// Adds the squares of `values`, whose first is element `begin` of the tensor, behind what has been added before.
    pub(super) fn extend(&mut self, begin: usize, mut values: &[f32]) {
        debug_assert!(begin.is_multiple_of(LEAF));
        let mut leaf = begin / LEAF;
        while !values.is_empty() {
            let whole_block = leaf.is_multiple_of(BLOCK_LEAVES) && values.len() >= LEAF * BLOCK_LEAVES;
            let (height, leaves) = if whole_block { (BLOCK_HEIGHT, BLOCK_LEAVES) } else { (0, 1) };
            let (now, later) = values.split_at(values.len().min(LEAF * leaves));
            let sum = if whole_block { sum_of_block(now) } else { sum_of_leaf(now) };
            self.push(Branch { height, index: (leaf / leaves) as u64, sum });
            leaf += leaves;
            values = later;
        }
    }

    /// Adds a branch that stands behind all others.
    pub(super) fn push(&mut self, mut branch: Branch) {
        while let Some(last) = self.branches.last().copied() {
            let siblings =
                last.height == branch.height && last.index % 2 == 0 && last.index + 1 == branch.index;
            if !siblings {
                break;
            }
            self.branches.pop();
            branch = Branch { height: last.height + 1, index: last.index / 2, sum: last.sum + branch.sum };
        }
        self.branches.push(branch);
    }

    pub(super) fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The sum over all branches; where one lacks a sibling behind it, it moves up as it is.
    pub(super) fn total(&self) -> f64 {
        self.branches.iter().rev().map(|branch| branch.sum).reduce(|behind, sum| sum + behind).unwrap_or(0.0)
    }
}

fn sum_of_leaf(values: &[f32]) -> f64 {
    let mut squares = [0.0; LEAF];
    for (square, &value) in squares.iter_mut().zip(values) {
        *square = f64::from(value) * f64::from(value);
    }
    add_pairwise(&mut squares)
}

fn sum_of_block(values: &[f32]) -> f64 {
    let mut sums = [0.0; BLOCK_LEAVES];
    for (sum, leaf) in sums.iter_mut().zip(values.chunks_exact(LEAF)) {
        *sum = sum_of_leaf(leaf);
    }
    // Neighbours, then neighbouring sums, as `push` does it.
    let mut count = BLOCK_LEAVES;
    while count > 1 {
        count /= 2;
        for index in 0..count {
            sums[index] = sums[2 * index] + sums[2 * index + 1];
        }
    }
    sums[0]
}

/// Adds the second half to the first, and so on; within a leaf the order is free to be one that suits vectors.
fn add_pairwise(squares: &mut [f64; LEAF]) -> f64 {
    let mut half = LEAF / 2;
    while half > 0 {
        for index in 0..half {
            squares[index] += squares[index + half];
        }
        half /= 2;
    }
    squares[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|index| ((index * 7919 % 1013) as f32 - 500.0) * 1.7e-3 * (1.0 + index as f32)).collect()
    }

    #[test]
    fn parts_added_by_anybody_give_the_bits_of_the_whole() {
        for len in [0, 1, 16, 48, 1024, 1040, 5008, 40_000] {
            let values = values(len);
            let mut whole = SquareSum::default();
            whole.extend(0, &values);
            let exact: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            assert!((whole.total() - exact).abs() <= 1e-12 * exact, "{len}: {} for {exact}", whole.total());
            for cuts in [&[16][..], &[1024], &[16, 32, 2000, 2016], &[4992, 20_000]] {
                let mut joined = SquareSum::default();
                let mut ends: Vec<usize> = cuts.iter().map(|&cut| cut.min(len / LEAF * LEAF)).collect();
                ends.push(len);
                let mut begin = 0;
                for end in ends {
                    let mut part = SquareSum::default();
                    part.extend(begin, &values[begin..end]);
                    part.branches().iter().for_each(|&branch| joined.push(branch));
                    begin = end;
                }
                assert_eq!(joined.total().to_bits(), whole.total().to_bits(), "{len} cut at {cuts:?}");
            }
        }
    }

    #[test]
    fn a_whole_tensor_is_few_branches_and_large_squares_do_not_overflow() {
        let mut sum = SquareSum::default();
        sum.extend(0, &vec![f32::MAX; 1 << 16]);
        assert_eq!(sum.branches().len(), 1);
        assert!(sum.total().is_finite());
    }
}
