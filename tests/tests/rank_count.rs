//! Under `determinism: world` neither the number of ranks, nor of decoder threads, nor chance changes a bit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip};

/// Thirty steps of 32 images in micro batches of 8, with everything random switched on.
fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 15 * 32 + 5, test: 100 },
        "model: {arch: wrn-16-1, dropout: 0.3, shortcut_dropout: 0.1, stochastic_depth: 0.5}
train: {epochs: 2, global_batch: 32, micro_batch: 8, determinism: world, threads: 1}
schedule: {kind: one-cycle, rate: 0.1}
",
    )
}

#[test]
fn runs_on_1_2_and_4_ranks_have_the_same_bits() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let mut reference = None;
    for (name, ranks, more) in [
        ("one", 1, &[][..]),
        ("one again", 1, &[][..]),
        ("two", 2, &[][..]),
        ("two, small buckets", 2, &["--set", "comm.first_bucket_kib=16", "--set", "comm.bucket_kib=64"][..]),
        ("four", 4, &[][..]),
        ("four, no overlap", 4, &["--set", "comm.overlap=false"][..]),
    ] {
        let _ = experiment.train(name, ranks, more).expect_code(0);
        let metrics = metrics_without_times(experiment.metrics(name));
        assert_eq!(metrics.len(), 32, "30 steps and 2 epochs");
        let result = (metrics, experiment.checkpoint(name));
        let reference = reference.get_or_insert_with(|| result.clone());
        assert!(result.0 == reference.0, "{name}: metrics differ:\n{:#?}\n{:#?}", result.0, reference.0);
        assert!(result.1[0] == reference.1[0], "{name}: weights or running statistics differ");
        assert!(result.1[1] == reference.1[1], "{name}: momentum differs");
    }
}

#[test]
fn training_learns_and_another_seed_gives_other_bits() {
    let experiment = experiment();
    // A flip or a shift turns these bars into those of another class.
    let plain = ["data.flip=false", "data.crop_padding=0", "model.dropout=0", "train.epochs=4"];
    let plain: Vec<&str> = plain.iter().flat_map(|set| ["--set", set]).collect();
    let _ = experiment.train("a", 1, &plain).expect_code(0);
    let _ = experiment.train("b", 1, &[&plain[..], &["--set", "seed=8"]].concat()).expect_code(0);
    assert_ne!(experiment.checkpoint("a")[0], experiment.checkpoint("b")[0]);
    let metrics = experiment.metrics("a");
    let error = metrics.last().unwrap()["test_top1_error"].as_f64().unwrap();
    assert!(error < 0.5, "ten easy classes are mostly learned after 60 steps, error {error}");
}

#[test]
fn batches_do_not_depend_on_the_number_of_decoder_threads() {
    let experiment = experiment();
    let mut reference = None;
    for workers in ["1", "2", "7"] {
        let set = format!("data.workers={workers}");
        let _ = experiment.train(workers, 1, &["--set", "train.epochs=1", "--set", &set]).expect_code(0);
        let result = (metrics_without_times(experiment.metrics(workers)), experiment.checkpoint(workers));
        let reference = reference.get_or_insert_with(|| result.clone());
        assert!(result == *reference, "{workers} decoder threads give another run");
    }
}
