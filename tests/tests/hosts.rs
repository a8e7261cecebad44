//! Ranks on two hosts, which are network namespaces with a link of 1 Gbit/s between them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
    let out = experiment.path("two hosts");
    let arguments = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
    let outcome = hosts.wrn_dist(&arguments).expect_code(0);
    assert!(outcome.stdout.contains("4 ranks"), "{}", outcome.stdout);
    assert_eq!(
        metrics_without_times(experiment.metrics("two hosts")),
        metrics_without_times(experiment.metrics("one host"))
    );
    assert!(experiment.checkpoint("two hosts") == experiment.checkpoint("one host"), "weights or momentum");
}

#[test]
fn an_error_on_one_host_ends_the_ranks_on_the_other_with_its_sentence() {
    if !mpirun_or_skip() {
        return;
    }
    let Some(hosts) = TwoHosts::set_up_or_skip(1, "1gbit") else { return };
    let experiment = experiment();
    let out = experiment.path("refused");
    let outcome = hosts
        .wrn_dist(&[
            "train",
            "--config",
            experiment.config(),
            "--out",
            out.to_str().unwrap(),
            "--set",
            "train.global_batch=33",
        ])
        .expect_code(2);
    assert!(outcome.stderr.contains("a global batch of 33"), "{}", outcome.stderr);
}
