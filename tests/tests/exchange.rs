//! Ways in which gradients travel between ranks, and the commands that measure and foretell them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, wrn_dist};
use serde_json::Value;

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 8 * 32, test: 40 },
        "model: {arch: wrn-10-1}
train: {epochs: 1, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: constant, rate: 0.05}
comm: {first_bucket_kib: 16, bucket_kib: 64}
",
    )
}

#[test]
fn sums_are_right_for_every_reduction_and_format() {
    if !mpirun_or_skip() {
        return;
    }
    for (ranks, reduce, compression) in
        [(2, "ordered", "none"), (3, "flat-ordered", "bf16"), (4, "ordered", "fp16"), (3, "mpi", "none")]
    {
        let arguments = ["bench", "allreduce", "--json", "--max-kib", "1024", "--iterations", "3"];
        let arguments = [&arguments[..], &["--reduce", reduce, "--compression", compression]].concat();
        let outcome = wrn_dist(ranks, &arguments).expect_code(0);
        let bench: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((&bench["world_size"], &bench["reduce"]), (&ranks.into(), &reduce.into()));
        let rows = bench["rows"].as_array().unwrap();
        let bytes: Vec<_> = rows.iter().map(|row| row["bytes"].as_u64().unwrap()).collect();
        assert_eq!(bytes, [4096, 16384, 65536, 262_144, 1_048_576]);
        assert!(rows.iter().all(|row| row["wrong"] == 0 && row["median_seconds"].as_f64().unwrap() > 0.0));
    }
    let refused =
        wrn_dist(1, &["bench", "allreduce", "--reduce", "mpi", "--compression", "bf16"]).expect_code(2);
    assert!(refused.stderr.contains("--reduce ordered"), "{}", refused.stderr);
}

#[test]
fn compressed_gradients_train_nearly_alike_and_always_the_same() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let loss =
        |metrics: &[Value]| metrics.iter().filter_map(|line| line["loss"].as_f64()).collect::<Vec<_>>();
    let train = |name: &str, more: &[&str]| {
        let _ = experiment.train(name, 2, more).expect_code(0);
        (metrics_without_times(experiment.metrics(name)), experiment.checkpoint(name))
    };
    let plain = train("plain", &[]);
    for compression in ["bf16", "fp16"] {
        let set = format!("comm.compression={compression}");
        let first = train(compression, &["--set", &set]);
        let whole = format!("{compression} again, in one bucket");
        let again = train(&whole, &["--set", &set, "--set", "comm.first_bucket_kib=1024"]);
        assert!(first == again, "{compression}: buckets change the run");
        assert!(first.1 != plain.1, "{compression}: nothing was rounded");
        for (found, expected) in loss(&first.0).iter().zip(loss(&plain.0)) {
            assert!((found - expected).abs() < 0.05, "{compression}: loss {found}, {expected} without");
        }
    }
    let more = ["--set", "comm.compression=bf16", "--set", "train.determinism=world"];
    let refused = experiment.train("refused", 2, &more).expect_code(2);
    assert!(refused.stderr.contains("comm.compression"), "{}", refused.stderr);
}

#[test]
fn plan_foretells_steps_on_more_ranks() {
    let experiment = experiment();
    let plan = |more: &[&str]| wrn_dist(1, &[&["plan", "--config", experiment.config()], more].concat());
    let table =
        plan(&["--ranks", "2", "--step-ms", "100", "--gbit", "1", "--ranks-a-host", "2"]).expect_code(0);
    let rows: Vec<Vec<f64>> = (table.stdout.lines())
        .skip_while(|line| !line.contains("efficiency"))
        .skip(1)
        .map(|line| line.split_whitespace().map(|word| word.trim_end_matches('%').parse().unwrap()).collect())
        .collect();
    let ranks: Vec<f64> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(ranks, (0..=12).map(|power| f64::from(1 << power)).collect::<Vec<_>>());
    assert_eq!(rows[0], [1.0, 0.0, 100.0, 160.0, 100.0]);
    assert!(rows.windows(2).all(|pair| pair[0][4] >= pair[1][4]), "efficiency falls: {rows:?}");
    for (more, part) in [
        (&["--gbit", "1"][..], "--step-ms"),
        (&["--step-ms", "0"], "--step-ms 0 is out of range"),
        (&["--step-ms", "1", "--algorithm", "hierarchical", "--ranks-a-host", "3"], "powers of two"),
    ] {
        let refused = plan(more).expect_code(2);
        assert!(refused.stderr.contains(part), "{more:?}: {}", refused.stderr);
    }
}
