//! PowerSGD: gradients travel as products of thin matrices (Vogels, Karimireddy, Jaggi 2019, arXiv 1905.13727,
//! algorithms 1 and 2; PyTorch's `powerSGD_hook.py`).
//!
//! With M_w the gradient of a layer on rank w of W, a matrix of one row an output, and E_w what this rank left out before:
//! ```text
//! M_w += E_w
//! P    = sum of M_w Q          all-reduce; Q is the last step's
//! P    = orthonormal basis of P's columns
//! Q    = sum of M_w^T P        all-reduce
//! mean = P Q^T                 instead of the sum of M_w
//! E_w  = M_w - mean / W
//! ```
//! The gradients come scaled, so that their sum is the mean. Matrices that would not become half as large, and vectors, are
//! summed as they are, together with the P. Q begins as a function of the seed and the layer's name, and a direction of it
//! that has died (a layer without gradient) begins so again.
//!
//! P, Q and mean have the same bits on every rank; E_w is a rank's own, and is not saved.

mod matrix;
#[cfg(test)]
mod tests;

use std::ops::Range;

use allreduce::{Bucket, CommError, Sum};
use model::{Network, normal_values};

use crate::flat::FlatLayout;
use matrix::{orthonormalize, outer_row, times, transposed_times};

/// Tells this use of the seed from every other one.
const DOMAIN: [u8; 8] = *b"powersgd";

/// The gradients of one rank, bucket by bucket.
pub(crate) struct PowerSgd {
    world_size: usize,
    buckets: Vec<Parts>,
    /// What travels; reused.
    message: Vec<f32>,
}

/// A bucket.
#[derive(Default)]
struct Parts {
    matrices: Vec<Matrix>,
    /// Elements of it that travel as they are.
    plain: Vec<Range<usize>>,
    /// Numbers of all P, and of all Q.
    lefts_len: usize,
    rights_len: usize,
}

/// The gradient of a layer.
struct Matrix {
    /// Elements of the bucket.
    range: Range<usize>,
    shape: Shape,
    /// Where its P stands among all P of the bucket, and its Q among all Q.
    left_place: Range<usize>,
    right_place: Range<usize>,
    seed: u64,
    name: String,
    /// Q, `[rank, columns]`.
    right: Vec<f32>,
    /// E_w.
    left_out: Vec<f32>,
}

/// How a tensor is looked at as a matrix that is to be approximated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    columns: usize,
    rank: usize,
}

impl Shape {
    /// `None` where the two thin matrices would be more than half as large as the tensor. In memory the first side of
    /// a tensor is always the outermost.
    fn of(tensor: &[i64], rank: usize) -> Option<Shape> {
        let (&rows, others) = tensor.split_first()?;
        let (rows, columns) = (rows as usize, others.iter().product::<i64>() as usize);
        let rank = rank.min(rows).min(columns);
        let shape = Shape { rows, columns, rank };
        (!others.is_empty() && 2 * shape.compressed_len() < rows * columns).then_some(shape)
    }

    fn compressed_len(self) -> usize {
        self.rank * (self.rows + self.columns)
    }
}

/// Numbers that travel for a tensor of this shape.
pub(crate) fn compressed_len(tensor: &[i64], rank: usize) -> usize {
    let whole = || tensor.iter().product::<i64>() as usize;
    Shape::of(tensor, rank).map_or_else(whole, Shape::compressed_len)
}

impl PowerSgd {
    /// For the segments of `layout`, in `buckets`, as matrices of rank `rank` at most.
    pub(crate) fn new(
        network: &Network,
        layout: &FlatLayout,
        buckets: &[Bucket],
        rank: usize,
        seed: u64,
        world_size: usize,
    ) -> Self {
        let parts = |bucket: &Bucket| {
            let mut parts = Parts::default();
            for placed in &layout.segments[bucket.segments.clone()] {
                let parameter = &network.parameters()[placed.parameter];
                let begin = placed.offset - bucket.range.start;
                parts.add(begin..begin + placed.len, &parameter.shape, rank, seed, &parameter.name);
            }
            parts
        };
        PowerSgd { world_size, buckets: buckets.iter().map(parts).collect(), message: Vec::new() }
    }

    /// Replaces this rank's gradients of `bucket` by the approximate sum over all ranks.
    pub(crate) fn all_reduce(
        &mut self,
        bucket: usize,
        values: &mut [f32],
        sum: &mut Sum<'_>,
    ) -> Result<(), CommError> {
        let PowerSgd { world_size, buckets, message } = self;
        let Parts { matrices, plain, lefts_len, rights_len } = &mut buckets[bucket];
        message.clear();
        message.resize(*lefts_len, 0.0);
        for matrix in &mut *matrices {
            matrix.begin(&mut values[matrix.range.clone()], message);
        }
        plain.iter().for_each(|range| message.extend_from_slice(&values[range.clone()]));
        if !message.is_empty() {
            sum(message)?;
        }
        let mut rest = &message[*lefts_len..];
        for range in &*plain {
            let (summed, others) = rest.split_at(range.len());
            values[range.clone()].copy_from_slice(summed);
            rest = others;
        }
        if matrices.is_empty() {
            return Ok(());
        }
        message.resize(*lefts_len + *rights_len, 0.0);
        let (lefts, rights) = message.split_at_mut(*lefts_len);
        for Matrix { range, shape, left_place, right_place, .. } in &*matrices {
            let left = &mut lefts[left_place.clone()];
            orthonormalize(left, shape.rows);
            transposed_times(&values[range.clone()], shape.columns, left, &mut rights[right_place.clone()]);
        }
        sum(rights)?;
        for matrix in matrices {
            matrix.end(&mut values[matrix.range.clone()], lefts, rights, *world_size);
        }
        Ok(())
    }
}

impl Parts {
    fn add(&mut self, range: Range<usize>, tensor: &[i64], rank: usize, seed: u64, name: &str) {
        let Some(shape) = Shape::of(tensor, rank) else { return self.plain.push(range) };
        let Shape { rows, columns, rank } = shape;
        let (left, right) = (self.lefts_len, self.rights_len);
        self.lefts_len += rank * rows;
        self.rights_len += rank * columns;
        self.matrices.push(Matrix {
            left_out: vec![0.0; range.len()],
            range,
            shape,
            left_place: left..self.lefts_len,
            right_place: right..self.rights_len,
            seed,
            name: name.to_owned(),
            right: normal_values(rank * columns, seed, name, DOMAIN),
        });
    }
}

impl Matrix {
    /// Adds what was left out, and writes the left side.
    fn begin(&mut self, values: &mut [f32], lefts: &mut [f32]) {
        for (value, left_out) in values.iter_mut().zip(&self.left_out) {
            *value += left_out;
        }
        self.revive();
        times(values, self.shape.columns, &self.right, &mut lefts[self.left_place.clone()]);
    }

    /// Nothing would ever come of a direction that is zero.
    fn revive(&mut self) {
        let columns = self.shape.columns;
        let is_zero = |vector: &[f32]| vector.iter().all(|&value| value == 0.0);
        if !self.right.chunks_exact(columns).any(is_zero) {
            return;
        }
        let initial = normal_values(self.right.len(), self.seed, &self.name, DOMAIN);
        for (vector, initial) in self.right.chunks_exact_mut(columns).zip(initial.chunks_exact(columns)) {
            if is_zero(vector) {
                vector.copy_from_slice(initial);
            }
        }
    }

    /// Replaces the values by the product of both sides, and keeps what it lacks of this rank's part.
    fn end(&mut self, values: &mut [f32], lefts: &[f32], rights: &[f32], world_size: usize) {
        let Shape { rows, columns, .. } = self.shape;
        let (left, right) = (&lefts[self.left_place.clone()], &rights[self.right_place.clone()]);
        let share = 1.0 / world_size as f32;
        let mut product = vec![0.0; columns];
        let all_left_out = self.left_out.chunks_exact_mut(columns);
        for (index, (row, left_out)) in values.chunks_exact_mut(columns).zip(all_left_out).enumerate() {
            outer_row(left, right, rows, index, &mut product);
            for ((value, left_out), product) in row.iter_mut().zip(left_out).zip(&product) {
                *left_out = *value - share * product;
                *value = *product;
            }
        }
        self.right.copy_from_slice(right);
    }
}
