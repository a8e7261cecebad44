//! A run that was stopped and started again is the same run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

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
fn a_stopped_run_goes_on_bit_for_bit_with_the_order_of_sums_that_its_ranks_have() {
    let experiment = experiment();
    for ranks in [1, 2] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let whole = format!("whole {ranks}");
        let _ = experiment.train(&whole, ranks, &[]).expect_code(0);
        let name = format!("parts {ranks}");
        for stop in ["step:1", "step:9", "epoch:2"] {
            let _ = experiment.train(&name, ranks, &["--stop-after", stop]).expect_code(STOPPED);
        }
        let _ = experiment.train(&name, ranks, &[]).expect_code(0);
        assert!(experiment.checkpoint(&name) == experiment.checkpoint(&whole), "{name}");
        let metrics = [&name, &whole].map(|name| metrics_without_times(experiment.metrics(name)));
        assert!(metrics[0] == metrics[1], "{name}: metrics differ: {:#?}", metrics[0]);
    }
}

/// A run that was stopped on `before` ranks goes on on others, each time in a folder of its own: in the loss of its
/// first step only the order of sums makes a difference.
fn expect_the_same_first_loss(before: usize) {
    let experiment = experiment();
    let _ = experiment.train("stopped", before, &["--stop-after", "step:9"]).expect_code(STOPPED);
    let stopped = experiment.path("stopped");
    let losses = [1, 2, 4].map(|after| {
        let name = format!("on {after}");
        let more = ["--resume", stopped.to_str().unwrap(), "--stop-after", "step:10"];
        let _ = experiment.train(&name, after, &more).expect_code(STOPPED);
        let metrics = experiment.metrics(&name);
        assert_eq!((metrics.len(), &metrics[0]["step"]), (1, &10.into()), "{metrics:?}");
        metrics[0]["loss"].as_f64().unwrap()
    });
    let _ = experiment.train("stopped", before, &["--stop-after", "step:10"]).expect_code(STOPPED);
    let expected = experiment.metrics("stopped").pop().unwrap()["loss"].as_f64().unwrap();
    assert!(expected > 0.1, "{expected} is too small to tell losses apart");
    for loss in losses {
        assert!(
            (loss - expected).abs() <= 1e-6 * expected,
            "from {before} ranks: {losses:?}, not {expected}"
        );
    }
}

#[test]
fn a_run_goes_on_with_the_same_loss_on_another_number_of_ranks() {
    if mpirun_or_skip() {
        expect_the_same_first_loss(2);
    }
}

#[test]
#[ignore = "long"]
fn a_run_goes_on_with_the_same_loss_from_any_number_of_ranks_to_any_other() {
    if mpirun_or_skip() {
        for before in [1, 4] {
            expect_the_same_first_loss(before);
        }
    }
}

/// Where a run is stopped, of three epochs of six steps.
#[derive(Clone, Copy, Debug)]
enum Stop {
    FirstStep,
    MidEpoch,
    LastStepOfAnEpoch,
    BetweenEpochs,
    DuringEvaluation,
}

/// What is switched on.
#[derive(Clone, Copy, Debug)]
enum Setting {
    Plain,
    Everything,
}

const STOPS: [Stop; 5] =
    [Stop::FirstStep, Stop::MidEpoch, Stop::LastStepOfAnEpoch, Stop::BetweenEpochs, Stop::DuringEvaluation];

/// What a run comes to: its metrics, its latest checkpoint, and the averaged weights where there are any.
type Outcome = (Vec<serde_json::Value>, [Vec<u8>; 2], Option<Vec<u8>>);

/// Runs of one setting, and what all of them should come to.
struct Matrix {
    setting: Setting,
    /// `train.determinism`
    determinism: &'static str,
    experiment: Experiment,
    expected: Outcome,
}

impl Matrix {
    /// With `determinism: world`, so that one undisturbed run stands for all numbers of ranks.
    fn new(setting: Setting) -> Self {
        Self::of_ranks(setting, "train.determinism=world", 1)
    }

    /// As an undisturbed run on so many ranks, with an evaluation that is long enough to be interrupted.
    fn of_ranks(setting: Setting, determinism: &'static str, ranks: usize) -> Self {
        let sections = match setting {
            Setting::Plain => {
                "model: {arch: wrn-10-1}
train: {epochs: 3, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: step, rate: 0.1, milestones: [2], factor: 0.2}
"
            }
            Setting::Everything => {
                "model: {arch: wrn-10-1, dropout: 0.3, shortcut_dropout: 0.1, stochastic_depth: 0.5}
train: {epochs: 3, global_batch: 32, micro_batch: 4, threads: 1, memory: recompute,
  averaging: {decay: 0.9, every_steps: 2, warmup_epochs: 1}}
optimizer: {reset_momentum_at_milestones: true}
schedule: {kind: step, rate: 0.1, milestones: [2], factor: 0.2, warmup_epochs: 0.5}
"
            }
        };
        // Averages are evaluated, too, which takes as long again.
        let test = if matches!(setting, Setting::Plain) { 2400 } else { 1200 };
        let experiment = Experiment::new(FashionMnist { train: 6 * 32, test }, sections);
        let whole = experiment.train("whole", ranks, &Self::options(setting, determinism)).expect_code(0);
        assert!(whole.stdout.contains("test accuracy"), "{}", whole.stdout);
        let expected = Self::result(&experiment, "whole");
        assert_eq!(expected.0.len(), 3 * 6 + 3, "a line a step and a line an epoch");
        assert_eq!(expected.2.is_some(), matches!(setting, Setting::Everything));
        Matrix { setting, determinism, experiment, expected }
    }

    fn options(setting: Setting, determinism: &'static str) -> Vec<&'static str> {
        let augmentation = match setting {
            Setting::Plain => &["data.flip=false"][..],
            Setting::Everything => &["data.mixup=0.4", "data.cutmix=1.0", "data.erase=0.2"],
        };
        augmentation.iter().chain([&determinism]).flat_map(|set| ["--set", set]).collect()
    }

    fn result(experiment: &Experiment, name: &str) -> Outcome {
        let averaged = std::fs::read(experiment.checkpoint_folder(name).join("averaged.safetensors"));
        (metrics_without_times(experiment.metrics(name)), experiment.checkpoint(name), averaged.ok())
    }

    /// Stops at `stop` on `before` ranks, goes on on `after`, and expects the undisturbed run.
    fn check(&self, stop: Stop, before: usize, after: usize) {
        let name = format!("{stop:?} {before} to {after}");
        let what = format!("{:?}, {}, {name}", self.setting, self.determinism);
        let more = Self::options(self.setting, self.determinism);
        let with = |stop| [&more[..], &["--stop-after", stop]].concat();
        let outcome = match stop {
            Stop::FirstStep => self.experiment.train(&name, before, &with("step:1")),
            Stop::MidEpoch => self.experiment.train(&name, before, &with("step:10")),
            Stop::LastStepOfAnEpoch => self.experiment.train(&name, before, &with("step:6")),
            Stop::BetweenEpochs => self.experiment.train(&name, before, &with("epoch:1")),
            Stop::DuringEvaluation => self.experiment.stop_in_evaluation(&name, before, 12, &more),
        };
        let _ = outcome.expect_code(STOPPED);
        let lines =
            |kind: &str| self.experiment.metrics(&name).iter().filter(|line| line["kind"] == kind).count();
        let expected = match stop {
            Stop::FirstStep => (1, 0),
            Stop::MidEpoch => (10, 1),
            Stop::LastStepOfAnEpoch => (6, 0),
            Stop::BetweenEpochs => (6, 1),
            Stop::DuringEvaluation => (12, 1),
        };
        assert_eq!((lines("step"), lines("epoch")), expected, "{what}: it stopped somewhere else");
        let _ = self.experiment.train(&name, after, &more).expect_code(0);
        let result = Self::result(&self.experiment, &name);
        assert!(result.0 == self.expected.0, "{what}: metrics differ: {:#?}", result.0);
        assert!(result.1[0] == self.expected.1[0], "{what}: weights or running statistics differ");
        assert!(result.1[1] == self.expected.1[1], "{what}: momentum differs");
        assert!(result.2 == self.expected.2, "{what}: averaged weights differ");
    }
}

#[test]
fn wherever_a_run_stops_it_goes_on_bit_for_bit_on_any_number_of_ranks() {
    if !mpirun_or_skip() {
        return;
    }
    let everything = Matrix::new(Setting::Everything);
    everything.check(Stop::FirstStep, 1, 1);
    everything.check(Stop::MidEpoch, 2, 2);
    everything.check(Stop::LastStepOfAnEpoch, 2, 1);
    everything.check(Stop::BetweenEpochs, 4, 2);
    everything.check(Stop::DuringEvaluation, 2, 4);
    let plain = Matrix::new(Setting::Plain);
    plain.check(Stop::MidEpoch, 1, 4);
    plain.check(Stop::DuringEvaluation, 1, 1);
}

#[test]
#[ignore = "long"]
fn wherever_a_run_stops_it_goes_on_bit_for_bit_all_cases() {
    if !mpirun_or_skip() {
        return;
    }
    for setting in [Setting::Plain, Setting::Everything] {
        let matrix = Matrix::new(setting);
        for stop in STOPS {
            for (before, after) in [(1, 1), (2, 2), (4, 4), (1, 4), (2, 1), (4, 2)] {
                matrix.check(stop, before, after);
            }
        }
    }
}

#[test]
#[ignore = "long"]
fn wherever_a_run_stops_it_goes_on_bit_for_bit_on_as_many_ranks_where_sums_depend_on_these() {
    if !mpirun_or_skip() {
        return;
    }
    for ranks in [2, 4] {
        let matrix = Matrix::of_ranks(Setting::Everything, "train.determinism=run", ranks);
        for stop in STOPS {
            matrix.check(stop, ranks, ranks);
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
    let refused = experiment.train("run", 1, &["--resume", "none"]).expect_code(2);
    assert!(refused.stderr.contains("already holds a run"), "{}", refused.stderr);
}

#[test]
fn a_checkpoint_of_one_run_does_not_enter_the_folder_of_another() {
    let experiment = experiment();
    let _ = experiment.train("one", 1, &["--stop-after", "step:4"]).expect_code(STOPPED);
    let _ = experiment.train("two", 1, &["--set", "seed=8", "--stop-after", "step:2"]).expect_code(STOPPED);
    let before = experiment.metrics("two");
    let one = experiment.path("one");
    let refused = experiment.train("two", 1, &["--resume", one.to_str().unwrap()]).expect_code(2);
    assert!(refused.stderr.contains("already holds a run"), "{}", refused.stderr);
    assert_eq!(experiment.metrics("two"), before);
}

#[test]
fn a_run_goes_on_in_a_folder_of_its_own_or_from_an_earlier_checkpoint() {
    let experiment = experiment();
    let _ = experiment.train("whole", 1, &["--set", "checkpoint.keep_last=9"]).expect_code(0);
    let _ = experiment.train("one", 1, &["--stop-after", "step:8"]).expect_code(STOPPED);
    let one = experiment.path("one");
    let from = ["--resume", one.to_str().unwrap()];
    let stopped =
        experiment.train("two", 1, &[&from[..], &["--stop-after", "step:10"]].concat()).expect_code(STOPPED);
    assert!(stopped.stdout.contains("the same command without --resume, and without"), "{}", stopped.stdout);
    let refused = experiment.train("two", 1, &from).expect_code(2);
    assert!(refused.stderr.contains("leave --resume out to go on with that run"), "{}", refused.stderr);
    let _ = experiment.train("two", 1, &[]).expect_code(0);
    assert!(experiment.checkpoint("two") == experiment.checkpoint("whole"));

    let before = (metrics_without_times(experiment.metrics("whole")), experiment.checkpoint("whole"));
    let earlier = experiment.path("whole/checkpoints/step-000000012");
    let _ = experiment.train("whole", 1, &["--resume", earlier.to_str().unwrap()]).expect_code(0);
    assert!(before.0 == metrics_without_times(experiment.metrics("whole")));
    assert!(before.1 == experiment.checkpoint("whole"));
}

#[test]
fn a_run_that_the_user_takes_back_never_meets_its_later_checkpoints_again() {
    let experiment = experiment();
    let policy = ["--set", "train.on_nan=roll-back", "--set", "checkpoint.keep_last=9"];
    let train = |more: &[&str]| experiment.train("run", 1, &[&policy[..], more].concat());
    let _ = train(&[]).expect_code(0);
    let folder = experiment.path("run/checkpoints");
    let at = |step: u64| folder.join(format!("step-{step:09}"));
    let steps = || [6, 12, 18, 24].into_iter().filter(|&step| at(step).exists()).collect::<Vec<_>>();
    assert_eq!(steps(), [6, 12, 18, 24]);

    // As if it were killed before its first save: what goes on then is the same course.
    let back = train(&["--resume", at(12).to_str().unwrap(), "--stop-after", "step:12"]).expect_code(0);
    assert!(back.stdout.contains("checkpoint of step 18, 24\n"), "{}", back.stdout);
    assert_eq!(steps(), [6, 12]);
    assert!(folder.join("abandoned").join("step-000000024").join("state.json").exists());
    assert_eq!(experiment.steps_so_far("run"), 12);

    let resumed = train(&["--inject-fault", "14:0:nan"]).expect_code(0);
    assert!(resumed.stdout.contains("resumed after step 12 "), "{}", resumed.stdout);
    assert!(resumed.stdout.contains("; back to the checkpoint of step 12 "), "{}", resumed.stdout);
    assert_eq!(steps(), [6, 12, 18, 24]);

    // What was set aside belongs to another course, which can go on in a folder of its own.
    let abandoned = folder.join("abandoned").join("step-000000018");
    let from = ["--resume", abandoned.to_str().unwrap()];
    let refused = train(&from).expect_code(2);
    assert!(refused.stderr.contains("is not part of it; leave --resume out"), "{}", refused.stderr);
    let _ = experiment.train("other", 1, &[&policy[..], &from].concat()).expect_code(0);
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
    let experiment = experiment();
    let mut first = experiment.start("run", 1, &["--set", "train.epochs=100000"], &[]);
    first.wait_until("it began", |_| experiment.path("run/metrics.jsonl").exists());
    let refused = experiment.train("run", 1, &["--set", "train.epochs=100000"]).expect_code(1);
    assert!(refused.stderr.contains("in use by another run"), "{}", refused.stderr);
    first.signal_rank(0, "TERM");
    let _ = first.wait().expect_code(STOPPED);
}

#[test]
fn a_folder_that_another_run_has_locked_is_not_even_read() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &["--stop-after", "step:3"]).expect_code(STOPPED);
    std::fs::write(experiment.checkpoint_folder("run").join("state.json"), "torn").unwrap();
    let lock = std::fs::File::open(experiment.path("run/lock")).unwrap();
    lock.lock().unwrap();
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    assert!(refused.stderr.contains("in use by another run"), "{}", refused.stderr);
    drop(lock);
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    assert!(refused.stderr.contains("state.json"), "{}", refused.stderr);
}

#[test]
fn a_checkpoint_that_would_raise_or_turn_round_the_learning_rate_is_refused() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &["--stop-after", "step:3"]).expect_code(STOPPED);
    let folder = experiment.checkpoint_folder("run");
    let text = std::fs::read_to_string(folder.join("state.json")).unwrap();
    for factor in [-1.0, 0.0, 1e300] {
        let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
        let way_back = serde_json::json!({"from_step": 2, "to_step": 1, "reason": "", "rate_factor": factor});
        state["health"]["roll_backs"] = serde_json::json!([way_back]);
        std::fs::write(folder.join("state.json"), state.to_string()).unwrap();
        let sums = "sha256sum optimizer.safetensors state.json weights.safetensors > SHA256SUMS";
        let summed = Command::new("sh").args(["-c", sums]).current_dir(&folder).status().unwrap();
        assert!(summed.success());
        let refused = experiment.train("run", 1, &[]).expect_code(1);
        assert!(refused.stderr.contains("times the scheduled learning rate"), "{factor}: {}", refused.stderr);
    }
}

#[test]
fn a_run_that_began_with_weights_goes_on_without_their_file() {
    let experiment = experiment();
    let _ = experiment.train("before", 1, &["--stop-after", "epoch:1"]).expect_code(STOPPED);
    let weights = experiment.path("weights");
    std::fs::rename(experiment.checkpoint_folder("before"), &weights).unwrap();
    let set = format!("model.weights={}", weights.display());
    let more = ["--set", &set];
    let _ = experiment.train("whole", 1, &more).expect_code(0);
    let _ =
        experiment.train("parts", 1, &[&more[..], &["--stop-after", "step:3"]].concat()).expect_code(STOPPED);

    // Other weights under the same name are another run.
    let elsewhere = experiment.path("elsewhere");
    std::fs::rename(&weights, &elsewhere).unwrap();
    let other = experiment.path("whole/checkpoints").join("step-000000024");
    std::fs::rename(&other, &weights).unwrap();
    let refused = experiment.train("parts", 1, &more).expect_code(1);
    assert!(refused.stderr.contains("model.weights_sha256 was "), "{}", refused.stderr);
    std::fs::rename(&weights, &other).unwrap();

    let _ = experiment.train("parts", 1, &more).expect_code(0);
    assert!(experiment.checkpoint("parts") == experiment.checkpoint("whole"));
    let refused = experiment.train("new", 1, &more).expect_code(2);
    assert!(refused.stderr.contains("model.weights"), "a new run needs them: {}", refused.stderr);
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
