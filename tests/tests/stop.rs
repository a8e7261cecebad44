//! A run that is asked to stop, by whatever way and on whichever rank, saves and ends with 75 on all of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, start_one_host_script};

const STOPPED: i32 = 75;
/// No run ends by itself while a test looks at it.
const LONG: [&str; 2] = ["--set", "train.epochs=100000"];

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 6 * 32, test: 64 },
        "model: {arch: wrn-10-1, dropout: 0.3}
train: {epochs: 40, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: cosine, rate: 0.1, warmup_epochs: 1}
",
    )
}

#[test]
fn a_signal_to_any_rank_stops_all_at_the_same_step_and_the_run_goes_on_from_there() {
    let experiment = experiment();
    for (ranks, signals) in [(1, &[("INT", 0)][..]), (3, &[("USR1", 2), ("TERM", 0), ("USR2", 1)])] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        // As many micro batches on each of three ranks.
        let more = ["--set", "train.global_batch=24"];
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name} {ranks}"));
        let _ = experiment.train(&whole, ranks, &more).expect_code(0);
        for (signal, rank) in signals {
            let before = experiment.steps_so_far(&parts);
            let mut running = experiment.start(&parts, ranks, &more, &[]);
            running.wait_until("some steps were done", |_| experiment.steps_so_far(&parts) > before + 5);
            running.signal_rank(*rank, signal);
            let outcome = running.wait().expect_code(STOPPED);
            let step = experiment.steps_so_far(&parts);
            let said = format!("after step {step}; the same command goes on from here");
            assert!(outcome.stdout.contains(&said), "SIG{signal} to {rank}: {}", outcome.stdout);
            let by =
                if *rank == 0 { format!("stopped by SIG{signal} ") } else { "stopped on request ".into() };
            assert!(outcome.stdout.contains(&by), "SIG{signal} to {rank}: {}", outcome.stdout);
            let saved = experiment.checkpoint_folder(&parts);
            assert!(saved.ends_with(format!("step-{step:09}")), "step {step}: {}", saved.display());
        }
        let _ = experiment.train(&parts, ranks, &more).expect_code(0);
        assert!(experiment.checkpoint(&parts) == experiment.checkpoint(&whole), "{ranks} ranks");
        let metrics = [&parts, &whole].map(|name| metrics_without_times(experiment.metrics(name)));
        assert!(metrics[0] == metrics[1], "{ranks} ranks: metrics differ");
    }
}

#[test]
fn a_run_that_lacks_only_its_last_evaluation_is_evaluated_also_with_stop_after_its_last_step() {
    let experiment = Experiment::new(
        FashionMnist { train: 3 * 32, test: 2400 },
        "model: {arch: wrn-10-1}
train: {epochs: 1, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: constant, rate: 0.05}
",
    );
    let last = ["--stop-after", "step:3"];
    let _ = experiment.stop_in_evaluation("run", 1, 3, &last).expect_code(STOPPED);
    assert!(experiment.metrics("run").iter().all(|line| line["kind"] != "epoch"));
    let outcome = experiment.train("run", 1, &last).expect_code(0);
    assert!(outcome.stdout.contains("test accuracy"), "{}", outcome.stdout);
}

#[test]
fn under_the_launch_script_every_signal_is_a_request() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    for signal in ["TERM", "INT", "USR2"] {
        let out = experiment.path(signal);
        let arguments = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
        let mut script = start_one_host_script(2, &[&arguments[..], &LONG].concat());
        script.wait_until("some steps were done", |_| experiment.steps_so_far(signal) > 5);
        script.signal(signal);
        let outcome = script.wait().expect_code(STOPPED);
        assert!(outcome.stdout.contains("stopped by SIGUSR1 after step "), "SIG{signal}: {}", outcome.stdout);
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let experiment = Experiment::new(
        FashionMnist { train: 512, test: 16 },
        "model: {arch: wrn-16-4}
train: {epochs: 2, global_batch: 512, threads: 1}
schedule: {kind: constant, rate: 0.1}
",
    );
    let mut running = experiment.start("run", 1, &[], &[]);
    running.wait_until("it began", |_| experiment.path("run/metrics.jsonl").exists());
    running.signal_rank(0, "TERM");
    // The same request by another way.
    running.signal_rank(0, "TERM");
    std::thread::sleep(Duration::from_millis(1200));
    let begin = Instant::now();
    running.signal_rank(0, "TERM");
    let _ = running.wait().expect_code(128 + 15);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[test]
fn a_run_stops_by_itself_when_its_time_is_over() {
    let experiment = experiment();
    let more = [&LONG[..], &["--set", "train.max_wall=3s"]].concat();
    for ranks in [1, 2] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let outcome = experiment.train(&format!("limited {ranks}"), ranks, &more).expect_code(STOPPED);
        assert!(outcome.stdout.contains("stopped by train.max_wall (3s) after step"), "{}", outcome.stdout);
        let took = outcome.duration.as_secs_f64();
        assert!((3.0..20.0).contains(&took), "{took} s");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let job = [("SLURM_JOB_START_TIME", now.to_string()), ("SLURM_JOB_END_TIME", (now + 5).to_string())];
    let outcome = experiment.start("slurm", 1, &LONG, &job).wait().expect_code(STOPPED);
    assert!(outcome.stdout.contains("before the end of the Slurm job's time"), "{}", outcome.stdout);
    assert!(outcome.duration < Duration::from_secs(20), "{:?}", outcome.duration);
}

#[test]
fn a_limit_without_a_unit_is_refused() {
    let refused = experiment().train("run", 1, &["--set", "train.max_wall=90"]).expect_code(2);
    assert!(
        refused.stderr.contains("train.max_wall") && refused.stderr.contains("90s"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_run_that_stands_at_its_stop_trains_nothing_more_and_is_not_to_be_started_again() {
    let experiment = experiment();
    for (code, said) in
        [(STOPPED, "stopped by --stop-after after step 12"), (0, "nothing to do"), (0, "nothing to do")]
    {
        let outcome = experiment.train("run", 1, &["--stop-after", "epoch:2"]).expect_code(code);
        assert!(outcome.stdout.contains(said), "{}", outcome.stdout);
        let steps = experiment.metrics("run").iter().filter(|line| line["kind"] == "step").count();
        assert_eq!(steps, 12, "two epochs of six steps");
    }
}
