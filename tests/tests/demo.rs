//! The demonstration's promise, kept on the real Fashion-MNIST.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use end_to_end::{mpirun_or_skip, skip, wrn_dist_for_long};
use serde_json::Value;

/// Where Debian's package dataset-fashion-mnist puts it, as the configuration says.
const DATA: &str = "/usr/share/datasets/fashion-mnist";

#[test]
#[ignore = "long: six epochs, five to ten minutes on two cores"]
fn two_ranks_reach_91_5_percent_on_fashion_mnist_in_six_epochs() {
    if !mpirun_or_skip() {
        return;
    }
    if !Path::new(DATA).exists() {
        skip("data", "Debian's package dataset-fashion-mnist is not installed");
        return;
    }
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo/fashion-mnist.yaml");
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let arguments = ["train", "--config", config.to_str().unwrap(), "--out", run.to_str().unwrap()];
    let _ = wrn_dist_for_long(2, &arguments).expect_code(0);
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["epoch"], 6);
    let error = last["test_top1_error"].as_f64().unwrap();
    assert!(error <= 0.085, "test accuracy {:.2} %", 100.0 * (1.0 - error));
}
