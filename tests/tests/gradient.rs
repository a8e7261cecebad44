//! The averaged gradient of two ranks is the one that PyTorch computes from the same pixels and weights.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use end_to_end::{Experiment, FashionMnist, mpirun_or_skip, python_or_skip, run_python};

/// One step with rate 0, no decay and empty momentum: the checkpoint then holds the initial weights, and as
/// momentum the gradient.
fn compare(model: &str, python_mode: &str) {
    if !mpirun_or_skip() || !python_or_skip() {
        return;
    }
    let experiment = Experiment::new(
        FashionMnist { train: 64, test: 10 },
        &format!(
            "model: {model}
train: {{epochs: 1, global_batch: 64, micro_batch: 16, threads: 1}}
optimizer: {{weight_decay: 0}}
schedule: {{kind: constant, rate: 0}}
"
        ),
    );
    let sets = ["data.flip=false", "data.crop_padding=0", "data.order=sequential"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let _ = experiment.train("run", 2, &sets).expect_code(0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/gradient.py");
    let folder = experiment.checkpoint_folder("run");
    let data = experiment.path("");
    let outcome =
        run_python(&script, &[python_mode, data.to_str().unwrap(), folder.to_str().unwrap()]).expect_code(0);
    assert!(outcome.stdout.contains("largest relative difference"), "{}", outcome.stdout);
    eprintln!("{model}: {}", outcome.stdout.trim());
}

#[test]
fn with_batch_norm_it_equals_pytorch_accumulating_over_the_same_micro_batches() {
    compare("{arch: wrn-16-1}", "micro-batches");
}

#[test]
fn with_frozen_norm_it_equals_pytorch_on_the_whole_batch_in_one_piece() {
    compare("{arch: wrn-16-1, frozen_norm: true}", "whole-batch");
}
