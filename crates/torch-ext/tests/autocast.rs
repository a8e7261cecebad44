//! What runs in which number format, and that every region ends.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use common::{relative_error, waves};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::autocast::Guard;

/// The format in which a product runs here and now.
fn active() -> Kind {
    waves(&[2, 2], 0.0).matmul(&waves(&[2, 2], 1.0)).kind()
}

fn on_cpu(kind: Kind) -> Guard {
    Guard::new(Device::Cpu, kind).unwrap()
}

#[test]
fn a_convolution_runs_in_bf16_and_its_gradient_is_fp32() {
    let images = waves(&[2, 3, 8, 8], 0.0);
    let weight = waves(&[4, 3, 3, 3], 1.0).set_requires_grad(true);
    let convolve = |images: &Tensor, weight: &Tensor| images.conv2d(weight, None::<&Tensor>, 1, 1, 1, 1);
    let exact = convolve(&images, &weight);
    let output = {
        let _guard = on_cpu(Kind::BFloat16);
        convolve(&images, &weight)
    };
    assert_eq!((exact.kind(), output.kind()), (Kind::Float, Kind::BFloat16));
    let cast = convolve(&images.to_kind(Kind::BFloat16), &weight.to_kind(Kind::BFloat16));
    assert!(output.equal(&cast), "autocast is a cast of both operands");
    let error = relative_error(&output, &exact);
    assert!((1e-5..2e-2).contains(&error), "bf16 keeps two to three digits, not {error}");

    output.sum(Kind::Float).backward();
    let gradient = weight.grad().copy();
    assert_eq!(gradient.kind(), Kind::Float);
    let mut weight = weight;
    weight.zero_grad();
    exact.sum(Kind::Float).backward();
    assert!(relative_error(&gradient, &weight.grad()) < 2e-2);
}

#[test]
fn nested_regions_end_one_by_one() {
    assert_eq!(active(), Kind::Float);
    let outer = on_cpu(Kind::BFloat16);
    assert_eq!(active(), Kind::BFloat16);
    {
        let _off = on_cpu(Kind::Float);
        assert_eq!(active(), Kind::Float);
        {
            let _half = on_cpu(Kind::Half);
            assert_eq!(active(), Kind::Half);
            let _again = on_cpu(Kind::BFloat16);
            assert_eq!(active(), Kind::BFloat16);
        }
        assert_eq!(active(), Kind::Float);
    }
    assert_eq!(active(), Kind::BFloat16);
    drop(outer);
    assert_eq!(active(), Kind::Float);
}

#[test]
fn a_panic_ends_the_region() {
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _outer = on_cpu(Kind::BFloat16);
        let _inner = on_cpu(Kind::Half);
        assert_eq!(active(), Kind::Half);
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(active(), Kind::Float);
    let _guard = on_cpu(Kind::BFloat16);
    assert_eq!(active(), Kind::BFloat16, "and leaves nothing behind");
}

#[test]
fn a_region_belongs_to_its_thread() {
    let _guard = on_cpu(Kind::BFloat16);
    assert_eq!(thread::spawn(active).join().unwrap(), Kind::Float);
}

#[test]
fn a_region_for_gpus_does_not_touch_the_cpu() {
    let _guard = Guard::new(Device::Cuda(0), Kind::BFloat16).unwrap();
    assert_eq!(active(), Kind::Float);
}

#[test]
fn the_next_region_sees_weights_that_changed_in_between() {
    let mut weight = waves(&[4, 4], 0.0).set_requires_grad(true);
    let input = waves(&[2, 4], 1.0);
    let product = |weight: &Tensor| {
        let _outer = on_cpu(Kind::BFloat16);
        let _inner = on_cpu(Kind::BFloat16);
        // Twice: libtorch keeps the cast of a leaf for the second use.
        let _ = input.matmul(weight);
        input.matmul(weight).detach()
    };
    let before = product(&weight);
    let _ = no_grad(|| weight.multiply_scalar_(2.0));
    assert!(product(&weight).equal(&(before * 2.0)));
}

#[test]
fn what_autocast_does_not_know_is_refused() {
    for kind in [Kind::Double, Kind::Int64, Kind::Uint8, Kind::Bool] {
        let message = Guard::new(Device::Cpu, kind).unwrap_err().to_string();
        assert!(message.contains(&format!("{kind:?}")) && message.contains("bfloat16"), "{message}");
    }
    for device in [Device::Mps, Device::Vulkan] {
        let message = Guard::new(device, Kind::BFloat16).unwrap_err().to_string();
        assert!(message.contains(&format!("{device:?}")), "{message}");
    }
    assert_eq!(active(), Kind::Float);
}
