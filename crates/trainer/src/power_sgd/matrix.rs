//! Products of a matrix with few vectors, on plain numbers. In a fixed order and on one thread, since all ranks must
//! come to the same bits from the same numbers, whatever their processors are.
//!
//! A matrix lies row by row; vectors lie one after the other.

/// Sums that are formed side by side, so that the compiler uses vectors.
const LANES: usize = 16;

/// The vector's length within the matrix's columns that is left after projection, as a share of what it was, below
/// which only rounding is left of it.
const INDEPENDENT: f64 = 1e-5;

fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in left.zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0] + rest
}

fn add_scaled(into: &mut [f32], factor: f32, values: &[f32]) {
    for (into, value) in into.iter_mut().zip(values) {
        *into += factor * value;
    }
}

/// `[rank, rows]` = `vectors` `[rank, columns]` times the transpose of `matrix` `[rows, columns]`.
pub(super) fn times(matrix: &[f32], columns: usize, vectors: &[f32], products: &mut [f32]) {
    let rows = matrix.len() / columns;
    for (index, row) in matrix.chunks_exact(columns).enumerate() {
        for (vector, product) in vectors.chunks_exact(columns).zip(products.chunks_exact_mut(rows)) {
            product[index] = dot(row, vector);
        }
    }
}

/// `[rank, columns]` = `vectors` `[rank, rows]` times `matrix` `[rows, columns]`.
pub(super) fn transposed_times(matrix: &[f32], columns: usize, vectors: &[f32], products: &mut [f32]) {
    let rows = matrix.len() / columns;
    products.fill(0.0);
    for (index, row) in matrix.chunks_exact(columns).enumerate() {
        for (vector, product) in vectors.chunks_exact(rows).zip(products.chunks_exact_mut(columns)) {
            add_scaled(product, vector[index], row);
        }
    }
}

/// Row `index` of the sum over the vectors' outer products: `left` `[rank, rows]`, `right` `[rank, columns]`.
pub(super) fn outer_row(left: &[f32], right: &[f32], rows: usize, index: usize, row: &mut [f32]) {
    row.fill(0.0);
    for (left, right) in left.chunks_exact(rows).zip(right.chunks_exact(row.len())) {
        add_scaled(row, left[index], right);
    }
}

fn precise_dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
}

/// Gives the vectors, `len` long each, length 1 and right angles (Gram-Schmidt). One that depends on those before it
/// becomes 0.
pub(super) fn orthonormalize(vectors: &mut [f32], len: usize) {
    for current in 0..vectors.len() / len {
        let (before, rest) = vectors.split_at_mut(current * len);
        let vector = &mut rest[..len];
        let length = precise_dot(vector, vector).sqrt();
        // Twice: what rounding leaves of the others after once is removed after twice.
        for _ in 0..2 {
            for other in before.chunks_exact(len) {
                let share = precise_dot(vector, other);
                for (value, other) in vector.iter_mut().zip(other) {
                    *value = (f64::from(*value) - share * f64::from(*other)) as f32;
                }
            }
        }
        let left = precise_dot(vector, vector).sqrt();
        if left <= INDEPENDENT * length {
            vector.fill(0.0);
            continue;
        }
        for value in vector {
            *value = (f64::from(*value) / left) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1.
    fn waves(len: usize, phase: f64) -> Vec<f32> {
        (0..len).map(|index| (0.7548 * index as f64 + phase).sin() as f32).collect()
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (rows, columns, rank) in [(1, 1, 1), (3, 16, 2), (5, 37, 3), (20, 144, 4)] {
            let (matrix, right, left) =
                (waves(rows * columns, 0.1), waves(rank * columns, 1.0), waves(rank * rows, 2.0));
            let close = |found: f32, terms: &mut dyn Iterator<Item = f64>| {
                let expected: f64 = terms.sum();
                assert!(
                    (f64::from(found) - expected).abs() < 1e-4,
                    "{found} for {expected}, {rows} x {columns}"
                );
            };
            let mut products = vec![9.0; rank * rows];
            times(&matrix, columns, &right, &mut products);
            for k in 0..rank {
                for i in 0..rows {
                    let term =
                        |j: usize| f64::from(matrix[i * columns + j]) * f64::from(right[k * columns + j]);
                    close(products[k * rows + i], &mut (0..columns).map(term));
                }
            }
            let mut products = vec![9.0; rank * columns];
            transposed_times(&matrix, columns, &left, &mut products);
            for k in 0..rank {
                for j in 0..columns {
                    let term = |i: usize| f64::from(matrix[i * columns + j]) * f64::from(left[k * rows + i]);
                    close(products[k * columns + j], &mut (0..rows).map(term));
                }
            }
            let mut row = vec![9.0; columns];
            for i in 0..rows {
                outer_row(&left, &right, rows, i, &mut row);
                for j in 0..columns {
                    let term = |k: usize| f64::from(left[k * rows + i]) * f64::from(right[k * columns + j]);
                    close(row[j], &mut (0..rank).map(term));
                }
            }
        }
    }

    #[test]
    fn vectors_become_orthonormal_and_dependent_ones_zero() {
        let len = 50;
        let sum: Vec<f32> =
            waves(len, 0.0).iter().zip(waves(len, 1.3)).map(|(a, b)| 1e3 * (a + 2.0 * b)).collect();
        let nearly: Vec<f32> =
            waves(len, 0.0).iter().zip(waves(len, 0.2)).map(|(a, b)| a + 1e-3 * b * b).collect();
        let mut vectors = [waves(len, 0.0), waves(len, 1.3), sum, vec![0.0; len], nearly].concat();
        orthonormalize(&mut vectors, len);
        let vectors: Vec<&[f32]> = vectors.chunks(len).collect();
        for (index, vector) in vectors.iter().enumerate() {
            for other in &vectors[..index] {
                assert!(precise_dot(vector, other).abs() < 1e-6);
            }
            let expected = if matches!(index, 2 | 3) { 0.0 } else { 1.0 };
            assert!((precise_dot(vector, vector) - expected).abs() < 1e-6, "vector {index}");
        }
    }
}
