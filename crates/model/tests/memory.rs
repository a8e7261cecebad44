//! The memory modes: whatever is kept for backward, no bit of the result changes.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use std::sync::{Arc, Mutex};

use common::{Weights, network, values, waves};
use model::{DrawKey, Memory, Network, Norm, Options, Pass, Projection, ShortcutInput};
use tch::{Device, Kind, Tensor};
use torch_ext::{autocast, hooks, layout};

/// What a backward pass brings: the loss, gradients, batch statistics, and the order of the hooks.
#[derive(PartialEq)]
struct Outcome {
    loss: f32,
    gradients: Vec<f32>,
    statistics: Vec<Vec<f32>>,
    fired: Vec<usize>,
}

fn draw_key(micro_batch: u64) -> DrawKey {
    DrawKey { seed: 1, step: 2, micro_batch }
}

fn images(count: i64, side: i64, phase: f64) -> Tensor {
    layout::channels_last(&waves(&[count, 3, side, side], phase)).unwrap()
}

/// Two micro batches whose gradients add up, as the trainer runs them.
fn train(network: &Network, side: i64, kind: Kind, frozen: bool, memory: Memory) -> Outcome {
    let weights = Weights::new(network, 1);
    let fired = Arc::new(Mutex::new(Vec::new()));
    for (index, leaf) in weights.leaves.iter().enumerate() {
        let fired = Arc::clone(&fired);
        hooks::on_gradient_ready(leaf, move || fired.lock().unwrap().push(index)).unwrap();
    }
    let labels = Tensor::from_slice(&[1i64, 3, 0]);
    let norm = if frozen {
        Norm::Running(&weights.running)
    } else {
        Norm::Batch { batch: &weights.batch, running: &weights.running }
    };
    let mut losses = 0.0;
    let mut statistics = Vec::new();
    for micro_batch in 0..2 {
        let pass = Pass { norm, draws: Some(draw_key(micro_batch)), memory, ..weights.training() };
        let loss = {
            let _guard = autocast::Guard::new(Device::Cpu, kind).unwrap();
            let logits = network.forward(&images(3, side, micro_batch as f64), &pass).unwrap();
            logits.to_kind(Kind::Float).cross_entropy_for_logits(&labels)
        };
        let written = |of: &[model::Statistics]| -> Vec<_> {
            of.iter().flat_map(|s| [values(&s.mean), values(&s.variance)]).collect()
        };
        statistics.extend(written(&weights.batch));
        // Backward must not write them again: the ranks may be exchanging them already.
        let versions = || weights.batch.iter().map(|s| s.mean.internal_version()).collect::<Vec<_>>();
        let before = versions();
        loss.backward();
        assert_eq!(versions(), before, "{memory}");
        losses += f32::try_from(&loss).unwrap();
    }
    let fired = fired.lock().unwrap().clone();
    Outcome { loss: losses, gradients: values(&weights.gradients), statistics, fired }
}

fn check(architecture: &str, options: &Options, kind: Kind, frozen: bool) {
    // More would only get in each other's way, as the tests run side by side.
    tch::set_num_threads(1);
    let network = network(architecture, options);
    let run = |memory| train(&network, i64::from(options.image_size), kind, frozen, memory);
    let plain = run(Memory::Plain);
    let left_out = |micro_batch| network.left_out(draw_key(micro_batch)).len();
    let expected = 2 * network.parameters().len() - left_out(0) - left_out(1);
    assert_eq!(plain.fired.len(), expected);
    assert!(plain.gradients.iter().any(|&gradient| gradient != 0.0));
    for memory in Memory::ALL {
        let case = format!("{architecture}, {kind:?}, {memory:?}, dropout {}", options.dropout);
        let other = run(memory);
        assert!(other.loss == plain.loss, "{case}: the loss differs");
        assert!(other.statistics == plain.statistics, "{case}: statistics differ");
        assert_eq!(other.fired, plain.fired, "{case}");
        let differing = other.gradients.iter().zip(&plain.gradients).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 0, "{case}: gradients differ of {}", plain.gradients.len());
    }
}

/// With the side of the images: small, since there are many.
const FAMILIES: &[(&str, u32)] = &[
    ("wrn-10-2", 32),
    ("wrn-16-1", 16),
    ("wrn-10-1-b3", 16),
    ("wrn-10-2-b313", 16),
    ("resnet-20", 16),
    ("preact-resnet-20", 16),
    ("preact-resnet-164", 8),
    ("wrn-18-0.25-imagenet", 32),
    ("wrn-50-0.25-bottleneck", 32),
    ("se-wrn-10-2", 16),
    ("se-resnet-50", 32),
    ("resnext-29-2x4d", 16),
    ("densenet-bc-40-12", 16),
    ("dpn-92", 32),
];

#[test]
fn every_family_has_the_same_bits_in_every_mode_with_dropout() {
    for &(architecture, image_size) in FAMILIES {
        for kind in [Kind::Float, Kind::BFloat16] {
            let dropout = if architecture.starts_with("dpn") { 0.0 } else { 0.3 };
            let options = Options { dropout, image_size, ..Options::default() };
            check(architecture, &options, kind, false);
        }
    }
}

#[test]
fn so_have_the_other_options_and_running_statistics() {
    let plain = || Options { image_size: 16, ..Options::default() };
    for options in [
        plain(),
        Options { shortcut_input: ShortcutInput::Raw, ..plain() },
        Options { projection: Projection::FirstBlock, ..plain() },
    ] {
        for frozen in [false, true] {
            check("wrn-16-2", &options, Kind::Float, frozen);
        }
    }
    check("resnet-20", &plain(), Kind::Float, true);
    check("wrn-16-2", &Options { shortcut_dropout: 0.3, ..plain() }, Kind::Float, false);
}

#[test]
fn so_have_networks_of_stochastic_depth_whatever_is_left_out() {
    for architecture in ["wrn-16-1", "resnet-20"] {
        let options = Options { stochastic_depth: 0.7, image_size: 16, ..Options::default() };
        check(architecture, &options, Kind::Float, false);
    }
}

#[test]
fn without_a_graph_the_modes_are_the_plain_one() {
    let network = network("wrn-10-2", &Options::default());
    let weights = Weights::new(&network, 1);
    let _no_grad = tch::no_grad_guard();
    let [plain, recompute, checkpoint] = Memory::ALL.map(|memory| {
        let logits = network.forward(&common::images(2), &Pass { memory, ..weights.evaluation() }).unwrap();
        assert!(!logits.requires_grad());
        logits
    });
    assert!(plain.equal(&recompute) && plain.equal(&checkpoint));
}

#[test]
fn a_parameter_that_changes_before_backward_is_an_error() {
    let network = network("wrn-10-1", &Options::default());
    for memory in [Memory::Plain, Memory::Recompute] {
        let weights = Weights::new(&network, 1);
        let pass = Pass { memory, ..weights.training() };
        let loss = network.forward(&common::images(2), &pass).unwrap().sum(Kind::Float);
        let gain = network.parameters().iter().position(|p| p.name.ends_with("bn0.weight")).unwrap();
        let _ = tch::no_grad(|| weights.leaves[gain].shallow_clone().fill_(2.0));
        let error = loss.f_backward().unwrap_err().to_string();
        assert!(error.contains("changed") || error.contains("modified by an inplace operation"), "{error}");
    }
}

#[test]
fn the_estimate_of_wrn_28_10_is_the_sum_over_its_layers() {
    let network = network("wrn-28-10", &Options::default());
    // Numbers of the image with the first convolution's output, of a tensor of each group, and of the pool.
    let (image, stem, groups, pooled) = (3 * 1024, 16 * 1024, [160 * 1024, 320 * 256, 640 * 64], 640);
    let all: u64 = groups.iter().sum();
    // Each of four blocks: two inputs of batch norm and their ReLUs; a block's input belongs to the group before.
    let plain = image + 2 * stem + 16 * all + pooled;
    let recompute = image + stem + 8 * all + pooled;
    // Fullest when the last block runs again: all inputs of blocks, and its own three tensors beside.
    let checkpoint = image + stem + 4 * (groups[0] + groups[1]) + (3 + 3) * groups[2];
    for (memory, numbers) in Memory::ALL.into_iter().zip([plain, recompute, checkpoint]) {
        assert_eq!(network.activation_bytes(memory, Kind::Float), 4 * numbers, "{memory}");
        // Nothing here has other than the activations' format.
        assert_eq!(network.activation_bytes(memory, Kind::BFloat16), 2 * numbers, "{memory}");
    }
}
