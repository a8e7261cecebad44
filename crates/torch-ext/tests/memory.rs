//! Counting of tensors' memory, and with it what recomputed and checkpointed parts hold. One test, since the count
//! is the process's.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::waves;
use tch::{Device, Kind, Tensor};
use torch_ext::checkpoint::checkpoint;
use torch_ext::layout::channels_last;
use torch_ext::recompute::{NormArguments, norm_relu};
use torch_ext::{Error, memory};

const CHANNELS: i64 = 32;

/// Probability and key.
type Dropout = Option<(f64, u64)>;

/// The pre-activated convolution of `input`.
fn plain(input: &Tensor, [gain, bias, weight]: &[Tensor; 3], dropout: Dropout) -> Tensor {
    let none = None::<&Tensor>;
    let mut activated = input.batch_norm(Some(gain), Some(bias), none, none, true, 0.0, 1e-5, true).relu_();
    if let Some((probability, key)) = dropout {
        activated = torch_ext::random::dropout(&activated, probability, key).unwrap();
    }
    activated.conv2d(weight, none, 1, 1, 1, 1)
}

fn recomputed(input: &Tensor, [gain, bias, weight]: &[Tensor; 3], dropout: Dropout) -> Tensor {
    let norm = NormArguments { gain, bias, statistics: None, by_batch: true, momentum: 0.0, epsilon: 1e-5 };
    let (activated, recomputed) = norm_relu(input, norm, dropout).unwrap();
    let output = activated.conv2d(weight, None::<&Tensor>, 1, 1, 1, 1);
    recomputed.unwrap().feeds(&output).unwrap();
    output
}

fn checkpointed(input: &Tensor, parameters: &[Tensor; 3], dropout: Dropout) -> Tensor {
    let again = parameters.each_ref().map(Tensor::shallow_clone);
    checkpoint::<Error>(
        input,
        |input| Ok(plain(input, parameters, dropout)),
        move |input| Ok(plain(input, &again, dropout)),
    )
    .unwrap()
}

/// The part under test, its dropout, and how many tensors of its output's size it keeps.
type Case = (&'static str, Part, Dropout, u64);
type Part = fn(&Tensor, &[Tensor; 3], Dropout) -> Tensor;

#[test]
fn tensors_are_counted_and_what_is_given_up_is_not_held() {
    memory::count_host_memory().unwrap();
    memory::count_host_memory().unwrap();
    let before = memory::host_bytes();
    let _ = memory::take_host_peak_bytes();
    let tensor = Tensor::zeros([1000], (Kind::Float, Device::Cpu));
    assert_eq!(memory::host_bytes() - before, 4000);
    drop(tensor);
    assert_eq!(memory::host_bytes(), before);
    assert_eq!(memory::take_host_peak_bytes() - before, 4000);
    assert_eq!(memory::take_host_peak_bytes(), before, "the peak starts anew");

    let input = channels_last(&waves(&[8, CHANNELS, 16, 16], 0.1)).unwrap().set_requires_grad(true);
    let parameters = [
        waves(&[CHANNELS], 1.0) + 1.5,
        waves(&[CHANNELS], 2.0),
        channels_last(&waves(&[CHANNELS, CHANNELS, 3, 3], 3.0)).unwrap(),
    ]
    .map(|tensor| tensor.detach().set_requires_grad(true));
    let one = 4 * input.numel() as u64;
    let dropout = Some((0.3, 5));
    let cases: [Case; 6] = [
        ("plain", plain, None, 1),
        ("plain with dropout: result, mask and product", plain, dropout, 3),
        ("recomputed", recomputed, None, 0),
        ("recomputed with dropout", recomputed, dropout, 0),
        ("checkpointed", checkpointed, None, 0),
        ("checkpointed with dropout", checkpointed, dropout, 0),
    ];
    // The first use of an operation may leave something behind.
    for (_, part, dropout, _) in cases {
        part(&input, &parameters, dropout).sum(Kind::Float).backward();
    }
    for (name, part, dropout, tensors) in cases {
        let before = memory::host_bytes();
        let output = part(&input, &parameters, dropout);
        let held = memory::host_bytes() - before;
        // Beside the output there are small statistics.
        let least = (1 + tensors) * one;
        assert!((least..least + one / 8).contains(&held), "{name}: {held} with {one} a tensor");
        output.sum(Kind::Float).backward();
        drop(output);
        assert_eq!(memory::host_bytes(), before, "{name}");
    }
}
