//! Ranks that find each other without MPI, by environment variables or under `torchrun`, are the same run as those of
//! `mpirun`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use end_to_end::{
    Experiment, FashionMnist, Outcome, TwoHosts, metrics_without_times, mpirun_or_skip, torchrun_or_skip,
    wrn_dist_by_torchrun, wrn_dist_by_variables, wrn_dist_with_variables,
};

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 4 * 32, test: 64 },
        "model: {arch: wrn-10-1, dropout: 0.3}
train: {epochs: 2, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: constant, rate: 0.05}
comm: {first_bucket_kib: 16, bucket_kib: 64}
",
    )
}

fn arguments<'a>(experiment: &'a Experiment, out: &'a str) -> Vec<&'a str> {
    vec!["train", "--config", experiment.config(), "--out", out]
}

/// Lines of a program's errors that are ours.
fn sentences(outcomes: &[Outcome]) -> Vec<&str> {
    let lines = outcomes.iter().flat_map(|outcome| outcome.stderr.lines());
    lines.filter(|line| line.starts_with("error")).collect()
}

#[test]
fn every_launcher_gives_the_same_bits() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let torchrun = torchrun_or_skip();
    for ranks in [2, 4] {
        let run = |launcher: &str| format!("{launcher} {ranks}");
        let of = |name: &str| (metrics_without_times(experiment.metrics(name)), experiment.checkpoint(name));
        let by_mpirun = run("mpirun");
        let _ = experiment.train(&by_mpirun, ranks, &[]).expect_code(0);

        let by_hand = run("variables");
        let out = experiment.path(&by_hand);
        for outcome in wrn_dist_by_variables(ranks, &arguments(&experiment, out.to_str().unwrap()), &[]) {
            let _ = outcome.expect_code(0);
        }
        assert!(of(&by_hand) == of(&by_mpirun), "{by_hand}");

        if torchrun {
            let by_torchrun = run("torchrun");
            let out = experiment.path(&by_torchrun);
            let arguments = arguments(&experiment, out.to_str().unwrap());
            let _ = wrn_dist_by_torchrun(ranks, &arguments, &[]).expect_code(0);
            assert!(of(&by_torchrun) == of(&by_mpirun), "{by_torchrun}");
        }
    }
}

#[test]
fn ranks_on_two_hosts_sum_within_them_first_and_have_the_same_bits() {
    let Some(hosts) = TwoHosts::set_up_or_skip(2, "1gbit") else { return };
    let experiment = experiment();
    let train = |name: &str, more: &[&str]| {
        let out = experiment.path(name);
        let arguments = [&arguments(&experiment, out.to_str().unwrap())[..], more].concat();
        for outcome in hosts.wrn_dist_by_variables(2, &arguments) {
            let _ = outcome.expect_code(0);
        }
        (metrics_without_times(experiment.metrics(name)), experiment.checkpoint(name))
    };
    assert!(train("hosts", &[]) == train("flat", &["--set", "comm.reduce=flat-ordered"]));
    let of = |name: &str| std::fs::read_to_string(experiment.path(name).join("run.json")).unwrap();
    let within = "sums within 2 hosts of 2 first";
    assert!(of("hosts").contains(within) && !of("flat").contains(within), "{}", of("hosts"));
}

#[test]
fn a_rank_that_dies_is_named_without_mpi_too() {
    let experiment = experiment();
    for (ranks, victim, fault) in [(3, 2, "kill"), (2, 0, "kill"), (3, 1, "hang"), (2, 1, "panic")] {
        let out = experiment.path(&format!("{fault} {victim}"));
        let fault = format!("3:{victim}:{fault}");
        let more = ["--inject-fault", &fault, "--set", "comm.timeout_s=4", "--set", "train.global_batch=48"];
        let outcomes = wrn_dist_by_variables(
            ranks,
            &[&arguments(&experiment, out.to_str().unwrap())[..], &more].concat(),
            &[],
        );
        for outcome in &outcomes {
            assert_ne!(outcome.code, Some(0), "{fault}: {}", outcome.stderr);
            assert!(outcome.duration < Duration::from_secs(30), "{fault} took {:?}", outcome.duration);
        }
        let sentences = sentences(&outcomes);
        assert_eq!(sentences.len(), 1, "{fault}, printed once: {sentences:?}");
        assert!(sentences[0].contains(&format!("rank {victim} on ")), "{fault}: {sentences:?}");
    }
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let arguments = ["bench", "allreduce", "--max-kib", "4"];
    let experiment = experiment();
    let out = experiment.path("alone");
    let set = ["--set", "comm.timeout_s=2"];
    let train = [&self::arguments(&experiment, out.to_str().unwrap())[..], &set].concat();
    let meeting = [("WORLD_SIZE", "3"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29777")];
    let alone = |rank| wrn_dist_with_variables(&[&[("RANK", rank)][..], &meeting].concat(), &train);
    let leader = alone("0").expect_code(1);
    assert!(leader.stderr.contains("ranks 1, 2 of 3 did not come to rank 0 on "), "{}", leader.stderr);
    let other = alone("1").expect_code(1);
    assert!(other.stderr.contains("127.0.0.1:29777: "), "{}", other.stderr);
    assert!(!out.exists(), "nothing was written");

    // Alone in its world a rank meets nobody.
    let _ = wrn_dist_with_variables(&[("RANK", "0"), ("WORLD_SIZE", "1")], &arguments).expect_code(0);
}

#[test]
fn senseless_variables_and_sums_by_mpi_are_refused() {
    let bench = ["bench", "allreduce", "--max-kib", "4"];
    for (variables, part) in [
        (&[("RANK", "1")][..], "WORLD_SIZE is not"),
        (&[("RANK", "1"), ("WORLD_SIZE", "2")], "MASTER_ADDR is not"),
        (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK=2 is not among WORLD_SIZE=2"),
    ] {
        let refused = wrn_dist_with_variables(variables, &bench).expect_code(2);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let refused = wrn_dist_by_variables(2, &[&bench[..], &["--reduce", "mpi"]].concat(), &[]);
    assert!(refused.iter().all(|outcome| outcome.code == Some(2)), "{refused:?}");
    assert_eq!(sentences(&refused).len(), 1, "{refused:?}");
}
