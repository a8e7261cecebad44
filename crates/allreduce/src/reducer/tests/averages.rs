//! The bits of averages: what may change them, and what must not.

use std::ops::Range;

use super::*;

/// The averages of two steps as bits, by rank. Micro batch j of step s holds `wild_values(LEN, 1000 s + j)`.
fn averages(
    world_size: usize,
    micro_batches: usize,
    cap: usize,
    overlap: bool,
    accumulation: Accumulation,
) -> Vec<Vec<u32>> {
    on_each_comm_thread(world_size, |comm| {
        let gradients = Region::from_vec(vec![0.0; LEN]);
        let scale = 1.0 / micro_batches as f32;
        let reducer = reducer(comm.clone(), &gradients, cap, overlap, accumulation, scale);
        let local = micro_batches / world_size;
        let first = comm.topology().rank * local;
        // As backward does: adds to the buffer.
        let backward = |seed: usize, range: Range<usize>| {
            let values = wild_values(LEN, seed as u64);
            let region = gradients.slice(range.clone());
            for (gradient, value) in region.lock().iter_mut().zip(&values[range]) {
                *gradient += value;
            }
        };
        let mut bits = Vec::new();
        for step in 0..2 {
            gradients.lock().fill(0.0);
            reducer.begin_step(local);
            for micro_batch in first..first + local - 1 {
                backward(1000 * step + micro_batch, 0..LEN);
                reducer.end_micro_batch();
            }
            let last = 1000 * step + first + local - 1;
            backward(last, 192..LEN);
            reducer.begin_last_backward();
            reducer.seal();
            for segment in 0..3 {
                backward(last, 64 * segment..64 * segment + 64);
                reducer.mark_ready(segment);
            }
            finish(&reducer).unwrap();
            bits.extend(gradients.to_vec().iter().map(|value| value.to_bits()));
        }
        bits
    })
}

#[test]
fn rank_count_buckets_and_overlap_change_no_bit() {
    // Micro batches, and the rank counts for which a rank has a power of two of them, or all.
    for (micro_batches, world_sizes) in [
        (1, &[1][..]),
        (2, &[1, 2]),
        (4, &[1, 2, 4]),
        (8, &[1, 2, 4, 8]),
        (12, &[1, 3, 6, 12]),
        (6, &[1, 3, 6]),
        (5, &[1, 5]),
    ] {
        let alone = averages(1, micro_batches, usize::MAX, true, Accumulation::Tree).remove(0);
        for &world_size in world_sizes {
            for (cap, overlap) in [(0, true), (300, false), (usize::MAX, true)] {
                for (rank, bits) in
                    averages(world_size, micro_batches, cap, overlap, Accumulation::Tree).iter().enumerate()
                {
                    assert!(
                        *bits == alone,
                        "{micro_batches} micro batches, rank {rank} of {world_size}, cap {cap}, overlap {overlap}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_order_of_summation_matters_for_these_values() {
    let tree = averages(1, 8, usize::MAX, true, Accumulation::Tree);
    let in_place = averages(1, 8, usize::MAX, true, Accumulation::InPlace);
    assert_ne!(tree, in_place);
}

#[test]
fn any_division_repeats_its_bits_on_every_rank() {
    for (world_size, micro_batches) in [(2, 6), (3, 9), (5, 5), (4, 12)] {
        for accumulation in [Accumulation::Tree, Accumulation::InPlace] {
            let once = averages(world_size, micro_batches, 0, true, accumulation);
            assert!(once.iter().all(|bits| *bits == once[0]));
            assert_eq!(averages(world_size, micro_batches, 300, false, accumulation), once);
        }
    }
}

#[test]
fn averages_are_close_to_the_exact_ones() {
    for accumulation in [Accumulation::Tree, Accumulation::InPlace] {
        let (world_size, micro_batches) = (3, 6);
        let bits = averages(world_size, micro_batches, 300, true, accumulation).remove(1);
        for (index, bits) in bits[..LEN].iter().enumerate() {
            let terms = (0..micro_batches).map(|seed| f64::from(wild_values(LEN, seed as u64)[index]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let error = (f64::from(f32::from_bits(*bits)) - sum / micro_batches as f64).abs();
            assert!(error <= 1e-6 * size, "element {index} is off by {error}");
        }
    }
}
