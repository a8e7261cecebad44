//! The ordered all-reduce with messages of 16 bits a value, half as many bytes. Sums are formed in fp32.
//!
//! Every contribution is rounded, the owner's own too, and so is every sum: a value's result depends neither on
//! who owns it nor on how the data is cut, and is the same on every rank. Both roundings are to nearest, ties to
//! even.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::CommError;
use crate::ordered::{BLOCK, OrderedReduction, Slices, add_rows_pairwise, gather, scatter};
use crate::transport::{Element, Transport};

impl Element for bf16 {}
impl Element for f16 {}

/// How values travel between ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// As they are.
    #[default]
    Fp32,
    /// Rounded to 8 bits of precision, with the range of fp32.
    Bf16,
    /// Rounded to 11 bits of precision; from 65,520 on they become infinite, below 6e-5 they lose precision, and
    /// below 3e-8 they become 0.
    Fp16,
}

impl Wire {
    /// The value that arrives when `value` is sent.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Wire::Fp32 => value,
            Wire::Bf16 => bf16::from_f32(value).to_f32(),
            Wire::Fp16 => f16::from_f32(value).to_f32(),
        }
    }

    /// Bytes of a value on its way.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Wire::Fp32 => size_of::<f32>(),
            Wire::Bf16 | Wire::Fp16 => size_of::<u16>(),
        }
    }

    /// Name of the format.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Wire::Fp32 => "fp32",
            Wire::Bf16 => "bf16",
            Wire::Fp16 => "fp16",
        }
    }
}

/// The algorithms for all formats, each with its memory.
#[derive(Debug, Default)]
pub(crate) struct OrderedReductions {
    fp32: OrderedReduction,
    bf16: CompressedReduction<bf16>,
    fp16: CompressedReduction<f16>,
}

impl OrderedReductions {
    /// Replaces `values` by their sum over all ranks.
    pub(crate) fn all_reduce(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
        wire: Wire,
    ) -> Result<(), CommError> {
        match wire {
            Wire::Fp32 => self.fp32.all_reduce(transport, values),
            Wire::Bf16 => self.bf16.all_reduce(transport, values),
            Wire::Fp16 => self.fp16.all_reduce(transport, values),
        }
    }

    /// Replaces this rank's slice of `values` by its sum over all ranks, in fp32.
    pub(crate) fn reduce_scatter(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
    ) -> Result<(), CommError> {
        if transport.world_size() == 1 || values.is_empty() {
            return Ok(());
        }
        let slices = Slices::new(values.len(), transport.world_size());
        self.fp32.reduce_scatter(transport, values, slices)
    }
}

/// The algorithm for one format with its memory, which grows to the longest data seen and is reused.
#[derive(Debug, Default)]
pub(crate) struct CompressedReduction<H> {
    /// All values of this rank, rounded; then their sums.
    values: Vec<H>,
    /// The other ranks' values of the slice that this rank owns.
    rows: Vec<H>,
    /// A block of each rank, in fp32.
    block: Vec<f32>,
}

impl<H: Element> CompressedReduction<H>
where
    [H]: HalfFloatSliceExt,
{
    /// Replaces `values` by their rounded sum over all ranks.
    pub(crate) fn all_reduce(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
    ) -> Result<(), CommError> {
        let (rank, world_size) = (transport.rank(), transport.world_size());
        if world_size == 1 || values.is_empty() {
            return Ok(());
        }
        let len = values.len();
        let slices = Slices::new(len, world_size);
        let slice_len = slices.slice_len();
        let own = slices.of(rank);
        provide(&mut self.values, len);
        provide(&mut self.rows, world_size * slice_len);
        provide(&mut self.block, world_size * BLOCK);
        let rounded = &mut self.values[..len];
        let rows = &mut self.rows[..world_size * slice_len];
        rounded.convert_from_f32_slice(values);

        scatter(transport, rounded, rows, slices)?;
        for begin in (0..own.len()).step_by(BLOCK) {
            let end = (begin + BLOCK).min(own.len());
            let own = &mut rounded[own.clone()][begin..end];
            for (peer, block) in self.block.chunks_mut(BLOCK).take(world_size).enumerate() {
                let block = &mut block[..end - begin];
                match peer == rank {
                    true => own.convert_to_f32_slice(block),
                    false => rows[peer * slice_len..][begin..end].convert_to_f32_slice(block),
                }
            }
            add_rows_pairwise(&mut self.block, world_size, BLOCK, 0..end - begin);
            own.convert_from_f32_slice(&self.block[..end - begin]);
        }
        gather(transport, rounded, slices)?;
        rounded.convert_to_f32_slice(values);
        Ok(())
    }
}

fn provide<T: Copy + Default>(memory: &mut Vec<T>, len: usize) {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_process::{on_each_rank, wild_values};

    fn rounded_tree_sum(values: &[f32]) -> f32 {
        let mut sums: Vec<f32> = values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
        while sums.len() > 1 {
            sums = sums.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
        }
        bf16::from_f32(sums[0]).to_f32()
    }

    fn reduce_in_pieces<H: Element>(world_size: usize, len: usize, cuts: &'static [usize]) -> Vec<Vec<u32>>
    where
        [H]: HalfFloatSliceExt,
    {
        on_each_rank(world_size, move |transport| {
            let mut values = wild_values(len, transport.rank() as u64);
            let mut reduction = CompressedReduction::<H>::default();
            let mut rest = &mut values[..];
            for &cut in cuts {
                let (piece, remaining) = rest.split_at_mut(cut);
                reduction.all_reduce(transport, piece).unwrap();
                rest = remaining;
            }
            reduction.all_reduce(transport, rest).unwrap();
            values.iter().map(|value| value.to_bits()).collect()
        })
    }

    #[test]
    fn sums_are_the_rounded_sums_of_rounded_values_on_every_rank() {
        for world_size in [2, 3, 4, 7] {
            for len in [1, 15, 16, 17, 100, 5000] {
                let inputs: Vec<_> = (0..world_size).map(|rank| wild_values(len, rank as u64)).collect();
                let expected: Vec<u32> = (0..len)
                    .map(|index| {
                        let values: Vec<f32> = inputs.iter().map(|values| values[index]).collect();
                        rounded_tree_sum(&values).to_bits()
                    })
                    .collect();
                for (rank, result) in reduce_in_pieces::<bf16>(world_size, len, &[]).iter().enumerate() {
                    assert_eq!(*result, expected, "rank {rank} of {world_size}, {len} values");
                }
            }
        }
    }

    #[test]
    fn where_the_data_is_cut_changes_no_bit() {
        for cuts in [&[1][..], &[1500], &[7, 0, 1000, 13]] {
            assert_eq!(reduce_in_pieces::<bf16>(5, 3000, cuts), reduce_in_pieces::<bf16>(5, 3000, &[]));
            assert_eq!(reduce_in_pieces::<f16>(5, 3000, cuts), reduce_in_pieces::<f16>(5, 3000, &[]));
        }
    }

    #[test]
    fn infinities_and_nan_arrive() {
        let sums = on_each_rank(2, |transport| {
            let mut values = [f32::INFINITY, f32::NAN, 70_000.0, 1.0];
            CompressedReduction::<f16>::default().all_reduce(transport, &mut values).unwrap();
            values.map(|value| value.to_string())
        });
        assert!(sums.iter().all(|values| values == &["inf", "NaN", "inf", "2"]), "{sums:?}");
    }
}
