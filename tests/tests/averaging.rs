//! Averaged weights equal PyTorch's and survive a resume; the loss scale of fp16 moves the same way on all ranks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use end_to_end::{
    Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, python_or_skip, run_python, wrn_dist,
};
use serde_json::Value;

const STOPPED: i32 = 75;

/// Six steps an epoch.
fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 6 * 32, test: 64 },
        "model: {arch: wrn-10-1, dropout: 0.3}
train: {epochs: 2, global_batch: 32, micro_batch: 8, threads: 1, determinism: world}
schedule: {kind: cosine, rate: 0.1}
checkpoint: {keep_last: 100}
",
    )
}

fn averaged(experiment: &Experiment, run: &str) -> Vec<u8> {
    fs::read(experiment.checkpoint_folder(run).join("averaged.safetensors")).unwrap()
}

#[test]
fn averaged_weights_and_statistics_equal_those_of_pytorch() {
    if !python_or_skip() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/averaging.py");
    for (every_steps, warmup_steps) in [("1", "0"), ("2", "3")] {
        let experiment = experiment();
        let warmup_epochs = if warmup_steps == "3" { 0.5 } else { 0.0 };
        let averaging = format!(
            "train.averaging={{decay: 0.9, every_steps: {every_steps}, warmup_epochs: {warmup_epochs}}}"
        );
        // A checkpoint after every step, which also is a resume at every step.
        for step in 1..=8 {
            let stop = format!("step:{step}");
            let _ = experiment
                .train("run", 1, &["--set", &averaging, "--stop-after", &stop])
                .expect_code(STOPPED);
        }
        let folder = experiment.path("run/checkpoints");
        let arguments = [folder.to_str().unwrap(), "0.9", every_steps, warmup_steps];
        let outcome = run_python(&script, &arguments).expect_code(0);
        eprintln!("every {every_steps}: {}", outcome.stdout.trim());
    }
}

#[test]
fn averaged_weights_survive_a_resume_and_do_not_depend_on_the_number_of_ranks() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let averaging = ["--set", "train.averaging={decay: 0.8, every_steps: 2}"];
    let _ = experiment.train("whole", 1, &averaging).expect_code(0);
    let metrics = metrics_without_times(experiment.metrics("whole"));
    let epochs: Vec<_> = metrics.iter().filter(|line| line["kind"] == "epoch").collect();
    for epoch in &epochs {
        for key in ["averaged_test_loss", "averaged_test_top1_error", "averaged_test_top5_error"] {
            assert!(epoch[key].is_f64(), "{epoch}");
        }
        assert_ne!(epoch["averaged_test_loss"], epoch["test_loss"]);
    }
    let expected = (experiment.checkpoint("whole"), averaged(&experiment, "whole"));
    assert_ne!(expected.0[0], expected.1);
    for (name, stop, ranks) in [("odd", "step:7", 1), ("two", "step:4", 2), ("four", "epoch:1", 4)] {
        let stop = [&averaging[..], &["--stop-after", stop]].concat();
        let _ = experiment.train(name, ranks, &stop).expect_code(STOPPED);
        let _ = experiment.train(name, ranks, &averaging).expect_code(0);
        assert!(experiment.checkpoint(name) == expected.0, "{name}: weights");
        assert!(averaged(&experiment, name) == expected.1, "{name}: averaged weights");
        assert!(metrics_without_times(experiment.metrics(name)) == metrics, "{name}: metrics");
    }

    // Wherever weights are read, those can be named.
    let file = experiment.checkpoint_folder("whole").join("averaged.safetensors");
    let arguments = ["eval", "--config", experiment.config(), "--checkpoint", file.to_str().unwrap()];
    let outcome = wrn_dist(1, &[&arguments[..], &averaging].concat()).expect_code(0);
    let loss = epochs[1]["averaged_test_loss"].as_f64().unwrap();
    assert!(outcome.stdout.contains(&format!("loss {loss:.4}")), "{}", outcome.stdout);
}

fn steps(metrics: &[Value]) -> Vec<&Value> {
    metrics.iter().filter(|line| line["kind"] == "step").collect()
}

/// Metrics without what depends on the number of ranks.
fn without_ranks(mut metrics: Vec<Value>) -> Vec<Value> {
    for object in metrics.iter_mut().filter_map(Value::as_object_mut) {
        let _ = object.remove("not_finite_ranks");
    }
    metrics
}

#[test]
fn fp16_leaves_out_steps_that_overflow_and_scales_the_loss_alike_on_all_ranks() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let fp16 = ["--set", "precision={dtype: fp16, loss_scale: {initial: 1024, growth_interval: 3}}"];
    let mut reference = None;
    for ranks in [1, 2, 4] {
        let run = format!("fp16 {ranks}");
        let fault = format!("3:{}:nan", ranks - 1);
        let arguments = [&fp16[..], &["--inject-fault", &fault]].concat();
        let _ = experiment.train(&run, ranks, &arguments).expect_code(0);
        let metrics = metrics_without_times(experiment.metrics(&run));
        let scales: Vec<_> =
            steps(&metrics).iter().map(|step| step["loss_scale"].as_f64().unwrap()).collect();
        let expected: [f64; 12] =
            [1024., 1024., 1024., 512., 512., 512., 1024., 1024., 1024., 2048., 2048., 2048.];
        assert_eq!(scales, expected, "{run}");
        let skipped: Vec<_> = steps(&metrics).iter().map(|step| step["skipped"] == true).collect();
        assert_eq!(skipped.iter().position(|&skipped| skipped), Some(2));
        assert_eq!(skipped.iter().filter(|&&skipped| skipped).count(), 1);
        assert_eq!(steps(&metrics)[2]["not_finite_ranks"], Value::from(vec![ranks - 1]));
        let result = (without_ranks(metrics), experiment.checkpoint(&run));
        let reference = reference.get_or_insert_with(|| result.clone());
        assert!(result == *reference, "{ranks} ranks take the same steps");
    }
    // Resumed in the middle of a growth interval.
    let arguments = [&fp16[..], &["--inject-fault", "3:1:nan", "--stop-after", "step:5"]].concat();
    let _ = experiment.train("resumed", 2, &arguments).expect_code(STOPPED);
    let _ = experiment.train("resumed", 2, &fp16).expect_code(0);
    let metrics = without_ranks(metrics_without_times(experiment.metrics("resumed")));
    assert!(
        Some((metrics, experiment.checkpoint("resumed"))) == reference,
        "the scale goes on where it stood"
    );
}

#[test]
fn a_loss_scale_changes_nothing_but_roundings() {
    let experiment = experiment();
    for (run, initial) in [("small", "1"), ("large", "4096")] {
        let set =
            format!("precision={{dtype: fp16, loss_scale: {{initial: {initial}, growth_interval: 1000}}}}");
        let _ = experiment.train(run, 1, &["--set", &set, "--set", "train.epochs=1"]).expect_code(0);
    }
    let losses = |run: &str| {
        let metrics = experiment.metrics(run);
        steps(&metrics).iter().map(|step| step["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    for (small, large) in losses("small").into_iter().zip(losses("large")) {
        assert!((small - large).abs() < 0.02 * small, "{small} and {large}");
    }
}
