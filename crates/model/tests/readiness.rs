//! The declared order of readiness against the order in which gradients really become ready.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::{Arc, Mutex};

use common::{Weights, images, network, variants, variants_of};
use model::{DrawKey, Network, Norm, Options, Pass, Projection};
use tch::{Device, Kind, Tensor};
use torch_ext::{autocast, hooks};

/// Watches the gradients of a network's parameters.
fn watch(weights: &Weights) -> Arc<Mutex<Vec<usize>>> {
    let fired = Arc::new(Mutex::new(Vec::new()));
    for (index, leaf) in weights.leaves.iter().enumerate() {
        let fired = Arc::clone(&fired);
        hooks::on_gradient_ready(leaf, move || fired.lock().unwrap().push(index)).unwrap();
    }
    fired
}

/// One forward and backward pass as the trainer runs them.
fn train(network: &Network, pass: &Pass, precision: Kind) {
    let labels = Tensor::from_slice(&[1i64, 3]);
    let loss = {
        let _guard = autocast::Guard::new(Device::Cpu, precision).unwrap();
        let logits = network.forward(&images(2), pass).unwrap();
        logits.to_kind(Kind::Float).cross_entropy_for_logits(&labels)
    };
    loss.backward();
}

fn assert_order(case: &str, network: &Network, fired: &[usize]) {
    let name =
        |order: &[usize]| order.iter().map(|&i| network.parameters()[i].name.clone()).collect::<Vec<_>>();
    assert_eq!(name(fired), name(&network.readiness_order()), "{case}");
}

/// Compares the order of every step of a few, with masks of dropout.
fn check(architecture: &str, variant: &str, options: &Options) {
    let key = DrawKey { seed: 1, step: 2, micro_batch: 3 };
    let network = network(architecture, options);
    let declared = network.readiness_order();
    let weights = Weights::new(&network, 1);
    let fired = watch(&weights);
    for precision in [Kind::Float, Kind::BFloat16] {
        // Twice each: the second finds gradients to add to.
        for _ in 0..2 {
            train(&network, &Pass { draws: Some(key), ..weights.training() }, precision);
            let mut order = std::mem::take(&mut *fired.lock().unwrap());
            // Under autocast the classifier's weight and bias, which one operation uses, pass through casts
            // of their own, whose order is libtorch's affair.
            if precision == Kind::BFloat16 && order[..2] == [declared[1], declared[0]] {
                order.swap(0, 1);
            }
            assert_order(&format!("{architecture}, {variant}, {precision:?}"), &network, &order);
        }
    }
}

#[test]
fn the_order_declared_is_the_order_of_a_real_backward() {
    for architecture in ["wrn-10-1", "wrn-10-2", "wrn-16-1", "wrn-16-2", "wrn-22-1", "wrn-10-1-b313"] {
        for (variant, options) in variants_of(architecture) {
            check(architecture, variant, &options);
        }
    }
}

#[test]
fn the_order_declared_is_that_of_a_real_backward_in_every_family() {
    let dropout = Options { dropout: 0.3, ..Options::default() };
    for architecture in [
        "wrn-10-1-b3",
        "wrn-10-1-b13",
        "wrn-16-1-b3333",
        "resnet-20",
        "wrn-18-0.25-imagenet",
        "wrn-18-1-imagenet",
        "wrn-50-0.25-bottleneck",
        "preact-resnet-20",
        "preact-resnet-164",
        "resnext-29-2x4d",
        "resnext-50-2x8d",
        "se-wrn-10-1",
        "se-resnet-18",
        "se-resnet-50",
        "densenet-bc-22-4",
    ] {
        check(architecture, "dropout", &dropout);
    }
    for architecture in ["densenet-121", "dpn-68"] {
        check(architecture, "paper", &Options { image_size: 64, ..Options::default() });
    }
    let first_block = Options { projection: Projection::FirstBlock, ..Options::default() };
    check("wrn-18-1-imagenet", "projection in every group", &first_block);
}

#[test]
fn with_running_statistics_the_order_is_the_same() {
    for (variant, options) in variants() {
        let network = network("wrn-16-2", &options);
        let weights = Weights::new(&network, 1);
        let fired = watch(&weights);
        train(&network, &Pass { norm: Norm::Running(&weights.running), ..weights.training() }, Kind::Float);
        assert_order(variant, &network, &fired.lock().unwrap());
    }
}

#[test]
fn the_order_names_every_parameter_once_and_begins_at_the_classifier() {
    for architecture in [
        "wrn-10-1",
        "wrn-28-10",
        "wrn-40-4",
        "wrn-40-2-b131",
        "resnet-110",
        "wrn-50-2-bottleneck",
        "preact-resnet-1001",
    ] {
        for (variant, options) in variants_of(architecture) {
            let network = network(architecture, &options);
            let order = network.readiness_order();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..network.parameters().len()), "{architecture}, {variant}");
            let name = |place: usize| network.parameters()[order[place]].name.as_str();
            assert!(name(0).starts_with("fc.") && name(1).starts_with("fc."), "{architecture}, {variant}");
            let first = network.parameters()[0].name.as_str();
            assert!(["conv0.weight", "conv1.weight"].contains(&first));
            assert_eq!(name(order.len() - 1), first, "{architecture}, {variant}");
        }
    }
}
