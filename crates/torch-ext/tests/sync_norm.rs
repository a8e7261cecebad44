//! Batch norm over the images of two ranks, here threads, against libtorch's own over all images at once.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::{Arc, Barrier, Mutex};

use common::{relative_error, waves};
use tch::{Device, Kind, Tensor};
use torch_ext::layout::{channels_last, is_channels_last};
use torch_ext::sync_norm::{Average, Ranks, batch_norm};

const CHANNELS: i64 = 24;
const RANKS: usize = 2;
const EPSILON: f64 = 1e-5;

/// Averages over threads that meet in it.
fn averages() -> Average {
    let (barrier, sum) = (Barrier::new(RANKS), Mutex::new(Vec::<f32>::new()));
    Arc::new(move |values| {
        barrier.wait();
        {
            let mut sum = sum.lock().unwrap();
            sum.resize(values.len(), 0.0);
            sum.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
        }
        barrier.wait();
        values.iter_mut().zip(&*sum.lock().unwrap()).for_each(|(value, sum)| *value = sum / RANKS as f32);
        if barrier.wait().is_leader() {
            sum.lock().unwrap().clear();
        }
        barrier.wait();
        Ok(())
    })
}

/// Images far from mean 0, so that sums of squares would lose digits.
fn images(kind: Kind) -> Tensor {
    let images = waves(&[8, CHANNELS, 6, 5], 0.4) + waves(&[CHANNELS, 1, 1], 2.0) * 30.0;
    channels_last(&images.to_kind(kind)).unwrap()
}

/// The gradient that comes from above.
fn gradient(kind: Kind) -> Tensor {
    channels_last(&waves(&[8, CHANNELS, 6, 5], 3.3).to_kind(kind)).unwrap()
}

fn parameters() -> [Tensor; 2] {
    [waves(&[CHANNELS], 1.0) + 1.5, waves(&[CHANNELS], 2.0)].map(|tensor| tensor.set_requires_grad(true))
}

fn statistics() -> [Tensor; 2] {
    [0; 2].map(|_| Tensor::full([CHANNELS], 1e9, (Kind::Float, Device::Cpu)))
}

/// What one rank, or one process with all images, ends with.
struct Found {
    output: Tensor,
    of_input: Tensor,
    of_gain: Tensor,
    of_bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

/// Forward and backward of the images `begin..begin + len`; libtorch's own without `ranks`.
fn run(kind: Kind, begin: i64, len: i64, ranks: Option<&Ranks>) -> Found {
    let part = |tensor: Tensor| channels_last(&tensor.narrow(0, begin, len)).unwrap();
    let input = part(images(kind)).detach().set_requires_grad(true);
    let ([gain, bias], [mean, variance]) = (parameters(), statistics());
    let output = match ranks {
        Some(ranks) => batch_norm(&input, &gain, &bias, (&mean, &variance), EPSILON, ranks).unwrap(),
        None => {
            input.batch_norm(Some(&gain), Some(&bias), Some(&mean), Some(&variance), true, 1.0, EPSILON, true)
        }
    };
    // As everywhere, a ReLU in place would follow.
    let output = output.shallow_clone().relu_();
    (&output * part(gradient(kind))).sum(Kind::Float).backward();
    let (of_input, of_gain, of_bias) = (input.grad(), gain.grad(), bias.grad());
    Found { output, of_input, of_gain, of_bias, mean, variance }
}

fn on_two_ranks(kind: Kind) -> Vec<Found> {
    let average = averages();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..RANKS)
            .map(|rank| {
                let ranks = Ranks { count: RANKS, average: Arc::clone(&average) };
                scope.spawn(move || run(kind, 4 * rank as i64, 4, Some(&ranks)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn two_ranks_compute_what_one_computes_with_all_images() {
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
        let whole = run(kind, 0, 8, None);
        let parts = on_two_ranks(kind);
        let both = |of: fn(&Found) -> &Tensor| Tensor::cat(&[of(&parts[0]), of(&parts[1])], 0);
        let sum = |of: fn(&Found) -> &Tensor| of(&parts[0]) + of(&parts[1]);
        for (name, found, expected) in [
            ("output", both(|found| &found.output), &whole.output),
            ("gradient of the input", both(|found| &found.of_input), &whole.of_input),
            ("gradient of the gain", sum(|found| &found.of_gain), &whole.of_gain),
            ("gradient of the bias", sum(|found| &found.of_bias), &whole.of_bias),
            ("mean", parts[0].mean.shallow_clone(), &whole.mean),
            ("variance", parts[1].variance.shallow_clone(), &whole.variance),
        ] {
            let error = relative_error(&found, expected);
            assert!(error < tolerance, "{name}, {kind:?}: off by {error}");
            assert_eq!(found.kind(), expected.kind(), "{name}");
        }
        assert!(parts[0].mean.equal(&parts[1].mean) && parts[0].variance.equal(&parts[1].variance));
        assert!(is_channels_last(&parts[0].output) && is_channels_last(&parts[0].of_input));
    }
}

#[test]
fn without_the_other_rank_the_result_would_be_another() {
    let (whole, alone) = (run(Kind::Float, 0, 8, None), run(Kind::Float, 0, 4, None));
    assert!(relative_error(&alone.output, &whole.output.narrow(0, 0, 4)) > 1e-3);
}

#[test]
fn a_failed_average_is_an_error_of_the_call_or_of_backward() {
    for fails_at in [0, 1, 2] {
        let calls = Mutex::new(0);
        let average: Average = Arc::new(move |_| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            if *calls > fails_at { Err("no rank is there".into()) } else { Ok(()) }
        });
        let ranks = Ranks { count: 1, average };
        let input = images(Kind::Float).set_requires_grad(true);
        let ([gain, bias], [mean, variance]) = (parameters(), statistics());
        let message = match batch_norm(&input, &gain, &bias, (&mean, &variance), EPSILON, &ranks) {
            Err(error) => error.to_string(),
            Ok(output) => output.sum(Kind::Float).f_backward().unwrap_err().to_string(),
        };
        assert!(message.contains("no rank is there"), "{fails_at}: {message}");
    }
}
