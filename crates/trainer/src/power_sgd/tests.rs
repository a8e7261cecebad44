//! PowerSGD on two ranks, here threads, against an oracle in Python; and what must hold whatever the gradients are.

use std::path::Path;
use std::process::Command;
use std::sync::{Barrier, Mutex};

use end_to_end::python_or_skip;
use safetensors::tensor::{Dtype, TensorView};

use super::*;

const RANKS: usize = 2;
const ROWS: usize = 12;
const COLUMNS: usize = 45;
const RANK: usize = 2;
const PLAIN: usize = 7;
const STEPS: usize = 6;

/// Gradient of a rank in a step, as if unscaled: a few strong directions that turn slowly, and noise.
fn gradient(step: usize, rank: usize) -> Vec<f32> {
    let wave = |x: f64| (x + 0.3 * step as f64 + rank as f64).sin();
    (0..ROWS * COLUMNS)
        .map(|index| {
            let (row, column) = ((index / COLUMNS) as f64, (index % COLUMNS) as f64);
            let strong = wave(0.9 * row) * wave(0.4 * column) + 0.5 * wave(2.1 * row) * wave(1.7 * column);
            (strong + 0.1 * wave(37.7 * (index as f64))) as f32
        })
        .collect()
}

fn rank_of(world_size: usize) -> PowerSgd {
    let mut parts = Parts::default();
    parts.add(0..ROWS * COLUMNS, &[ROWS as i64, 5, 3, 3], RANK, 11, "group0.conv.weight");
    parts.add(ROWS * COLUMNS..ROWS * COLUMNS + PLAIN, &[PLAIN as i64], RANK, 11, "bn.weight");
    PowerSgd { world_size, buckets: vec![parts], message: Vec::new() }
}

/// Results of a rank's steps, its state afterwards, and the lengths of what it summed.
type Run = (Vec<Vec<f32>>, PowerSgd, Vec<usize>);

/// What each of `steps` gives on each rank. `gradients` are of a step and a rank; they are scaled here.
fn run(steps: usize, gradients: impl Fn(usize, usize) -> Vec<f32> + Sync) -> Vec<Run> {
    let (barrier, sums) = (Barrier::new(RANKS), Mutex::new(vec![Vec::new(); RANKS]));
    let (barrier, sums, gradients) = (&barrier, &sums, &gradients);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|rank| {
                scope.spawn(move || {
                    let mut power_sgd = rank_of(RANKS);
                    let mut lens = Vec::new();
                    let mut sum = |values: &mut [f32]| {
                        lens.push(values.len());
                        sums.lock().unwrap()[rank] = values.to_vec();
                        barrier.wait();
                        let both = sums.lock().unwrap().clone();
                        barrier.wait();
                        for (index, value) in values.iter_mut().enumerate() {
                            *value = both[0][index] + both[1][index];
                        }
                        Ok(())
                    };
                    let step = |step: usize| {
                        let mut values: Vec<f32> =
                            gradients(step, rank).iter().map(|value| value / RANKS as f32).collect();
                        values.extend([(1 + rank) as f32; PLAIN]);
                        power_sgd.all_reduce(0, &mut values, &mut sum).unwrap();
                        values
                    };
                    let results: Vec<Vec<f32>> = (0..steps).map(step).collect();
                    (results, power_sgd, lens)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|value| value.to_bits()).collect()
}

#[test]
fn means_over_several_steps_are_those_of_the_papers_algorithm() {
    if !python_or_skip() {
        return;
    }
    let ranks = run(STEPS, gradient);
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let gradients: Vec<f32> =
        (0..STEPS).flat_map(|step| (0..RANKS).flat_map(move |rank| gradient(step, rank))).collect();
    let means: Vec<f32> = ranks[0].0.iter().flat_map(|values| values[..ROWS * COLUMNS].to_vec()).collect();
    let q = rank_of(1).buckets[0].matrices[0].right.clone();
    let tensors = [
        ("gradients", vec![STEPS, RANKS, ROWS, COLUMNS], bytes(&gradients)),
        ("means", vec![STEPS, ROWS, COLUMNS], bytes(&means)),
        ("q", vec![RANK, COLUMNS], bytes(&q)),
    ];
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (*name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/power_sgd/oracle.py");
    let outcome = Command::new("python3").arg(script).arg(&file).output().unwrap();
    let text = String::from_utf8(outcome.stdout).unwrap();
    let worst: f64 = text.trim().parse().unwrap_or_else(|_| {
        panic!("the oracle said {text:?} and {}", String::from_utf8_lossy(&outcome.stderr))
    });
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn ranks_have_the_same_bits_and_repetitions_too_and_vectors_are_exact() {
    let (once, again) = (run(STEPS, gradient), run(STEPS, gradient));
    assert_eq!(bits(&once[0].0), bits(&once[1].0));
    assert_eq!(bits(&once[0].0), bits(&again[0].0));
    assert!(once[0].0.iter().all(|values| values[ROWS * COLUMNS..] == [3.0; PLAIN]));
    // Two sums a step: the left sides with the vectors, and the right sides.
    assert_eq!(once[0].2, [[RANK * ROWS + PLAIN, RANK * COLUMNS]; STEPS].concat());
}

#[test]
fn nothing_is_lost_but_postponed() {
    // What all ranks brought is what they were given and what they still remember, up to rounding.
    let ranks = run(STEPS, gradient);
    for index in 0..ROWS * COLUMNS {
        let brought: f64 = (0..STEPS)
            .flat_map(|step| {
                (0..RANKS).map(move |rank| f64::from(gradient(step, rank)[index]) / RANKS as f64)
            })
            .sum();
        let given: f64 = ranks[0].0.iter().map(|values| f64::from(values[index])).sum();
        let remembered: f64 = ranks
            .iter()
            .map(|(_, power_sgd, _)| f64::from(power_sgd.buckets[0].matrices[0].left_out[index]))
            .sum();
        assert!((brought - given - remembered).abs() < 1e-5, "{brought} {given} {remembered}");
    }
}

#[test]
fn a_constant_gradient_is_given_in_full_after_a_few_steps() {
    let steps = 40;
    let ranks = run(steps, |_, rank| gradient(0, rank));
    let mean = |index: usize| (gradient(0, 0)[index] + gradient(0, 1)[index]) / 2.0;
    let (mut off, mut size) = (0.0, 0.0);
    for index in 0..ROWS * COLUMNS {
        let given: f32 = ranks[0].0.iter().map(|values| values[index]).sum::<f32>() / steps as f32;
        off += (given - mean(index)).powi(2);
        size += mean(index).powi(2);
    }
    assert!(off < 0.01 * size, "{}", off / size);
}

#[test]
fn a_layer_without_gradient_stays_without_and_comes_back() {
    let ranks =
        run(STEPS, |step, rank| if step < 3 { vec![0.0; ROWS * COLUMNS] } else { gradient(step, rank) });
    for (step, values) in ranks[0].0.iter().enumerate() {
        let size: f32 = values[..ROWS * COLUMNS].iter().map(|value| value * value).sum();
        assert!(size.is_finite());
        assert_eq!(size > 0.0, step >= 3, "step {step}: {size}");
    }
}

#[test]
fn what_would_not_become_half_as_large_travels_as_it_is() {
    for (tensor, rank, expected) in [
        (&[16, 16, 3, 3][..], 2, Some((16, 144, 2))),
        (&[16, 16, 3, 3], 7, Some((16, 144, 7))),
        (&[16, 16, 3, 3], 8, None),
        (&[10, 64], 2, Some((10, 64, 2))),
        (&[2, 1000], 2, None),
        (&[16, 3, 3, 3], 2, Some((16, 27, 2))),
        (&[64], 1, None),
    ] {
        let found = Shape::of(tensor, rank).map(|shape| (shape.rows, shape.columns, shape.rank));
        assert_eq!(found, expected, "{tensor:?}, rank {rank}");
    }
    assert_eq!(compressed_len(&[16, 16, 3, 3], 2), 2 * 160);
    assert_eq!(compressed_len(&[64], 2), 64);
}
