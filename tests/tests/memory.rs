//! `train.memory` changes what a step holds and no bit of what it computes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, wrn_dist};
use serde_json::Value;

const MODES: [&str; 3] = ["plain", "recompute", "checkpoint"];

/// Two ranks, two micro batches each, dropout, and buckets that leave while backward runs.
fn experiment(arch: &str) -> Experiment {
    Experiment::new(
        FashionMnist { train: 6 * 32, test: 40 },
        &format!(
            "model: {{arch: {arch}, dropout: 0.3}}
train: {{epochs: 2, global_batch: 32, micro_batch: 8, threads: 1}}
schedule: {{kind: one-cycle, rate: 0.1}}
comm: {{overlap: true, first_bucket_kib: 16, bucket_kib: 64}}
"
        ),
    )
}

#[test]
fn runs_in_all_modes_have_the_same_metrics_and_weights() {
    if !mpirun_or_skip() {
        return;
    }
    for arch in ["wrn-16-2", "resnet-20"] {
        let experiment = experiment(arch);
        let mut reference = None;
        for mode in MODES {
            let set = format!("train.memory={mode}");
            let outcome = experiment.train(mode, 2, &["--set", &set]).expect_code(0);
            assert!(!outcome.stderr.contains("order"), "no complaint about readiness: {}", outcome.stderr);
            let result = (metrics_without_times(experiment.metrics(mode)), experiment.checkpoint(mode));
            let reference = reference.get_or_insert_with(|| result.clone());
            assert!(result.0 == reference.0, "{arch}, {mode}: metrics differ");
            assert!(result.1 == reference.1, "{arch}, {mode}: weights, statistics or momentum differ");
        }
    }
}

#[test]
fn a_run_goes_on_in_another_mode_to_the_same_bits() {
    let experiment = experiment("wrn-10-1");
    let mode = |mode| format!("train.memory={mode}");
    let _ = experiment.train("whole", 1, &[]).expect_code(0);
    let first = ["--set", &mode("checkpoint"), "--stop-after", "epoch:1"];
    let _ = experiment.train("parts", 1, &first).expect_code(75);
    let _ = experiment.train("parts", 1, &["--set", &mode("recompute")]).expect_code(0);
    assert!(experiment.checkpoint("whole") == experiment.checkpoint("parts"));
}

#[test]
fn the_measurement_shows_each_mode_and_what_it_saves() {
    let arguments =
        ["bench", "model", "wrn-10-2", "--batch", "16", "--steps", "2", "--warmup", "1", "--json"];
    let outcome = wrn_dist(1, &arguments).expect_code(0);
    let rows: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row:#}"));
    let names: Vec<_> = rows.iter().map(|row| row["memory"].as_str().unwrap()).collect();
    assert_eq!(names, MODES);
    for row in &rows {
        // At its fullest, a step holds what is kept and what operations need meanwhile.
        assert!(number(row, "peak_bytes") > number(row, "estimated_activation_bytes"), "{row:#}");
        assert!(number(row, "process_peak_bytes") > number(row, "peak_bytes"), "{row:#}");
        assert!(number(row, "step_seconds") >= number(row, "fastest_step_seconds"), "{row:#}");
    }
    let kept = |row: usize| number(&rows[row], "activation_bytes");
    assert!(kept(1) < 0.65 * kept(0), "recompute keeps {} of {}", kept(1), kept(0));
    assert!(kept(2) < 0.4 * kept(0), "checkpoint keeps {} of {}", kept(2), kept(0));

    let table = wrn_dist(1, &arguments[..arguments.len() - 1]).expect_code(0).stdout;
    assert_eq!(table.lines().count(), 2 + MODES.len(), "{table}");
}

#[test]
fn what_cannot_be_measured_is_an_error_of_usage() {
    for (arguments, part) in [
        (&["nonsense-1"][..], "nonsense-1"),
        (&["wrn-10-1", "--memory", "lots"][..], "recompute"),
        (&["wrn-10-1", "--dropout", "2"][..], "outside 0 to 1"),
    ] {
        let outcome = wrn_dist(1, &[&["bench", "model"], arguments].concat()).expect_code(2);
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
}

#[test]
fn the_memory_of_each_mode_is_known_without_a_run() {
    let shown = wrn_dist(1, &["model", "show", "wrn-28-10", "--format", "json"]).expect_code(0);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let bytes = MODES.map(|mode| shown["activation_bytes"][mode].as_u64().unwrap());
    assert!(bytes[0] > bytes[1] && bytes[1] > bytes[2], "{bytes:?}");
    let table = wrn_dist(1, &["model", "show", "wrn-28-10"]).expect_code(0).stdout;
    assert!(MODES.iter().all(|mode| table.contains(mode)), "{table}");

    let experiment = experiment("wrn-10-1");
    let arguments =
        ["plan", "--config", experiment.config(), "--ranks", "2", "--set", "train.memory=recompute"];
    let plan = wrn_dist(1, &arguments).expect_code(0).stdout;
    assert!(plan.lines().any(|line| line.starts_with("activations") && line.contains("recompute")), "{plan}");
}
