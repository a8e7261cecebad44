//! Dropout whose mask is a function of its key.
//!
//! Nothing else in this file draws from the process's generator, which one test watches.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::{values, waves};
use tch::{Device, Kind, Tensor};
use torch_ext::layout::{channels_last, is_channels_last};
use torch_ext::random::dropout;

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

/// 1 where an element was kept.
fn mask(input: &Tensor, key: u64) -> Vec<f32> {
    values(&dropout(input, 0.3, key).unwrap().not_equal(0.0).to_kind(Kind::Float))
}

#[test]
fn the_mask_is_a_function_of_the_key() {
    let input = channels_last(&ones(&[2, 8, 16, 16])).unwrap();
    let first = mask(&input, 1);
    for (name, other) in
        [("again", input.copy()), ("bf16", input.to_kind(Kind::BFloat16)), ("other values", &input * -7.0)]
    {
        assert!(mask(&other, 1) == first, "{name}");
    }
    for key in [0, 2, 3, 1 << 20, 1 << 31, u64::from(u32::MAX)] {
        let other = mask(&input, key);
        let agreeing = first.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / first.len() as f64;
        // Two independent masks agree in 0.7² + 0.3² = 58 %.
        assert!(
            (0.54..0.62).contains(&agreeing),
            "key {key} agrees with key 1 in {agreeing} of all elements"
        );
    }
}

#[test]
fn the_asked_share_is_dropped_and_the_rest_scaled() {
    const COUNT: i64 = 200_000;
    let input = waves(&[COUNT], 0.5);
    let nonzero = input.not_equal(0.0).to_kind(Kind::Float).sum(Kind::Double).double_value(&[]);
    assert_eq!(nonzero, COUNT as f64);
    for probability in [0.0, 0.1, 0.3, 0.5, 0.9] {
        let output = dropout(&input, probability, 42).unwrap();
        let kept = output.not_equal(0.0);
        let share = 1.0 - kept.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        let five_sigma = 5.0 * (probability * (1.0 - probability) / COUNT as f64).sqrt();
        assert!((share - probability).abs() <= five_sigma, "{share} instead of {probability}");
        let expected = &input / (1.0 - probability) * kept.to_kind(Kind::Float);
        assert!(output.allclose(&expected, 1e-6, 0.0, false), "{probability}");
    }
    assert!(dropout(&input, 0.0, 42).unwrap().equal(&input));
}

#[test]
fn elements_are_dropped_one_by_one_and_not_in_whole_channels() {
    let kept = dropout(&ones(&[4, 64, 16, 16]), 0.5, 3).unwrap().not_equal(0.0).to_kind(Kind::Float);
    let shares = kept.mean_dim([2i64, 3].as_slice(), false, Kind::Float);
    let (least, most) = (shares.min().double_value(&[]), shares.max().double_value(&[]));
    // 256 elements a channel: standard deviation 0.031.
    assert!(least > 0.5 - 0.2 && most < 0.5 + 0.2, "{least} {most}");
}

#[test]
fn kind_and_memory_order_stay() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let contiguous = waves(&[2, 3, 4, 5], 0.0).to_kind(kind);
        for input in [channels_last(&contiguous).unwrap(), contiguous] {
            let output = dropout(&input, 0.3, 1).unwrap();
            assert_eq!((output.kind(), output.stride()), (kind, input.stride()));
            assert_eq!(is_channels_last(&output), is_channels_last(&input));
        }
    }
}

#[test]
fn the_generator_of_the_process_is_neither_read_nor_moved() {
    let input = ones(&[1000]);
    let draw = || values(&Tensor::rand([16], (Kind::Float, Device::Cpu)));
    tch::manual_seed(1);
    let undisturbed = draw();
    let first = mask(&input, 5);
    tch::manual_seed(1);
    assert_eq!(mask(&input, 5), first, "another state of the generator");
    assert_eq!(draw(), undisturbed);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let contiguous = ones(&[8, 32, 32, 32]);
    for (order, input) in [("channels_last", channels_last(&contiguous).unwrap()), ("contiguous", contiguous)]
    {
        let [one, two, four] = [1, 2, 4].map(|threads| {
            tch::set_num_threads(threads);
            assert_eq!(torch_ext::runtime::threads(), threads as usize);
            mask(&input, 9)
        });
        assert!(one == two && one == four, "{order}");
    }
}

#[test]
fn the_gradient_passes_where_the_value_did() {
    let input = waves(&[1000], 0.5).set_requires_grad(true);
    let output = dropout(&input, 0.3, 11).unwrap();
    let upstream = waves(&[1000], 3.0);
    (&output * &upstream).sum(Kind::Float).backward();
    let kept = output.not_equal(0.0).to_kind(Kind::Float);
    assert!(input.grad().allclose(&(kept * upstream / 0.7), 1e-5, 1e-7, false));
}

#[test]
fn impossible_probabilities_are_refused() {
    for probability in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
        let message = dropout(&ones(&[4]), probability, 0).unwrap_err().to_string();
        assert!(message.contains(&probability.to_string()), "{message}");
    }
}
