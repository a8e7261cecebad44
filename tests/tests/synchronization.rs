//! What of a step may be synchronized in another way: weights updated while backward runs, batch norm over all ranks,
//! gradients as products of thin matrices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use end_to_end::{
    Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, python_or_skip, run_python, wrn_dist,
};
use serde_json::Value;

/// Sixteen steps with small buckets.
fn experiment(model: &str, micro_batch: usize) -> Experiment {
    Experiment::new(
        FashionMnist { train: 8 * 32, test: 40 },
        &format!(
            "model: {model}
train: {{epochs: 2, global_batch: 32, micro_batch: {micro_batch}, threads: 1}}
schedule: {{kind: one-cycle, rate: 0.1}}
comm: {{first_bucket_kib: 16, bucket_kib: 64}}
"
        ),
    )
}

fn sets<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    keys.iter().flat_map(|key| ["--set", key]).collect()
}

fn losses(metrics: &[Value]) -> Vec<f64> {
    metrics.iter().filter_map(|line| line["loss"].as_f64()).collect()
}

/// All steps of a run, without times, and its last checkpoint.
fn train(experiment: &Experiment, name: &str, ranks: usize, keys: &[&str]) -> (Vec<Value>, [Vec<u8>; 2]) {
    let _ = experiment.train(name, ranks, &sets(keys)).expect_code(0);
    (metrics_without_times(experiment.metrics(name)), experiment.checkpoint(name))
}

#[test]
fn weights_updated_during_backward_have_the_bits_of_those_updated_after_it() {
    if !mpirun_or_skip() {
        return;
    }
    // Everything that decides when weights are read again: memory modes, blocks left out, several micro batches, bf16.
    for (name, ranks, model, keys) in [
        ("plain", 2, "{arch: wrn-16-1}", &[][..]),
        (
            "checkpoint",
            2,
            "{arch: wrn-16-1, stochastic_depth: 0.5, dropout: 0.2}",
            &["train.memory=checkpoint", "precision.dtype=bf16"][..],
        ),
        ("recompute", 4, "{arch: wrn-16-1, dropout: 0.2}", &["train.memory=recompute"]),
        ("world", 4, "{arch: wrn-16-1, stochastic_depth: 0.5}", &["train.determinism=world"]),
    ] {
        let experiment = experiment(model, 4);
        let run = |early: &str| {
            let overlap = format!("comm.overlap={early}");
            train(&experiment, &format!("{name} {early}"), ranks, &[keys, &[overlap.as_str()]].concat())
        };
        let (after, early) = (run("true"), run("sync+step"));
        assert!(after == early, "{name}: {:?}\n{:?}", losses(&after.0), losses(&early.0));
        // In one step there are several buckets, so that some were updated before the last was complete.
        let step = &experiment.metrics(&format!("{name} sync+step"))[0];
        assert!(step["exchange"]["buckets"].as_u64().unwrap() > 3, "{step}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_ends_a_run_that_updates_early_and_nothing_of_it_is_saved() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{arch: wrn-10-1}", 16);
    let keys = sets(&["comm.overlap=sync+step"]);
    let _ = experiment.train("run", 2, &[&keys[..], &["--stop-after", "step:4"]].concat()).expect_code(75);
    let saved = experiment.checkpoint("run");
    let ended =
        experiment.train("run", 2, &[&keys[..], &["--inject-fault", "6:1:nan"]].concat()).expect_code(1);
    for part in ["error (rank 1 on ", "the gradient of fc.bias became infinite or NaN at step 6 "] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    // The weights hold the update already: the step cannot be computed once more.
    let text = std::fs::read_to_string(experiment.path("run/evidence/step-000000006.json")).unwrap();
    let evidence: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(evidence["averaged_gradient"], "fc.bias", "{text}");
    assert_eq!(evidence["ranks"].as_array().map(Vec::len), Some(0), "{text}");
    assert!(experiment.checkpoint("run") == saved, "the last checkpoint is that of step 4");
}

#[test]
fn batch_norm_over_two_ranks_is_that_of_pytorch_over_the_whole_batch() {
    if !mpirun_or_skip() || !python_or_skip() {
        return;
    }
    // One step with rate 0, no decay and empty momentum: the checkpoint then holds the initial weights, and as momentum
    // the gradient. Few activations, so that none lies within a rounding of zero, where a ReLU that falls to the other
    // side would change the gradient by more than the tolerance.
    let experiment = Experiment::new(
        FashionMnist { train: 8, test: 10 },
        "model: {arch: wrn-10-1, sync_norm: true}
train: {epochs: 1, global_batch: 8, micro_batch: 4, threads: 1}
optimizer: {weight_decay: 0}
schedule: {kind: constant, rate: 0}
comm: {first_bucket_kib: 16, bucket_kib: 64, check: every}
",
    );
    let keys = sets(&["data.flip=false", "data.crop_padding=0", "data.order=sequential"]);
    let _ = experiment.train("run", 2, &keys).expect_code(0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/gradient.py");
    let (data, folder) = (experiment.path(""), experiment.checkpoint_folder("run"));
    let arguments = ["synchronized-norm", data.to_str().unwrap(), folder.to_str().unwrap()];
    let outcome = run_python(&script, &arguments).expect_code(0);
    eprintln!("{}", outcome.stdout.trim());
}

#[test]
fn runs_with_batch_norm_over_all_ranks_are_alike_on_one_and_two_ranks_and_always_the_same() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{arch: wrn-10-1, sync_norm: true, dropout: 0}", 16);
    let alone = train(&experiment, "one rank", 1, &["train.micro_batch=32", "train.epochs=1"]);
    let two = train(&experiment, "two", 2, &["train.epochs=1"]);
    for (found, expected) in losses(&two.0).iter().zip(losses(&alone.0)) {
        assert!((found - expected).abs() < 1e-3 * expected, "{found} for {expected}");
    }
    let early = ["train.epochs=1", "comm.overlap=sync+step"];
    let after = ["train.epochs=1", "comm.overlap=false"];
    assert!(train(&experiment, "early", 2, &early) == two, "the order of exchanges changes the run");
    assert!(train(&experiment, "after", 2, &after) == two, "the order of exchanges changes the run");
}

#[test]
fn a_run_with_batch_norm_over_all_ranks_is_evaluated_and_resumed_on_any_number_of_them() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{arch: wrn-10-1, sync_norm: true, dropout: 0}", 16);
    let _ = experiment.train("whole", 2, &[]).expect_code(0);
    let _ = experiment.train("parts", 2, &["--stop-after", "step:3"]).expect_code(75);
    let refused = experiment.train("parts", 1, &[]).expect_code(2);
    assert!(refused.stderr.contains("(--set train.micro_batch=null)"), "{}", refused.stderr);
    let advised = ["--set", "train.micro_batch=null"];
    for (ranks, stop) in [(1, "step:6"), (4, "step:11")] {
        let stop = [&advised[..], &["--stop-after", stop]].concat();
        let _ = experiment.train("parts", ranks, &stop).expect_code(75);
    }
    let _ = experiment.train("parts", 1, &advised).expect_code(0);
    let [parts, whole] = ["parts", "whole"].map(|name| losses(&experiment.metrics(name)));
    assert_eq!(parts.len(), whole.len());
    assert_eq!(parts[..3], whole[..3]);
    for (found, expected) in parts.iter().zip(&whole) {
        assert!((found - expected).abs() < 2e-2 * expected, "{parts:?}\n{whole:?}");
    }

    let checkpoint = experiment.checkpoint_folder("whole");
    let arguments = ["eval", "--config", experiment.config(), "--checkpoint", checkpoint.to_str().unwrap()];
    let said = [1, 2, 3, 4].map(|ranks| {
        let stdout = wrn_dist(ranks, &arguments).expect_code(0).stdout;
        stdout.lines().filter(|line| line.contains("error")).map(str::to_owned).collect::<Vec<_>>()
    });
    assert!(!said[0].is_empty());
    assert!(said.iter().all(|lines| *lines == said[0]), "{said:?}");
}

#[test]
fn a_rank_that_fails_does_not_leave_the_others_waiting_in_a_batch_norm() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{arch: wrn-10-1, sync_norm: true}", 16);
    for (fault, words) in [("3:1:nan", "became infinite or NaN at step 3"), ("3:1:panic", "rank 1")] {
        let name = fault.replace(':', "-");
        let ended = experiment.train(&name, 2, &["--inject-fault", fault]);
        assert_ne!(ended.code, Some(0), "{fault}");
        assert!(ended.stderr.contains(words), "{fault}: {}", ended.stderr);
        assert!(ended.duration.as_secs() < 60, "{fault}: {:?}", ended.duration);
    }
}

#[test]
fn power_sgd_trains_nearly_alike_with_fewer_bytes_and_always_the_same() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{arch: wrn-10-2}", 16);
    let plain = train(&experiment, "plain", 2, &[]);
    let power = ["comm.compression=power-sgd", "comm.power_sgd_rank=4", "comm.power_sgd_start_step=3"];
    let once = train(&experiment, "once", 2, &power);
    let early = [&power[..], &["comm.overlap=sync+step"]].concat();
    assert!(train(&experiment, "again", 2, &early) == once, "the same run differs");
    let (found, expected) = (losses(&once.0), losses(&plain.0));
    assert_eq!(found[..3], expected[..3], "the first steps are not compressed");
    assert_ne!(found[4..], expected[4..]);
    let last = |losses: &[f64]| losses[12..].iter().sum::<f64>() / 4.0;
    assert!(last(&found) < last(&expected) + 0.3, "{found:?}\n{expected:?}");
    let metrics = experiment.metrics("once");
    let bytes = |step: usize| metrics[step]["exchange"]["bytes"].as_u64().unwrap();
    assert!(3 * bytes(5) < bytes(0), "{} of {} bytes", bytes(5), bytes(0));
}

#[test]
fn a_resumed_power_sgd_run_says_what_it_lacks() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{arch: wrn-10-1}", 16);
    let keys = sets(&["comm.compression=power-sgd", "comm.power_sgd_start_step=0"]);
    let _ = experiment.train("run", 2, &[&keys[..], &["--stop-after", "step:5"]].concat()).expect_code(75);
    let resumed = experiment.train("run", 2, &keys).expect_code(0);
    let said = resumed.stdout + &resumed.stderr;
    assert!(said.contains("power-sgd begins with an empty memory"), "{said}");
}
