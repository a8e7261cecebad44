//! One rank fails in the middle of a run, in every way there is: the job ends on all ranks within bounded
//! time, with an exit code that is not 0 and one sentence that names the rank, and no process is left behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use end_to_end::{
    Experiment, FashionMnist, MOMENTS, TwoHosts, expect_failure, expect_gone, expect_parts, mpirun_or_skip,
    the_sentence,
};
use serde_json::Value;

/// In seconds; more than any healthy step takes.
const TIMEOUT: &str = "comm.timeout_s=4";

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 96, test: 12 },
        "model: {arch: wrn-10-1}
train: {epochs: 2, global_batch: 24, threads: 1}
schedule: {kind: constant, rate: 0.05}
comm: {first_bucket_kib: 16, bucket_kib: 64}
",
    )
}

/// Runs with `fault`, checks what all failures have in common, and gives the one sentence about it with the
/// lines that belong to it.
fn failing(experiment: &Experiment, ranks: usize, fault: &str, more: &[&str]) -> String {
    let run = format!("{fault} {ranks}").replace(':', " ");
    let arguments = [&["--inject-fault", fault, "--set", TIMEOUT], more].concat();
    let outcome = experiment.train_in_session(&run, ranks, &arguments);
    expect_failure(&format!("{fault} on {ranks} ranks"), &outcome)
}

/// The flight record that a rank of a failed run has written.
fn flight(experiment: &Experiment, fault: &str, ranks: usize, rank: usize) -> Value {
    let run = experiment.path(&format!("{fault} {ranks}").replace(':', " "));
    let text = fs::read_to_string(run.join(format!("flight/rank-{rank}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn last_collective(record: &Value) -> &Value {
    record["collectives"].as_array().unwrap().last().unwrap()
}

#[test]
fn a_killed_rank_is_named_with_its_last_place_and_who_waits() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for (ranks, victim) in [(2, 1), (4, 2), (2, 0)] {
        let fault = format!("3:{victim}:kill");
        let sentence = failing(&experiment, ranks, &fault, &[]);
        let witness = if victim == 0 { 1 } else { 0 };
        let (died, waits) = (format!("error: rank {victim} on "), format!("; rank {witness} "));
        expect_parts(&sentence, &[&died, " died (its connection ", &waits]);
        let record = flight(&experiment, &fault, ranks, witness);
        assert_eq!((&record["rank"], &record["step"]), (&witness.into(), &3.into()));
        assert!(record["reason"].as_str().unwrap().contains(" died ("), "{record:#}");
        assert!(record["collectives"].as_array().unwrap().len() > 5, "{record:#}");
    }
}

#[test]
fn a_rank_that_exits_in_mid_epoch_with_code_0_is_named() {
    if !mpirun_or_skip() {
        return;
    }
    let sentence = failing(&experiment(), 3, "2:1:exit", &[]);
    expect_parts(&sentence, &["error: rank 1 on ", " died (its connection "]);
}

#[test]
fn a_panic_on_one_rank_is_the_sentence_of_the_job() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for (ranks, victim) in [(2, 0), (3, 2)] {
        let sentence = failing(&experiment, ranks, &format!("3:{victim}:panic"), &[]);
        expect_parts(
            &sentence,
            &[&format!("error (rank {victim} on "), "panicked at ", "a panic was asked for"],
        );
        for rank in 0..ranks {
            let record = flight(&experiment, &format!("3:{victim}:panic"), ranks, rank);
            assert!(record["reason"].as_str().unwrap().contains("a panic was asked for"), "{record:#}");
        }
    }
}

#[test]
fn a_rank_that_hangs_is_named_by_the_collective_that_waits_for_it() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let sentence = failing(&experiment, 3, "3:2:hang", &[]);
    let parts = [
        "error: collective ",
        "(all-reduce of bucket 0, ",
        " bytes of fp32) has not finished within 4 s (comm.timeout_s): it waits for rank 2 on ",
        "\n  rank 2 on ",
        ": step 3, backward; last was collective ",
        "\n  rank 0 on ",
        "\n  rank 1 on ",
        ": step 3, communication; in collective ",
    ];
    expect_parts(&sentence, &parts);
    let records = [0, 1, 2].map(|rank| flight(&experiment, "3:2:hang", 3, rank));
    let numbers = records.each_ref().map(|record| last_collective(record)["number"].as_u64().unwrap());
    assert_eq!(numbers, [numbers[0], numbers[0], numbers[0] - 1], "rank 2 is one behind");
    assert!(last_collective(&records[0])["seconds"].is_null(), "it has not finished");
    assert!(last_collective(&records[2])["seconds"].is_f64());
    assert!(sentence.contains(&format!("in collective {} (", numbers[0])), "{sentence}");
}

#[test]
fn a_stopped_rank_is_named_as_silent() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let sentence = failing(&experiment, 3, "3:1:stop", &[]);
    // The collective that waits for it or its silence, whichever is noticed first.
    expect_parts(&sentence, &[" rank 1 on ", "stopped, or its host", "\n  rank 1 on ", ": silent for "]);
    let sentence = failing(&experiment, 2, "3:0:stop", &[]);
    expect_parts(&sentence, &["error: no word from rank 0 on ", "comm.timeout_s is 4"]);
}

#[test]
fn ranks_that_run_their_buckets_in_another_order_end_and_are_named_when_they_check() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let _ = failing(&experiment, 2, "3:1:reorder", &[]);
    let sentence = failing(&experiment, 3, "3:1:reorder", &["--set", "comm.check=every"]);
    let parts = [
        "the ranks do not run the same operations: rank 0 on ",
        " all-reduce of bucket 0, ",
        ", rank 1 on ",
        " all-reduce of bucket 1, ",
    ];
    expect_parts(&sentence, &parts);
}

#[test]
fn a_gradient_that_is_not_a_number_stops_the_run_and_its_rank_and_layer_are_named() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for (ranks, victim) in [(1, 0), (2, 1), (4, 3)] {
        let sentence = failing(&experiment, ranks, &format!("3:{victim}:nan"), &[]);
        let speaker = if ranks == 1 { "error: ".into() } else { format!("error (rank {victim} on ") };
        let record = flight(&experiment, &format!("3:{victim}:nan"), ranks, ranks - 1);
        assert_eq!((&record["step"], &record["world_size"]), (&3.into(), &ranks.into()), "{record:#}");
        expect_parts(
            &sentence,
            &[&speaker, "the gradient of ", "became infinite or NaN at step 3", "train.on_nan"],
        );
    }
}

#[test]
fn a_step_whose_gradient_is_not_a_number_can_be_skipped_by_all_ranks() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let skip = ["--set", "train.on_nan=skip"];
    let stop_at = |step: &'static str| [&skip[..], &["--stop-after", step]].concat();
    let with_fault = |more: Vec<&'static str>| [&more[..], &["--inject-fault", "3:1:nan"]].concat();
    let _ = experiment.train("before", 2, &stop_at("step:2")).expect_code(75);
    let _ = experiment.train("after", 2, &with_fault(stop_at("step:3"))).expect_code(75);
    assert!(
        experiment.checkpoint("before") == experiment.checkpoint("after"),
        "the skipped step changed nothing"
    );

    // Resumed in mid-epoch, the epoch still knows of it.
    let _ = experiment.train("after", 2, &skip).expect_code(0);
    let _ = experiment.train("whole", 2, &with_fault(skip.to_vec())).expect_code(0);
    assert!(experiment.checkpoint("whole") == experiment.checkpoint("after"));
    for run in ["after", "whole"] {
        let metrics = experiment.metrics(run);
        let of_kind = |kind: &'static str| metrics.iter().filter(move |line| line["kind"] == kind);
        let skipped: Vec<_> =
            of_kind("step").filter(|line| line["skipped"] == true).map(|line| &line["step"]).collect();
        assert_eq!(skipped, [3]);
        assert_eq!(of_kind("epoch").map(|line| &line["skipped_steps"]).collect::<Vec<_>>(), [1, 0]);
        assert!(of_kind("epoch").all(|line| line["train_loss"].is_f64()));
    }
}

#[test]
fn a_rank_that_is_killed_on_another_host_is_named_with_it() {
    if !mpirun_or_skip() {
        return;
    }
    let Some(hosts) = TwoHosts::set_up_or_skip(2, "1gbit") else { return };
    let experiment = experiment();
    let out = experiment.path("run");
    let arguments = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
    let outcome = hosts.wrn_dist(&[&arguments[..], &["--inject-fault", "3:3:kill"]].concat());
    assert_ne!(outcome.code, Some(0));
    assert!(outcome.duration < MOMENTS, "{:?}", outcome.duration);
    expect_gone("kill", || hosts.left_behind());
    let sentence = the_sentence("kill", &outcome.stderr);
    expect_parts(&sentence, &["error: rank 3 on wrn-", "-b died (its connection ", "; rank 0 "]);
}
