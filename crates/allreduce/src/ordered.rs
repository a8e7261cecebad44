//! The ordered all-reduce: sums over ranks whose bits depend neither on the transport nor on how the data is
//! cut.
//!
//! Rank r owns slice r of the data: it receives the others' copies of it, adds them in a fixed binary tree
//! over the ranks, and sends the sum back. That moves as many bytes as a ring does. Each element's sum is
//! formed on its own, so where slices or buckets begin makes no difference.

use crate::CommError;
use crate::transport::{Element, Transport};

/// Slices start at multiples of a cache line.
const ALIGNMENT: usize = 16;
/// Elements that are summed in one go, so that they stay in the first-level cache.
pub(crate) const BLOCK: usize = 1024;

/// Adds `other` to `into`, element by element.
pub(crate) fn add(into: &mut [f32], other: &[f32]) {
    for (into, other) in into.iter_mut().zip(other) {
        *into += other;
    }
}

/// Adds neighbours, then neighbouring sums, and so on; a last one without a neighbour moves up as it is. The
/// sum ends in the first row. Rows begin `stride` elements apart, and only their `columns` are touched.
pub(crate) fn add_rows_pairwise(
    rows: &mut [f32],
    count: usize,
    stride: usize,
    columns: std::ops::Range<usize>,
) {
    let mut distance = 1;
    while distance < count {
        for left in (0..count - distance).step_by(2 * distance) {
            let (head, tail) = rows.split_at_mut((left + distance) * stride);
            let into = &mut head[left * stride..][columns.clone()];
            add(into, &tail[columns.clone()]);
        }
        distance *= 2;
    }
}

/// The algorithm with its memory, which grows to the longest data seen and is reused.
#[derive(Debug, Default)]
pub(crate) struct OrderedReduction {
    rows: Vec<f32>,
}

/// How data is cut into one slice a rank. With few elements the last ranks own nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slices {
    len: usize,
    slice_len: usize,
}

impl Slices {
    pub(crate) fn new(len: usize, ranks: usize) -> Self {
        Slices { len, slice_len: len.div_ceil(ranks).next_multiple_of(ALIGNMENT) }
    }

    /// Elements of all slices but the last ones.
    pub(crate) fn slice_len(self) -> usize {
        self.slice_len
    }

    pub(crate) fn of(self, rank: usize) -> std::ops::Range<usize> {
        let start_of = |rank: usize| (rank * self.slice_len).min(self.len);
        start_of(rank)..start_of(rank + 1)
    }
}

impl OrderedReduction {
    /// Replaces `values` by their sum over all ranks.
    pub(crate) fn all_reduce(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
    ) -> Result<(), CommError> {
        if transport.world_size() == 1 || values.is_empty() {
            return Ok(());
        }
        let slices = Slices::new(values.len(), transport.world_size());
        self.reduce_scatter(transport, values, slices)?;
        gather(transport, values, slices)
    }

    /// Replaces this rank's slice of `values` by its sum over all ranks.
    pub(crate) fn reduce_scatter(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
        slices: Slices,
    ) -> Result<(), CommError> {
        let (rank, world_size) = (transport.rank(), transport.world_size());
        let slice_len = slices.slice_len();
        let own = slices.of(rank);
        let own_len = own.len();
        if self.rows.len() < world_size * slice_len {
            self.rows.resize(world_size * slice_len, 0.0);
        }
        let rows = &mut self.rows[..world_size * slice_len];
        scatter(transport, values, rows, slices)?;
        for begin in (0..own_len).step_by(BLOCK) {
            let columns = begin..(begin + BLOCK).min(own_len);
            let own = &mut values[own.clone()][columns.clone()];
            rows[rank * slice_len..][columns.clone()].copy_from_slice(own);
            add_rows_pairwise(rows, world_size, slice_len, columns.clone());
            own.copy_from_slice(&rows[columns]);
        }
        Ok(())
    }
}

/// Sends each rank the slice that it owns, and receives the others' copies of this rank's slice: of rank r at row r
/// of `rows`, which are as far apart as slices. This rank's own row stays as it is.
pub(crate) fn scatter<E: Element>(
    transport: &mut impl Transport,
    values: &[E],
    rows: &mut [E],
    slices: Slices,
) -> Result<(), CommError> {
    let (rank, slice_len) = (transport.rank(), slices.slice_len());
    let own_len = slices.of(rank).len();
    transport.exchange(
        values.chunks(slice_len).enumerate().filter(|&(peer, _)| peer != rank),
        rows.chunks_mut(slice_len)
            .enumerate()
            .filter(|&(peer, _)| peer != rank && own_len > 0)
            .map(|(peer, row)| (peer, &mut row[..own_len])),
    )
}

/// Gives every rank the slices that the others own, one a rank.
pub(crate) fn gather_slices(transport: &mut impl Transport, values: &mut [f32]) -> Result<(), CommError> {
    if transport.world_size() == 1 || values.is_empty() {
        return Ok(());
    }
    let slices = Slices::new(values.len(), transport.world_size());
    gather(transport, values, slices)
}

/// Gives every rank the slices that the others own.
pub(crate) fn gather<E: Element>(
    transport: &mut impl Transport,
    values: &mut [E],
    slices: Slices,
) -> Result<(), CommError> {
    let (rank, world_size) = (transport.rank(), transport.world_size());
    let slice_len = slices.slice_len();
    let range = slices.of(rank);
    let (before, rest) = values.split_at_mut(range.start);
    let (own, after) = rest.split_at_mut(range.len());
    let own: &[E] = own;
    let ranks_before = before.chunks_mut(slice_len).enumerate();
    let ranks_after = after.chunks_mut(slice_len).zip(rank + 1..).map(|(slice, peer)| (peer, slice));
    transport.exchange(
        (0..world_size).filter(|&peer| peer != rank && !own.is_empty()).map(|peer| (peer, own)),
        ranks_before.chain(ranks_after),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_process::{on_each_rank, wild_values};

    /// The sum by the definition: pairs, then pairs of pairs, the odd one passed up.
    fn tree_sum(mut values: Vec<f32>) -> f32 {
        while values.len() > 1 {
            values =
                values.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
        }
        values[0]
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn sums_are_those_of_the_tree_on_every_rank_for_any_rank_count_and_length() {
        for world_size in [1, 2, 3, 4, 5, 7, 8] {
            for len in [0, 1, 2, 3, 15, 16, 17, 100, 5000] {
                let inputs: Vec<_> = (0..world_size).map(|rank| wild_values(len, rank as u64)).collect();
                let expected: Vec<f32> = (0..len)
                    .map(|index| tree_sum(inputs.iter().map(|values| values[index]).collect()))
                    .collect();
                let results = on_each_rank(world_size, |transport| {
                    let mut values = inputs[transport.rank()].clone();
                    OrderedReduction::default().all_reduce(transport, &mut values).unwrap();
                    bits(&values)
                });
                for (rank, result) in results.iter().enumerate() {
                    assert_eq!(*result, bits(&expected), "rank {rank} of {world_size}, {len} values");
                }
            }
        }
    }

    #[test]
    fn where_the_data_is_cut_changes_no_bit() {
        let (world_size, len) = (5, 3000);
        let sum_in_pieces = |cuts: &'static [usize]| {
            on_each_rank(world_size, move |transport| {
                let mut values = wild_values(len, transport.rank() as u64);
                let mut reduction = OrderedReduction::default();
                let mut rest = &mut values[..];
                for &cut in cuts {
                    let (piece, remaining) = rest.split_at_mut(cut);
                    reduction.all_reduce(transport, piece).unwrap();
                    rest = remaining;
                }
                reduction.all_reduce(transport, rest).unwrap();
                bits(&values)
            })
        };
        let whole = sum_in_pieces(&[]);
        for cuts in [&[1][..], &[1500], &[7, 0, 1000, 13]] {
            assert_eq!(sum_in_pieces(cuts), whole, "cut at {cuts:?}");
        }
    }

    #[test]
    fn memory_is_reused_once_the_longest_data_has_been_seen() {
        let grown = on_each_rank(3, |transport| {
            let mut reduction = OrderedReduction::default();
            reduction.all_reduce(transport, &mut [1.0; 1000]).unwrap();
            let before = (reduction.rows.as_ptr() as usize, reduction.rows.capacity());
            for len in [1000, 1, 500] {
                reduction.all_reduce(transport, &mut vec![1.0; len]).unwrap();
            }
            before != (reduction.rows.as_ptr() as usize, reduction.rows.capacity())
        });
        assert_eq!(grown, [false; 3]);
    }
}
