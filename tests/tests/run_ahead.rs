//! Steps that are launched before the one before them is settled, as where NCCL sums on the device: whatever a step turns
//! out to be, the run is that of ranks which wait for each step. On NCCL's test double.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{
    Experiment, FashionMnist, expect_failure, expect_parts, metrics_without_times, mpirun_or_skip,
};
use serde_json::Value;

const STOPPED: i32 = 75;

/// Two epochs of 15 steps, over NCCL or over MPI.
struct Pair {
    experiment: Experiment,
    double: String,
}

impl Pair {
    fn new() -> Self {
        let experiment = Experiment::new(
            FashionMnist { train: 15 * 16, test: 16 },
            "model: {arch: wrn-10-1}
train: {epochs: 2, global_batch: 16, micro_batch: 4, threads: 1}
schedule: {kind: constant, rate: 0.02}
comm: {first_bucket_kib: 16, bucket_kib: 64}
",
        );
        Pair { experiment, double: nccl_double::shared_library().to_str().unwrap().to_owned() }
    }

    /// Options that say how to train, as `--set` takes them.
    fn arguments<'a>(sets: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        sets.iter().flat_map(|set| ["--set", set]).chain(more.iter().copied()).collect()
    }

    fn over_nccl(&self, run: &str, sets: &[&str], more: &[&str]) -> end_to_end::Outcome {
        let sets = [&["comm.backend=nccl"], sets].concat();
        let environment = [("WRN_DIST_NCCL", &*self.double)];
        self.experiment.train_in_environment(run, 2, &Self::arguments(&sets, more), &environment)
    }

    fn over_mpi(&self, run: &str, sets: &[&str], more: &[&str]) -> end_to_end::Outcome {
        self.experiment.train(run, 2, &Self::arguments(sets, more))
    }

    fn result(&self, run: &str) -> (Vec<Value>, [Vec<u8>; 2]) {
        (metrics_without_times(self.experiment.metrics(run)), self.experiment.checkpoint(run))
    }
}

#[test]
fn what_goes_wrong_with_a_step_changes_the_run_as_if_each_step_were_waited_for() {
    if !mpirun_or_skip() {
        return;
    }
    let pair = Pair::new();
    let nan = ["--inject-fault", "5:1:nan"];
    let back = ["train.on_nan=roll-back"];
    let spike = ["train.loss_spike={window: 8, action: roll-back}"];
    let averaged = ["train.on_nan=skip", "train.averaging={decay: 0.9, every_steps: 2, warmup_epochs: 0}"];
    let adamw = ["train.on_nan=skip", "optimizer={kind: adamw, clip_norm: 0.5}"];
    let lars = ["train.on_nan=roll-back", "optimizer={kind: lars, clip_norm: 2}"];
    let lamb = ["train.on_nan=skip", "optimizer={kind: lamb, shard: true, clip_norm: 1}"];
    let fp16 = ["precision={dtype: fp16, loss_scale: {initial: 1024, growth_interval: 3}}"];
    let cases: [(&str, &[&str], &[&str], &str); 11] = [
        ("adamw", &adamw, &nan, " is left out: its gradient is infinite or NaN on rank 1 on "),
        ("lamb in shards", &lamb, &nan, " is left out: "),
        ("lars", &lars, &["--inject-fault", "19:1:nan"], "; back to the checkpoint of step 15 "),
        ("lamb", &["optimizer.kind=lamb"], &[], "curves: "),
        // No smaller loss scale is asked for by people.
        ("fp16", &fp16, &nan, "curves: "),
        ("left out", &["train.on_nan=skip"], &nan, " is left out: "),
        ("left out in shards", &["train.on_nan=skip", "optimizer.shard=true"], &nan, " is left out: "),
        ("left out of averages", &averaged, &["--inject-fault", "6:0:nan"], " is left out: "),
        ("back", &back, &["--inject-fault", "19:1:nan"], "; back to the checkpoint of step 15 "),
        ("back from the last step", &back, &["--inject-fault", "30:0:nan"], " of step 15 "),
        (
            "back from a jump",
            &spike,
            &["--inject-fault", "25:1:spike"],
            "; back to the checkpoint of step 15 ",
        ),
    ];
    for (name, sets, more, sentence) in cases {
        let (mpi, nccl) = (format!("{name}, mpi"), format!("{name}, nccl"));
        let waiting = pair.over_mpi(&mpi, sets, more).expect_code(0);
        let ahead = pair.over_nccl(&nccl, sets, more).expect_code(0);
        for outcome in [&waiting, &ahead] {
            assert_eq!(outcome.stdout.matches(sentence).count(), 1, "{name}: {}", outcome.stdout);
        }
        assert!(pair.result(&mpi) == pair.result(&nccl), "{name}: another run");
    }
}

#[test]
fn a_run_that_ends_for_its_numbers_looks_into_the_weights_of_the_step_that_brought_them() {
    if !mpirun_or_skip() {
        return;
    }
    let pair = Pair::new();
    let evidence = |run: &str| -> Value {
        let path = pair.experiment.path(run).join("evidence/step-000000005.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    for (name, sets) in [("whole", &[][..]), ("shards", &["optimizer.shard=true"])] {
        let (mpi, nccl) = (format!("{name}, mpi"), format!("{name}, nccl"));
        let _ = pair.over_mpi(&mpi, sets, &["--inject-fault", "5:1:nan"]).expect_code(1);
        let outcome = pair.over_nccl(&nccl, sets, &["--inject-fault", "5:1:nan"]);
        let sentence = expect_failure(name, &outcome);
        expect_parts(
            &sentence,
            &["error (rank 1 on ", "the gradient of fc.bias became infinite or NaN at step 5"],
        );
        assert_eq!(evidence(&mpi)["ranks"], evidence(&nccl)["ranks"]);
    }
}

#[test]
fn saves_and_stops_come_after_the_steps_that_they_are_asked_for() {
    if !mpirun_or_skip() {
        return;
    }
    let pair = Pair::new();
    let sets = ["checkpoint.every_steps=4", "checkpoint.keep_last=9"];
    let _ = pair.over_nccl("whole", &sets, &[]).expect_code(0);
    let saved = |run: &str| -> Vec<u64> {
        pair.experiment.saves(run).iter().map(|save| save["step"].as_u64().unwrap()).collect()
    };
    // Later ones may be put off, while the one before is being written.
    let saves = saved("whole");
    assert!(saves[0] == 4 && saves.contains(&15) && saves.contains(&30), "{saves:?}");
    for step in [1, 7, 15, 29] {
        let run = format!("stopped after {step}");
        let until = format!("step:{step}");
        let _ = pair.over_nccl(&run, &sets, &["--stop-after", &until]).expect_code(STOPPED);
        assert_eq!(pair.experiment.steps_so_far(&run), step);
        let _ = pair.over_nccl(&run, &sets, &[]).expect_code(0);
        assert!(pair.result(&run) == pair.result("whole"), "{run}: another run");
    }
    // By a signal, at a step of its own choice.
    let environment = [("WRN_DIST_NCCL", pair.double.clone())];
    let arguments = Pair::arguments(&["comm.backend=nccl", sets[0], sets[1]], &[]);
    let mut running = pair.experiment.start("signalled", 2, &arguments, &environment);
    running.wait_until("the third step", |_| pair.experiment.steps_so_far("signalled") >= 3);
    running.signal_rank(1, "USR1");
    let _ = running.wait().expect_code(STOPPED);
    let _ = pair.over_nccl("signalled", &sets, &[]).expect_code(0);
    assert!(pair.result("signalled") == pair.result("whole"), "stopped by a signal: another run");
}

#[test]
fn the_next_step_is_launched_before_one_is_settled_unless_something_comes_between() {
    if !mpirun_or_skip() {
        return;
    }
    let pair = Pair::new();
    let sets = ["train.check_replicas_every=7"];
    let _ = pair.over_nccl("nccl", &sets, &["--stop-after", "step:26"]).expect_code(STOPPED);
    let _ = pair.over_mpi("mpi", &sets, &[]).expect_code(0);
    let ahead = |run: &str| -> Vec<u64> {
        let steps = pair.experiment.metrics(run).into_iter().filter(|line| line["ahead"] == true);
        steps.map(|line| line["step"].as_u64().unwrap()).collect()
    };
    let between = [7, 14, 15, 21, 26];
    assert_eq!(ahead("nccl"), (1..26).filter(|step| !between.contains(step)).collect::<Vec<u64>>());
    assert_eq!(ahead("mpi"), [0; 0]);
}
