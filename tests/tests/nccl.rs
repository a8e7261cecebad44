//! Training over NCCL, on its test double: the bits of training over MPI, and every failure in bounded time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use end_to_end::{
    Experiment, FashionMnist, Outcome, expect_failure, expect_parts, expect_straggler, metrics_without_times,
    mpirun_or_skip, steady_experiment, torchrun_or_skip, wrn_dist, wrn_dist_by_torchrun,
    wrn_dist_by_variables, wrn_dist_by_variables_each, wrn_dist_in_environment,
};
use serde_json::Value;

/// In seconds; more than any healthy step takes.
const TIMEOUT: &str = "comm.timeout_s=4";

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 5 * 32, test: 40 },
        "model: {arch: wrn-10-1}
train: {epochs: 1, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: constant, rate: 0.05}
comm: {first_bucket_kib: 16, bucket_kib: 64}
",
    )
}

/// Trains over the double, in which `fault` happens.
fn over_nccl(experiment: &Experiment, run: &str, ranks: usize, more: &[&str], fault: &str) -> Outcome {
    let environment = [("NCCL_DOUBLE_FAULT", fault)];
    over_nccl_in(experiment, run, ranks, more, &environment[..if fault.is_empty() { 0 } else { 1 }])
}

/// Trains over the double in this environment. What the double has to say lies in the run's [`log`].
fn over_nccl_in(
    experiment: &Experiment,
    run: &str,
    ranks: usize,
    more: &[&str],
    environment: &[(&str, &str)],
) -> Outcome {
    let (double, log) = (nccl_double::shared_library(), log(experiment, run));
    let environment = [
        &[("WRN_DIST_NCCL", double.to_str().unwrap()), ("NCCL_DOUBLE_LOG", log.to_str().unwrap())],
        environment,
    ];
    let more = [&["--set", "comm.backend=nccl"], more].concat();
    experiment.train_in_environment(run, ranks, &more, &environment.concat())
}

fn log(experiment: &Experiment, run: &str) -> PathBuf {
    experiment.path(&format!("{run}.log"))
}

/// What the double says of one rank.
fn lines_of(experiment: &Experiment, run: &str, rank: usize) -> Vec<String> {
    let text = std::fs::read_to_string(log(experiment, run)).unwrap();
    let of_rank = format!("rank {rank}: ");
    text.lines().filter_map(|line| line.strip_prefix(&of_rank)).map(str::to_owned).collect()
}

/// Sizes of the buffers that one rank registered: those of the run, and those of `ncclMemAlloc`. All are given back
/// before the communicator ends.
fn registered(experiment: &Experiment, run: &str, rank: usize) -> [Vec<usize>; 2] {
    let lines = lines_of(experiment, run, rank);
    let sizes = |begin: &str, end: &str| {
        let size = |line: &String| line.strip_prefix(begin)?.strip_suffix(end)?.parse().ok();
        let mut sizes: Vec<usize> = lines.iter().filter_map(size).collect();
        sizes.sort_unstable();
        sizes
    };
    let made =
        ["the caller's", "ncclMemAlloc's"].map(|whose| sizes("registered ", &format!(" bytes, {whose}")));
    let mut all = made.concat();
    all.sort_unstable();
    assert_eq!(all, sizes("deregistered ", " bytes"), "{run}, rank {rank}: {lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("destroyed with 0 registered"), "{lines:?}");
    made
}

#[test]
fn a_run_over_nccl_has_the_bits_of_one_over_mpi() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for (name, ranks, more) in [
        ("two, in other buckets", 2, &["--set", "comm.first_bucket_kib=4"][..]),
        ("four", 4, &[]),
        ("two, in world's order", 2, &["--set", "train.determinism=world"]),
        ("four, compressed", 4, &["--set", "comm.compression=bf16"]),
        ("four, updated beside backward", 4, &["--set", "comm.overlap=sync+step"]),
        ("two, half, after backward", 2, &["--set", "comm.compression=fp16", "--set", "comm.overlap=false"]),
    ] {
        let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
        let (mpi, nccl) = (format!("{name}, mpi"), format!("{name}, nccl"));
        let _ = experiment.train(&mpi, ranks, more).expect_code(0);
        let _ = over_nccl(&experiment, &nccl, ranks, more, "").expect_code(0);
        assert!(result(&mpi) == result(&nccl), "{name}: another run over NCCL");
    }
}

#[test]
fn the_flat_buffers_and_the_areas_are_registered_once_and_given_back() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    // Gradients are summed where they lie; shards of the weights are gathered where these lie.
    for (run, ranks, more, flat, areas) in [
        ("whole", 2, &[][..], 1, true),
        ("shards", 2, &SHARDED, 2, true),
        ("nccl's own sums", 2, &["--set", "comm.reduce=nccl"], 1, false),
    ] {
        let _ = over_nccl(&experiment, run, ranks, more, "").expect_code(0);
        let record = std::fs::read(experiment.path(run).join("run.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let parameter_bytes = 4 * record["parameters"].as_u64().unwrap() as usize;
        for rank in 0..ranks {
            let [of_the_run, of_nccl] = registered(&experiment, run, rank);
            assert_eq!(of_the_run.len(), flat, "{run}: {of_the_run:?}");
            assert!(of_the_run.iter().all(|&bytes| bytes >= parameter_bytes), "{run}: {of_the_run:?}");
            assert!(of_the_run.windows(2).all(|pair| pair[0] < pair[1]), "{run}: the same one twice");
            assert_eq!(!of_nccl.is_empty(), areas, "{run}: {of_nccl:?}");
        }
    }
}

#[test]
fn where_one_rank_cannot_register_none_does_and_the_run_is_the_same() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
    let _ = over_nccl(&experiment, "registered", 2, &[], "").expect_code(0);
    // Not the gradients; not the areas, after the gradients were.
    for (run, fault, of_rank_0, of_rank_1) in
        [("none", "unregistered:1:1", 1, 0), ("no areas", "unregistered:1:2", 2, 1)]
    {
        let environment = [("NCCL_DOUBLE_FAULT", fault), ("RUST_LOG", "warn")];
        let outcome = over_nccl_in(&experiment, run, 2, &[], &environment).expect_code(0);
        let text = outcome.stdout + &outcome.stderr;
        assert_eq!(text.matches("goes through NCCL's own buffers").count(), 1, "{text}");
        let made = [0, 1].map(|rank| registered(&experiment, run, rank).concat().len());
        assert_eq!(made, [of_rank_0, of_rank_1], "{run}");
        assert!(result(run) == result("registered"), "{run}");
    }
}

#[test]
fn the_thread_blocks_that_nccl_may_take_are_those_of_the_configuration() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for (run, more, expected) in [
        ("its own choice", &[][..], "made with any to any CTAs"),
        ("eight", &["--set", "comm.nccl_max_ctas=8"], "made with any to 8 CTAs"),
    ] {
        let more = [&["--stop-after", "step:1"], more].concat();
        let _ = over_nccl(&experiment, run, 2, &more, "").expect_code(75);
        for rank in [0, 1] {
            assert_eq!(lines_of(&experiment, run, rank)[0], expected, "{run}");
        }
    }
    // Another number is the same run.
    let more = ["--set", "comm.nccl_max_ctas=4"];
    let _ = over_nccl(&experiment, "eight", 2, &more, "").expect_code(0);
}

const SHARDED: [&str; 2] = ["--set", "optimizer.shard=true"];

#[test]
fn shards_over_nccl_have_the_bits_of_whole_averages_over_mpi() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    // Three ranks do not divide the buckets evenly.
    for (ranks, more) in [
        (2, &["--set", "optimizer.clip_norm=0.5"][..]),
        (3, &["--set", "train.global_batch=24"]),
        (4, &["--set", "optimizer.kind=lamb", "--set", "train.averaging.decay=0.9"]),
    ] {
        let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
        let (whole, shared, stopped) =
            (format!("whole {ranks}"), format!("shared {ranks}"), format!("stopped {ranks}"));
        let sharded = [&SHARDED[..], more].concat();
        let until = |run: &[&'static str], step: &'static str| [run, &["--stop-after", step]].concat();
        let _ = experiment.train(&whole, ranks, more).expect_code(0);
        let _ = over_nccl(&experiment, &shared, ranks, &sharded, "").expect_code(0);
        assert!(result(&whole) == result(&shared), "{ranks} ranks: shards over NCCL change the run");

        // Each goes on from the other's checkpoint.
        let _ = over_nccl(&experiment, &stopped, ranks, &until(&sharded, "step:1"), "").expect_code(75);
        let _ = experiment.train(&stopped, ranks, &until(more, "step:3")).expect_code(75);
        let _ = over_nccl(&experiment, &stopped, ranks, &sharded, "").expect_code(0);
        assert!(result(&whole) == result(&stopped), "{ranks} ranks: checkpoints depend on shards");
    }
}

#[test]
fn nccl_s_own_sums_of_shards_are_its_sums_for_two_ranks() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let sharded = [&SHARDED[..], &["--set", "comm.reduce=nccl"]].concat();
    let _ = over_nccl(&experiment, "whole", 2, &["--set", "comm.reduce=nccl"], "").expect_code(0);
    let _ = over_nccl(&experiment, "shared", 2, &sharded, "").expect_code(0);
    assert!(experiment.checkpoint("whole") == experiment.checkpoint("shared"));
}

#[test]
fn a_rank_with_shards_that_dies_while_the_others_wait_in_nccl_is_named() {
    if !mpirun_or_skip() {
        return;
    }
    let more = [&SHARDED[..], &["--inject-fault", "3:1:hang"]].concat();
    let sentence = failing(&experiment(), 2, &more, "");
    expect_parts(&sentence, &["reduce-scatter of bucket 0", "it waits for rank 1 on "]);
}

#[test]
fn the_reason_of_ranks_that_want_other_libraries_is_the_key_that_differs() {
    let experiment = experiment();
    let out = experiment.path("differ");
    let common = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
    let with = |set: &'static str| [&common[..], &["--set", set]].concat();
    let of_nccl = with("comm.backend=nccl");
    for (other, code, sentence) in [
        ("comm.backend=mpi", 2, "the configuration differs between ranks: "),
        ("comm.bakend=nccl", 2, "bakend"),
    ] {
        let outcomes = wrn_dist_by_variables_each(&[&of_nccl, &with(other)]);
        let errors: Vec<&str> = outcomes
            .iter()
            .flat_map(|outcome| outcome.stderr.lines())
            .filter(|line| line.starts_with("error"))
            .collect();
        assert!(outcomes.iter().all(|outcome| outcome.code == Some(code)), "{other}: {outcomes:?}");
        assert!(errors.len() == 1 && errors[0].contains(sentence), "{other}: {errors:?}");
        assert!(errors[0].starts_with("error (rank 1 on "), "{other}: {errors:?}");
    }
}

#[test]
fn sums_over_nccl_are_measured_and_right() {
    if !mpirun_or_skip() {
        return;
    }
    let double = nccl_double::shared_library();
    let environment = [("WRN_DIST_NCCL", double.to_str().unwrap())];
    let common = ["bench", "allreduce", "--backend", "nccl"];
    for (ranks, reduce, compression) in [(2, "ordered", "none"), (3, "ordered", "bf16"), (4, "nccl", "none")]
    {
        let more = [
            "--json",
            "--max-kib",
            "256",
            "--iterations",
            "3",
            "--reduce",
            reduce,
            "--compression",
            compression,
        ];
        let arguments = [&common[..], &more].concat();
        let outcome = wrn_dist_in_environment(ranks, &arguments, &environment).expect_code(0);
        let bench: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((&bench["backend"], &bench["memory"]), (&"nccl".into(), &"Cpu".into()), "{bench}");
        let rows = bench["rows"].as_array().unwrap();
        let bytes: Vec<_> = rows.iter().map(|row| row["bytes"].as_u64().unwrap()).collect();
        assert_eq!(bytes, [4096, 16384, 65536, 262_144]);
        for row in rows {
            let number = |key: &str| row[key].as_f64().unwrap();
            assert!(row["wrong"] == 0 && number("median_seconds") > 0.0, "{row}");
            let ring = 2.0 * (ranks - 1) as f64 / ranks as f64;
            assert!((number("busbw") / number("algbw") - ring).abs() < 1e-9, "{row}");
        }
    }
    let table = wrn_dist_in_environment(2, &[&common[..], &["--max-kib", "16"]].concat(), &environment);
    expect_parts(&table.expect_code(0).stdout, &["backend nccl, memory Cpu, reduce ordered", "busbw GB/s"]);

    // With the real library and no GPU, or without any.
    let refused = wrn_dist(2, &common);
    assert!(refused.code != Some(0), "{refused:?}");
    let errors: Vec<&str> = refused.stderr.lines().filter(|line| line.starts_with("error")).collect();
    let without_library = errors.iter().any(|line| line.contains("rank 0 has no NCCL: "));
    let without_gpu =
        errors.iter().any(|line| line.contains("finds none on ") && line.contains("--backend mpi"));
    assert!(errors.len() == 1 && (without_library || without_gpu), "{refused:?}");
    for (more, part) in [
        (&["--backend", "mpi", "--reduce", "nccl"][..], "--backend nccl"),
        (&["--backend", "nccl", "--reduce", "mpi"], "--reduce ordered"),
    ] {
        let refused = wrn_dist(1, &[&["bench", "allreduce"], more].concat()).expect_code(2);
        expect_parts(&refused.stderr, &[part]);
    }
}

#[test]
fn nccl_s_own_reduction_adds_in_an_order_of_its_own() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let own = ["--set", "comm.reduce=nccl"];
    for (ranks, same) in [(2, true), (4, false)] {
        let (ordered, library) = (format!("ordered {ranks}"), format!("library {ranks}"));
        let _ = over_nccl(&experiment, &ordered, ranks, &[], "").expect_code(0);
        let _ = over_nccl(&experiment, &library, ranks, &own, "").expect_code(0);
        // The sum of two is the same either way; the double adds four one after the other, not in pairs.
        let equal = experiment.checkpoint(&ordered) == experiment.checkpoint(&library);
        assert_eq!(equal, same, "{ranks} ranks");
    }
}

/// Trains with a fault, checks what all failures have in common, and gives the one sentence about it with the lines
/// that belong to it.
fn failing(experiment: &Experiment, ranks: usize, more: &[&str], fault: &str) -> String {
    let run = format!("{more:?} {fault} {ranks}").replace([':', '"', '/'], " ");
    let outcome = over_nccl(experiment, &run, ranks, &[&["--set", TIMEOUT], more].concat(), fault);
    expect_failure(&run, &outcome)
}

/// Ranks, fault, options, and parts of the sentence.
type Failure<'a> = (usize, &'a str, &'a [&'a str], &'a [&'a str]);

const CHECKED: [&str; 2] = ["--set", "comm.check=every"];
const COMPARED: [&str; 2] = ["--set", "train.check_replicas_every=2"];

const LATE: &str = "(all-reduce of bucket 0, ";
const FLIPPED: &str = " does not hold the same numbers as the other ranks: first in fc.bias of the weights";
const REORDERED: [&str; 4] = [
    "the ranks do not run the same operations: rank 0 on ",
    " all-reduce of bucket 0, ",
    ", rank 1 on ",
    " all-reduce of bucket 1, ",
];

/// Each ends in bounded time, with one sentence that has these parts and no process left.
fn expect_failures(failures: &[Failure]) {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for &(ranks, fault, more, parts) in failures {
        let sentence = failing(&experiment, ranks, &[&["--inject-fault", fault], more].concat(), "");
        expect_parts(&sentence, parts);
    }
}

#[test]
fn a_rank_that_fails_while_the_others_wait_in_nccl_is_named() {
    expect_failures(&[
        (2, "3:1:kill", &[], &["error: rank 1 on ", " died (its connection ", "; rank 0 "]),
        (2, "3:0:kill", &[], &["error: rank 0 on ", " died (its connection ", "; rank 1 "]),
        (2, "3:1:exit", &[], &["error: rank 1 on ", " died (its connection "]),
        (2, "3:1:panic", &[], &["error (rank 1 on ", "a panic was asked for"]),
        (4, "3:2:nan", &[], &["error (rank 2 on ", "became infinite or NaN at step 3"]),
        (2, "3:1:stop", &[], &[" rank 1 on ", "stopped, or its host"]),
        (
            4,
            "3:3:hang",
            &[],
            &[LATE, "has not finished within 4 s (comm.timeout_s): it waits for rank 3 on "],
        ),
        (4, "3:1:reorder", &CHECKED, &REORDERED),
        (4, "3:2:flip-bit", &COMPARED, &["error (rank 2 on ", "after step 4 rank 2 on ", FLIPPED]),
    ]);
}

#[test]
#[ignore = "long: every fault on two and four ranks, also of rank 0"]
fn every_rank_that_fails_while_the_others_wait_in_nccl_is_named() {
    for (ranks, victim) in [(2, 0), (2, 1), (4, 0), (4, 1), (4, 3)] {
        let died = format!("error: rank {victim} on ");
        let speaks = format!("error (rank {victim} on ");
        let waits = format!("has not finished within 4 s (comm.timeout_s): it waits for rank {victim} on ");
        let silent = match victim {
            0 => ["error: no word from rank 0 on ", "comm.timeout_s is 4"],
            _ => [" rank ", "stopped, or its host"],
        };
        let flipped = if ranks == 2 { "; no majority tells which are right" } else { FLIPPED };
        // Ranks are compared with rank 0.
        let differs = format!(", rank {} on ", victim.max(1));
        let cases: [(&str, &[&str], &[&str]); 8] = [
            ("kill", &[], &[&died, " died (its connection "]),
            ("exit", &[], &[&died, " died (its connection "]),
            ("panic", &[], &[&speaks, "a panic was asked for"]),
            ("nan", &[], &[&speaks, "became infinite or NaN at step 3"]),
            ("stop", &[], &silent),
            ("hang", &[], &[LATE, &waits]),
            ("reorder", &CHECKED, &[REORDERED[0], REORDERED[1], &differs, REORDERED[3]]),
            ("flip-bit", &COMPARED, &["after step 4 rank ", flipped]),
        ];
        let faults = cases.map(|(kind, ..)| format!("3:{victim}:{kind}"));
        let failures =
            cases.iter().zip(&faults).map(|((_, more, parts), fault)| (ranks, &**fault, *more, *parts));
        expect_failures(&failures.collect::<Vec<_>>());
    }
}

#[test]
fn a_slow_rank_is_named_over_nccl_too() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = steady_experiment(32);
    let outcome = over_nccl(&experiment, "slow", 2, &["--inject-fault", "11:1:slow"], "").expect_code(0);
    let _ = expect_straggler(&outcome, &experiment.metrics("slow"), 1, 11, &["data wait"]);
}

#[test]
fn ranks_that_meet_without_mpi_have_the_bits_of_mpirun_over_nccl_too() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let double = nccl_double::shared_library();
    let environment = [("WRN_DIST_NCCL", double.to_str().unwrap())];
    let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
    let _ = experiment.train("mpirun", 4, &[]).expect_code(0);
    let expected = result("mpirun");
    let nccl = ["train", "--config", experiment.config(), "--set", "comm.backend=nccl", "--out"];

    let out = experiment.path("variables");
    let arguments = [&nccl[..], &[out.to_str().unwrap()]].concat();
    for outcome in wrn_dist_by_variables(4, &arguments, &environment) {
        let _ = outcome.expect_code(0);
    }
    assert!(result("variables") == expected, "by variables");

    if torchrun_or_skip() {
        let out = experiment.path("torchrun");
        let arguments = [&nccl[..], &[out.to_str().unwrap()]].concat();
        let _ = wrn_dist_by_torchrun(4, &arguments, &environment).expect_code(0);
        assert!(result("torchrun") == expected, "under torchrun");
    }
}

#[test]
fn a_library_that_takes_no_part_any_more_is_noticed_by_the_watchdog() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    // At the first meeting of NCCL's ranks; in the midst of a step.
    for fault in ["absent:1:0", "absent:1:8"] {
        let sentence = failing(&experiment, 2, &[], fault);
        // Both ranks are in the collective, so each is told with where it stands.
        let parts = ["has not finished within 4 s (comm.timeout_s)", "\n  rank 0 on ", "\n  rank 1 on "];
        expect_parts(&sentence, &parts);
    }
}

#[test]
fn an_asynchronous_error_ends_the_job_with_its_rank_and_nccl_s_sentence() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for (ranks, fault) in [(2, "async-error:1:8"), (4, "async-error:2:1")] {
        let sentence = failing(&experiment, ranks, &[], fault);
        let speaker = if ranks == 2 { "error (rank 1 on " } else { "error (rank 2 on " };
        expect_parts(&sentence, &[speaker, "NCCL: ", "remote process exited", "asynchronous error"]);
    }
}

#[test]
fn what_nccl_cannot_do_is_refused_in_a_sentence() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let nccl = ["--set", "comm.backend=nccl"];
    let nowhere = [("WRN_DIST_NCCL", "/nowhere/libnccl.so.2")];
    let refused = experiment.train_in_environment("nowhere", 2, &nccl, &nowhere);
    let sentence = "NCCL: rank 0 has no NCCL: WRN_DIST_NCCL names /nowhere/libnccl.so.2";
    assert!(refused.code != Some(0) && refused.stderr.matches(sentence).count() == 1, "{refused:?}");

    for (more, code, part) in [
        (&["--set", "comm.reduce=nccl"][..], 2, "comm.reduce"),
        (&["--set", "comm.reduce=mpi", "--set", "comm.backend=nccl"], 2, "comm.reduce"),
        (&["--set", "comm.backend=gloo"], 2, "comm.backend"),
        (&["--set", "comm.backend=mpi", "--set", "comm.nccl_max_ctas=8"], 2, "comm.nccl_max_ctas"),
        (&["--set", "comm.nccl_max_ctas=65"], 2, "expected 1 to 64"),
        // The real library, where there is one, or its absence.
        (&["--set", "comm.backend=nccl", "--set", "train.device=cpu"], 1, "NCCL"),
    ] {
        let refused = experiment.train("refused", 2, more);
        assert_eq!(refused.code, Some(code), "{more:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(part), "{more:?}: {}", refused.stderr);
    }
}
