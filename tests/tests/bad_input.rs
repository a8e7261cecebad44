//! Bad input gives one clear sentence, printed once, and the promised exit code, on every rank count.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use end_to_end::{Experiment, FashionMnist, Outcome, mpirun_or_skip};
use flate2::read::GzDecoder;

const SECONDS: Duration = Duration::from_secs(20);
const SECTIONS: &str = "model: {arch: wrn-10-1}
train:
  epochs: 1
  global_batch: 16
  micro_batch: 4
  threads: 1
schedule: {kind: constant, rate: 0.1}
";

fn experiment() -> Experiment {
    Experiment::new(FashionMnist { train: 64, test: 20 }, SECTIONS)
}

/// Runs on 1, 2 and 4 ranks and checks code, sentence, that it is printed once and that no run folder is
/// begun.
fn expect_error(experiment: &Experiment, more: &[&str], code: i32, parts: &[&str]) {
    for ranks in [1, 2, 4] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let Outcome { stderr, duration, .. } = experiment.train("run", ranks, more).expect_code(code);
        let sentences: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error")).collect();
        assert_eq!(sentences.len(), 1, "{ranks} ranks: printed once:\n{stderr}");
        for part in parts {
            assert!(sentences[0].contains(part), "{ranks} ranks: `{}` lacks `{part}`", sentences[0]);
        }
        assert!(duration < SECONDS, "{ranks} ranks took {duration:?}");
        assert!(!experiment.path("run").exists(), "nothing is begun");
    }
}

fn plain(experiment: &Experiment, name: &str) -> (std::path::PathBuf, Vec<u8>) {
    let packed = experiment.path(&format!("{name}.gz"));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut GzDecoder::new(fs::File::open(&packed).unwrap()), &mut bytes).unwrap();
    fs::remove_file(packed).unwrap();
    (experiment.path(name), bytes)
}

#[test]
fn a_truncated_idx_file_is_named() {
    let experiment = experiment();
    let (path, bytes) = plain(&experiment, "train-images-idx3-ubyte");
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    expect_error(&experiment, &[], 1, &["train-images-idx3-ubyte", &(bytes.len() - 100).to_string()]);
}

#[test]
fn a_label_out_of_range_is_named_with_its_sample() {
    let experiment = experiment();
    let (path, mut bytes) = plain(&experiment, "train-labels-idx1-ubyte");
    bytes[8 + 5] = 10;
    fs::write(&path, &bytes).unwrap();
    expect_error(&experiment, &[], 1, &["train-labels-idx1-ubyte", "5", "10", "0"]);
}

#[test]
fn a_cifar_file_of_the_wrong_length_is_named() {
    let experiment = experiment();
    let folder = experiment.path("cifar");
    fs::create_dir(&folder).unwrap();
    for batch in 1..=5 {
        fs::write(
            folder.join(format!("data_batch_{batch}.bin")),
            vec![0; 3073 * 4 - usize::from(batch == 3)],
        )
        .unwrap();
    }
    fs::write(folder.join("test_batch.bin"), vec![0; 3073 * 4]).unwrap();
    let path = format!("data.path={}", folder.display());
    let sets = ["--set", "data.kind=cifar10", "--set", &path];
    expect_error(&experiment, &sets, 1, &["data_batch_3.bin", "3073"]);
}

#[test]
fn a_misspelt_key_is_named_with_its_file_and_line() {
    let experiment = experiment();
    let text = fs::read_to_string(experiment.config()).unwrap();
    fs::write(experiment.config(), text.replace("  global_batch:", "  global_bath:")).unwrap();
    let line = format!("{}:6", experiment.config());
    expect_error(&experiment, &[], 2, &[&line, "train.global_bath", "global_batch"]);
}

#[test]
fn a_misspelt_or_impossible_override_is_named() {
    let experiment = experiment();
    expect_error(
        &experiment,
        &["--set", "train.epoch=3"],
        2,
        &["--set train.epoch=3", "train.epoch", "epochs"],
    );
    expect_error(
        &experiment,
        &["--set", "model.arch=wrn-11-1"],
        2,
        &["--set model.arch=wrn-11-1", "model.arch"],
    );
    expect_error(
        &experiment,
        &["--set", "schedule.rate=fast"],
        2,
        &["--set schedule.rate=fast", "schedule.rate"],
    );
}

#[test]
fn a_global_batch_that_ranks_and_micro_batch_do_not_divide_is_refused_with_its_line() {
    let experiment = experiment();
    for ranks in [1, 2, 4] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let outcome = experiment.train("run", ranks, &["--set", "train.micro_batch=5"]).expect_code(2);
        let sentence = outcome.stderr.lines().find(|line| line.starts_with("error")).unwrap();
        for part in
            [&format!("{}:6", experiment.config()), "train.global_batch", "16", "5", &ranks.to_string()]
        {
            assert!(sentence.contains(part), "`{sentence}` lacks `{part}`");
        }
    }
}

#[test]
fn a_missing_data_folder_is_named() {
    let parts = [
        "--set data.path=/nowhere/at/all: data.path: /nowhere/at/all cannot be opened",
        "expected the data set's",
    ];
    expect_error(&experiment(), &["--set", "data.path=/nowhere/at/all"], 2, &parts);
}

#[test]
fn a_command_line_that_cannot_be_read_is_complained_of_once() {
    expect_error(&experiment(), &["--inject-fault", "5:1:nothing"], 2, &["--inject-fault"]);
}

#[test]
fn a_fault_that_would_never_happen_is_refused() {
    let experiment = experiment();
    for fault in ["99:0:kill", "1:7:kill"] {
        expect_error(
            &experiment,
            &["--inject-fault", fault],
            2,
            &["--inject-fault", "steps 1 to 4", "never comes"],
        );
    }
    // The network fits into the first bucket.
    let parts = ["--inject-fault", "one bucket", "comm.first_bucket_kib"];
    expect_error(&experiment, &["--inject-fault", "2:0:reorder"], 2, &parts);
}

#[test]
fn a_checkpoint_of_another_architecture_or_experiment_is_refused() {
    let experiment = experiment();
    let _ = experiment.train("first", 1, &[]).expect_code(0);
    let checkpoint = experiment.checkpoint_folder("first");
    let resume = ["--resume", checkpoint.to_str().unwrap()];
    let with = |set: &'static str| [&resume[..], &["--set", set]].concat();
    expect_error(
        &experiment,
        &with("model.arch=wrn-10-2"),
        1,
        &["wrn-10-1", "wrn-10-2", checkpoint.to_str().unwrap()],
    );
    expect_error(&experiment, &with("seed=8"), 1, &["seed was 7, is 8"]);
}

#[test]
fn a_checkpoint_that_is_not_there_is_wrong_usage() {
    let parts = ["there is no checkpoint", "at /nowhere/at/all"];
    expect_error(&experiment(), &["--resume", "/nowhere/at/all"], 2, &parts);
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let experiment = experiment();
    let _ = experiment.train("first", 1, &[]).expect_code(0);
    let checkpoint = experiment.checkpoint_folder("first");
    let weights = checkpoint.join("weights.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let resume = ["--resume", checkpoint.to_str().unwrap()];
    expect_error(&experiment, &resume, 1, &["weights.safetensors", "damaged"]);
}

#[test]
fn a_loss_that_is_not_finite_ends_all_ranks_with_one_sentence() {
    let experiment = experiment();
    for ranks in [1, 2] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let run = format!("run {ranks}");
        let sets = ["--set", "schedule.rate=1e30", "--set", "train.epochs=20"];
        let outcome = experiment.train(&run, ranks, &sets).expect_code(1);
        assert_eq!(outcome.stderr.matches("the loss became").count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn values_out_of_range_are_refused_with_their_key_before_anything_begins() {
    let experiment = experiment();
    for set in [
        "data.workers=5000",
        "data.prefetch=0",
        "data.pad_to=29",
        "data.channels=2",
        "data.normalize={mean: [.nan, 0, 0], std: [1, 1, 1]}",
        "train.threads=100000",
        "train.epochs=0",
        "comm.bucket_kib=18014398509481984",
        "comm.timeout_s=0",
        "model.classes=4294967295",
        "optimizer.momentum=0",
        "schedule.rate=-1",
    ] {
        let key = set.split('=').next().unwrap();
        let outcome = experiment.train("run", 1, &["--set", set]).expect_code(2);
        assert!(outcome.stderr.contains(key), "`{}` lacks `{key}`", outcome.stderr);
        assert!(!experiment.path("run").exists(), "{set}: nothing is begun");
    }
}

#[test]
fn a_fault_that_nobody_would_notice_is_refused_and_one_before_the_checkpoint_too() {
    let experiment = experiment();
    for fault in ["1:0:hang", "1:0:stop", "1:0:exit", "1:0:slow"] {
        let refused = experiment.train("run", 1, &["--inject-fault", fault]).expect_code(2);
        assert!(refused.stderr.contains("expected 2 ranks or more"), "{fault}: {}", refused.stderr);
        assert!(!experiment.path("run").exists(), "nothing is begun");
    }
    let with = |stop: &'static str, fault: &'static str| ["--stop-after", stop, "--inject-fault", fault];
    let refused = experiment.train("run", 1, &with("step:2", "3:0:nan")).expect_code(2);
    assert!(
        refused.stderr.contains("steps 1 to 2 are to come, on ranks 0 to 0, so step 3 "),
        "{}",
        refused.stderr
    );
    let _ = experiment.train("run", 1, &["--stop-after", "step:2"]).expect_code(75);
    let before = experiment.metrics("run");
    for (stop, fault, part) in [
        ("step:3", "2:0:nan", "steps 3 to 3 are to come, on ranks 0 to 0, so step 2 of rank 0 never comes"),
        ("step:2", "2:0:nan", "the run has no step left, so step 2 never comes"),
    ] {
        let refused = experiment.train("run", 1, &with(stop, fault)).expect_code(2);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
        assert_eq!(experiment.metrics("run"), before);
    }
}

#[test]
fn a_time_that_ranks_could_not_meet_within_is_refused_as_what_it_is() {
    expect_error(
        &experiment(),
        &["--set", "comm.timeout_s=0"],
        2,
        &["--set comm.timeout_s=0: comm.timeout_s: 0 is out of range; expected 1 to 604800"],
    );
}
