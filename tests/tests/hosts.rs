//! Ranks on two hosts, which are network namespaces with a link of 1 Gbit/s between them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use end_to_end::{Experiment, FashionMnist, TwoHosts, metrics_without_times, mpirun_or_skip};

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 8 * 32, test: 40 },
        "model: {arch: wrn-10-1, dropout: 0.3}
train: {epochs: 1, global_batch: 32, micro_batch: 8, determinism: world, threads: 1}
schedule: {kind: one-cycle, rate: 0.1}
comm: {first_bucket_kib: 16, bucket_kib: 64}
",
    )
}

#[test]
fn ranks_on_two_hosts_give_the_bits_of_ranks_on_one() {
    if !mpirun_or_skip() {
        return;
    }
    let Some(hosts) = TwoHosts::set_up_or_skip(2, "1gbit") else { return };
    let experiment = experiment();
    let _ = experiment.train("one host", 4, &[]).expect_code(0);
    for (name, reduce, first_within_hosts) in
        [("hosts first", "ordered", true), ("flat", "flat-ordered", false)]
    {
        let out = experiment.path(name);
        let reduce = format!("comm.reduce={reduce}");
        let arguments =
            ["train", "--config", experiment.config(), "--out", out.to_str().unwrap(), "--set", &reduce];
        let outcome = hosts.wrn_dist(&arguments).expect_code(0);
        assert!(outcome.stdout.contains("4 ranks"), "{}", outcome.stdout);
        let within = outcome.stdout.contains("sums within 2 hosts of 2 first");
        assert_eq!(within, first_within_hosts, "{name}: {}", outcome.stdout);
        assert_eq!(
            metrics_without_times(experiment.metrics(name)),
            metrics_without_times(experiment.metrics("one host"))
        );
        assert!(experiment.checkpoint(name) == experiment.checkpoint("one host"), "weights or momentum");
    }
}

#[test]
fn an_error_on_the_second_host_ends_all_ranks_with_its_sentence() {
    if !mpirun_or_skip() {
        return;
    }
    let Some(hosts) = TwoHosts::set_up_or_skip(1, "1gbit") else { return };
    let experiment = experiment();
    let labels = experiment.path("train-labels-idx1-ubyte.gz");
    assert!(labels.is_file());
    hosts.empty_on_the_second(&labels);
    let out = experiment.path("refused");
    let arguments = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
    let outcome = hosts.wrn_dist(&arguments).expect_code(1);
    let sentences: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(sentences.len(), 1, "{}", outcome.stderr);
    assert!(
        sentences[0].contains("rank 1") && sentences[0].contains("train-labels-idx1-ubyte"),
        "{sentences:?}"
    );
    assert!(!out.exists());
}

#[test]
#[ignore = "long"]
fn a_cut_link_ends_mpirun_and_the_ranks_on_both_hosts() {
    if !mpirun_or_skip() {
        return;
    }
    let Some(hosts) = TwoHosts::set_up_or_skip(1, "1gbit") else { return };
    let experiment = experiment();
    let out = experiment.path("cut");
    let metrics = out.join("metrics.jsonl");
    let sets = ["train.epochs=1000", "checkpoint.every_epochs=1000"];
    let arguments = [
        &["train", "--config", experiment.config(), "--out", out.to_str().unwrap()][..],
        &sets.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>(),
    ]
    .concat();
    let (outcome, after) = std::thread::scope(|scope| {
        let cut = scope.spawn(|| {
            let begin = Instant::now();
            while !metrics.metadata().is_ok_and(|file| file.len() > 0) {
                assert!(begin.elapsed() < Duration::from_secs(120), "no step within two minutes");
                std::thread::sleep(Duration::from_millis(100));
            }
            hosts.cut();
            Instant::now()
        });
        let outcome = hosts.wrn_dist(&arguments);
        (outcome, cut.join().unwrap().elapsed())
    });
    assert_ne!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(after < Duration::from_secs(120), "mpirun ended {after:?} after the cut:\n{}", outcome.stderr);
    assert!(outcome.stderr.contains("lost communication with a remote daemon"), "{}", outcome.stderr);
    // The second host's helper asks as often.
    let begin = Instant::now();
    while !hosts.left_behind().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(120), "left behind: {:?}", hosts.left_behind());
        std::thread::sleep(Duration::from_millis(200));
    }
}
