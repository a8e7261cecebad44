//! Batch norm and ReLU that give their output up: the same bits as plain autograd. What that saves is tested in
//! `memory.rs`.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::{values, waves};
use tch::{Device, Kind, Tensor};
use torch_ext::layout::channels_last;
use torch_ext::recompute::{NormArguments, norm_relu};

const CHANNELS: i64 = 32;

/// Leaves: input, gain, bias, two convolutions.
fn leaves() -> [Tensor; 5] {
    [
        channels_last(&waves(&[8, CHANNELS, 16, 16], 0.1)).unwrap(),
        waves(&[CHANNELS], 1.0) + 1.5,
        waves(&[CHANNELS], 2.0),
        channels_last(&waves(&[CHANNELS, CHANNELS, 3, 3], 3.0)).unwrap(),
        waves(&[CHANNELS, CHANNELS, 1, 1], 4.0),
    ]
    .map(|tensor| tensor.detach().set_requires_grad(true))
}

fn statistics() -> [Tensor; 2] {
    let float = (Kind::Float, Device::Cpu);
    [Tensor::full([CHANNELS], 0.1, float), Tensor::full([CHANNELS], 2.0, float)]
}

/// Loss of two convolutions that share a batch norm with ReLU.
fn loss(
    leaves: &[Tensor; 5],
    [mean, variance]: &[Tensor; 2],
    by_batch: bool,
    dropout: Option<(f64, u64)>,
    recompute: bool,
) -> Tensor {
    let [input, gain, bias, first, second] = leaves;
    let conv = |input: &Tensor, weight: &Tensor, padding: i64| {
        input.conv2d(weight, None::<&Tensor>, 1, padding, 1, 1)
    };
    let (outputs, activated) = if recompute {
        let statistics = Some((mean, variance));
        let norm = NormArguments { gain, bias, statistics, by_batch, momentum: 0.5, epsilon: 1e-5 };
        let (activated, recomputed) = norm_relu(input, norm, dropout).unwrap();
        let outputs = [conv(&activated, first, 1), conv(&activated, second, 0)];
        let recomputed = recomputed.unwrap();
        outputs.iter().for_each(|output| recomputed.feeds(output).unwrap());
        (outputs, activated)
    } else {
        let normalized =
            input.batch_norm(Some(gain), Some(bias), Some(mean), Some(variance), by_batch, 0.5, 1e-5, true);
        let mut activated = normalized.shallow_clone().relu_();
        if let Some((probability, key)) = dropout {
            activated = torch_ext::random::dropout(&activated, probability, key).unwrap();
        }
        ([conv(&activated, first, 1), conv(&activated, second, 0)], activated)
    };
    drop(activated);
    outputs.iter().map(|output| output.square().mean(Kind::Float)).sum()
}

#[test]
fn values_statistics_and_gradients_have_the_bits_of_plain_autograd() {
    for by_batch in [true, false] {
        for dropout in [None, Some((0.3, 5))] {
            let [plain, other] = [false, true].map(|recompute| {
                let (leaves, statistics) = (leaves(), statistics());
                let loss = loss(&leaves, &statistics, by_batch, dropout, recompute);
                let before_backward = statistics.each_ref().map(values);
                loss.backward();
                assert_eq!(
                    statistics.each_ref().map(values),
                    before_backward,
                    "written by the forward pass only"
                );
                (values(&loss.detach()), before_backward, leaves.map(|leaf| values(&leaf.grad())))
            });
            assert!(plain == other, "by_batch {by_batch}, dropout {dropout:?}");
        }
    }
}

#[test]
fn a_graph_that_is_kept_can_be_run_again() {
    let leaves = leaves();
    let loss = loss(&leaves, &statistics(), true, Some((0.3, 5)), true);
    let gradients = || {
        Tensor::run_backward(&[&loss], &leaves.each_ref(), true, false).iter().map(values).collect::<Vec<_>>()
    };
    assert!(gradients() == gradients());
}

#[test]
fn without_a_graph_there_is_nothing_to_recompute() {
    let [input, gain, bias, ..] = &leaves();
    let norm = NormArguments { gain, bias, statistics: None, by_batch: true, momentum: 0.0, epsilon: 1e-5 };
    let _no_grad = tch::no_grad_guard();
    assert!(norm_relu(input, norm, None).unwrap().1.is_none());
}

#[test]
fn an_input_that_changes_before_backward_is_an_error() {
    let leaves = leaves();
    let loss = loss(&leaves, &statistics(), true, None, true);
    let _ = tch::no_grad(|| leaves[0].shallow_clone().fill_(1.0));
    let message = loss.f_backward().unwrap_err().to_string();
    assert!(message.contains("changed") || message.contains("inplace"), "{message}");
}

#[test]
fn impossible_arguments_are_errors() {
    let [input, gain, bias, first, _] = &leaves();
    let norm =
        |gain| NormArguments { gain, bias, statistics: None, by_batch: true, momentum: 0.0, epsilon: 1e-5 };
    assert!(norm_relu(input, norm(gain), Some((1.0, 0))).unwrap_err().to_string().contains("outside 0 to 1"));
    assert!(norm_relu(input, norm(first), None).is_err(), "a gain of another shape");
}
