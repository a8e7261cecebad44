//! What counts as channels_last, and what keeps it.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::waves;
use tch::{Device, Kind, Tensor};
use torch_ext::autocast;
use torch_ext::layout::{channels_last, is_channels_last};

fn strided(size: [i64; 4], stride: [i64; 4]) -> Tensor {
    Tensor::empty_strided(size, stride, (Kind::Float, Device::Cpu))
}

#[test]
fn strides_of_sides_of_length_one_are_not_looked_at() {
    for (size, stride, expected) in [
        ([2, 3, 4, 5], [60, 1, 15, 3], true),
        ([2, 3, 4, 5], [60, 20, 5, 1], false),
        // Transposed images.
        ([2, 3, 4, 5], [60, 1, 3, 12], false),
        // One pixel: both orders are the same.
        ([2, 3, 1, 1], [3, 1, 1, 1], true),
        ([2, 3, 1, 1], [3, 1, 3, 3], true),
        ([2, 3, 1, 1], [3, 1, 77, 99], true),
        // One channel.
        ([2, 1, 4, 5], [20, 20, 5, 1], true),
        ([2, 1, 4, 5], [20, 1, 5, 1], true),
        // One image.
        ([1, 3, 4, 5], [7, 1, 15, 3], true),
        ([1, 3, 4, 5], [60, 20, 5, 1], false),
        ([1, 1, 1, 1], [9, 9, 9, 9], true),
        // With gaps between the images or between the pixels: not dense.
        ([2, 3, 4, 5], [61, 1, 15, 3], false),
        ([2, 3, 4, 5], [80, 1, 20, 4], false),
    ] {
        assert_eq!(is_channels_last(&strided(size, stride)), expected, "{size:?} {stride:?}");
    }
    for size in [&[3][..], &[3, 4], &[3, 4, 5], &[1, 2, 3, 4, 5], &[]] {
        assert!(!is_channels_last(&waves(size, 0.0)), "{size:?}");
    }
}

#[test]
fn conversion_keeps_values_and_copies_only_when_needed() {
    let contiguous = waves(&[2, 3, 4, 5], 0.0);
    let converted = channels_last(&contiguous).unwrap();
    assert!(is_channels_last(&converted) && !is_channels_last(&contiguous));
    assert!(converted.equal(&contiguous));
    assert_ne!(converted.data_ptr(), contiguous.data_ptr());
    assert_eq!(channels_last(&converted).unwrap().data_ptr(), converted.data_ptr());

    // `[N, H, W, C]` seen as `[N, C, H, W]` needs no copy: that is how batches arrive.
    let pixels = waves(&[2, 4, 5, 3], 0.0);
    assert_eq!(channels_last(&pixels.permute([0, 3, 1, 2])).unwrap().data_ptr(), pixels.data_ptr());
}

#[test]
fn other_numbers_of_dimensions_are_refused_with_the_shape() {
    let message = channels_last(&waves(&[3, 4], 0.0)).unwrap_err().to_string();
    assert!(message.contains("[3, 4]"), "{message}");
}

#[test]
fn the_operations_of_a_network_keep_channels_last_in_fp32_and_bf16() {
    for precision in [Kind::Float, Kind::BFloat16] {
        let _guard = autocast::Guard::new(Device::Cpu, precision).unwrap();
        let images = channels_last(&waves(&[2, 8, 6, 6], 0.0)).unwrap();
        let per_channel = || Tensor::ones([16], (Kind::Float, Device::Cpu));
        let (mean, variance) = (Tensor::zeros([16], (Kind::Float, Device::Cpu)), per_channel());
        for (kernel, stride) in [(3, 1), (3, 2), (1, 1), (1, 2)] {
            let weight = channels_last(&waves(&[16, 8, kernel, kernel], 0.0)).unwrap();
            let convolved = images.conv2d(&weight, None::<&Tensor>, stride, kernel / 2, 1, 1);
            assert_eq!(convolved.kind(), precision);
            for training in [true, false] {
                let normalised = convolved.batch_norm(
                    Some(&per_channel()),
                    Some(&per_channel()),
                    Some(&mean),
                    Some(&variance),
                    training,
                    1.0,
                    1e-5,
                    true,
                );
                let activated = normalised.shallow_clone().relu_();
                let dropped = torch_ext::random::dropout(&activated, 0.3, 1).unwrap();
                let sum = dropped.copy().f_add_(&convolved).unwrap();
                for (step, value) in [
                    ("conv", &convolved),
                    ("norm", &normalised),
                    ("relu", &activated),
                    ("dropout", &dropped),
                    ("add", &sum),
                ] {
                    assert!(is_channels_last(value), "{step} of {kernel}x{kernel}/{stride}, {precision:?}");
                    assert_eq!(value.kind(), precision, "{step}");
                }
            }
        }
    }
}
