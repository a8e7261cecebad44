//! A run that was stopped and started again is the same run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip};

const STOPPED: i32 = 75;

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 6 * 32, test: 64 },
        "model: {arch: wrn-10-1, dropout: 0.3}
train: {epochs: 4, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: cosine, rate: 0.1, warmup_epochs: 1}
",
    )
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let experiment = experiment();
    for ranks in [1, 2] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let whole = format!("whole {ranks}");
        let _ = experiment.train(&whole, ranks, &[]).expect_code(0);
        let expected = (metrics_without_times(experiment.metrics(&whole)), experiment.checkpoint(&whole));
        for stop in ["epoch:2", "step:1", "step:9"] {
            let name = format!("{stop} {ranks}");
            let _ = experiment.train(&name, ranks, &["--stop-after", stop]).expect_code(STOPPED);
            let _ = experiment.train(&name, ranks, &[]).expect_code(0);
            let result = (metrics_without_times(experiment.metrics(&name)), experiment.checkpoint(&name));
            assert!(result.0 == expected.0, "{name}: metrics differ: {:#?}", result.0);
            assert!(result.1 == expected.1, "{name}: the final checkpoint differs");
        }
    }
}

#[test]
fn a_finished_run_is_left_alone_and_none_refuses_it() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let before = (experiment.metrics("run"), experiment.checkpoint("run"));
    let again = experiment.train("run", 1, &[]).expect_code(0);
    assert!(again.stdout.contains("test accuracy"), "{}", again.stdout);
    assert!(before == (experiment.metrics("run"), experiment.checkpoint("run")));
    let refused = experiment.train("run", 1, &["--resume", "none"]).expect_code(1);
    assert!(refused.stderr.contains("already holds a run"), "{}", refused.stderr);
}

#[test]
fn a_signal_saves_and_stops_and_the_run_goes_on_from_there() {
    use std::process::{Command, Stdio};
    let experiment = experiment();
    let whole = experiment.train("whole", 1, &["--set", "train.epochs=16"]).expect_code(0);
    let out = experiment.path("signalled");
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("wrn-dist");
    let mut child = Command::new(binary)
        .args(["train", "--set", "train.epochs=16", "--config", experiment.config(), "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = out.join("metrics.jsonl");
    while std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 10 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(STOPPED), "{whole:?}");
    let _ = experiment.train("signalled", 1, &["--set", "train.epochs=16"]).expect_code(0);
    assert!(experiment.checkpoint("signalled") == experiment.checkpoint("whole"));
}

#[test]
fn a_run_that_stands_at_its_stop_trains_nothing_more() {
    let experiment = experiment();
    for _ in 0..3 {
        let _ = experiment.train("run", 1, &["--stop-after", "epoch:2"]).expect_code(STOPPED);
        let steps = experiment.metrics("run").iter().filter(|line| line["kind"] == "step").count();
        assert_eq!(steps, 12, "two epochs of six steps");
    }
}

#[test]
fn a_checkpoint_of_one_run_does_not_enter_the_folder_of_another() {
    let experiment = experiment();
    let _ = experiment.train("one", 1, &["--stop-after", "step:4"]).expect_code(STOPPED);
    let _ = experiment.train("two", 1, &["--set", "seed=8", "--stop-after", "step:2"]).expect_code(STOPPED);
    let before = experiment.metrics("two");
    let one = experiment.path("one");
    let refused = experiment.train("two", 1, &["--resume", one.to_str().unwrap()]).expect_code(1);
    assert!(refused.stderr.contains("already holds a run"), "{}", refused.stderr);
    assert_eq!(experiment.metrics("two"), before);
}

#[test]
fn a_key_that_was_removed_since_the_checkpoint_is_noticed() {
    let experiment = experiment();
    let with = ["--set", "schedule.final_rate=0.01", "--stop-after", "step:1"];
    let _ = experiment.train("run", 1, &with).expect_code(STOPPED);
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    assert!(refused.stderr.contains("schedule.final_rate was 0.01, is null"), "{}", refused.stderr);
}

#[test]
fn two_runs_do_not_share_a_folder() {
    use std::process::{Command, Stdio};
    let experiment = experiment();
    let out = experiment.path("run");
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("wrn-dist");
    let mut first = Command::new(binary)
        .args(["train", "--set", "train.epochs=100000", "--config", experiment.config(), "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !out.join("metrics.jsonl").exists() {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let refused = experiment.train("run", 1, &["--set", "train.epochs=100000"]).expect_code(1);
    assert!(refused.stderr.contains("in use by another run"), "{}", refused.stderr);
    Command::new("kill").args(["-TERM", &first.id().to_string()]).status().unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(STOPPED));
}

#[test]
fn another_number_of_ranks_is_told_which_key_to_write() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let derived = ["--set", "train.micro_batch=null"];
    let stop = [&derived[..], &["--stop-after", "step:1"]].concat();
    let _ = experiment.train("run", 2, &stop).expect_code(75);
    let refused = experiment.train("run", 1, &derived).expect_code(1);
    assert!(
        refused.stderr.contains("train.micro_batch was 16, is 32 (without this key it is"),
        "{}",
        refused.stderr
    );
    let advice = "train.micro_batch=16";
    assert!(refused.stderr.contains(&format!("--set {advice} goes on as before")), "{}", refused.stderr);
    let _ = experiment.train("run", 1, &["--set", advice, "--stop-after", "step:2"]).expect_code(75);
}
