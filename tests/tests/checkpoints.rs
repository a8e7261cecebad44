//! What may befall a run's checkpoints, and what becomes of the run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, skip, wrn_dist};

const STOPPED: i32 = 75;

/// `epochs` of six steps.
fn experiment(epochs: u32) -> Experiment {
    Experiment::new(
        FashionMnist { train: 6 * 32, test: 64 },
        &format!(
            "model: {{arch: wrn-10-1, dropout: 0.3}}
train: {{epochs: {epochs}, global_batch: 32, micro_batch: 8, threads: 1}}
schedule: {{kind: cosine, rate: 0.1, warmup_epochs: 1}}
"
        ),
    )
}

fn expect_same(experiment: &Experiment, name: &str, whole: &str) {
    let metrics = [name, whole].map(|name| metrics_without_times(experiment.metrics(name)));
    assert!(metrics[0] == metrics[1], "{name}: metrics differ: {:#?}", metrics[0]);
    assert!(
        experiment.checkpoint(name) == experiment.checkpoint(whole),
        "{name}: the final checkpoint differs"
    );
}

fn change_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_named_and_passed_over_for_the_one_before_it() {
    let experiment = experiment(3);
    let often = ["--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep_last=3"];
    let _ = experiment.train("whole", 1, &often).expect_code(0);
    for file in ["weights.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"] {
        let run = file.replace('.', " ");
        let stop = [&often[..], &["--stop-after", "step:9"]].concat();
        let _ = experiment.train(&run, 1, &stop).expect_code(STOPPED);
        let damaged = experiment.checkpoint_folder(&run);
        change_a_byte(&damaged.join(file));
        // The save of step 8, unless that of step 6 took so long that it was put off.
        let saved: Vec<u64> =
            experiment.saves(&run).iter().filter_map(|save| save["step"].as_u64()).collect();
        assert_eq!(saved.last(), Some(&9));
        let before = saved[saved.len() - 2];
        let outcome = experiment.train(&run, 1, &often).expect_code(0);
        let warning = format!("warning: the checkpoint {} is damaged: ", damaged.display());
        assert!(outcome.stderr.contains(&warning), "{file}: {}", outcome.stderr);
        let resumed = format!("resumed after step {before} of 18");
        assert!(outcome.stdout.contains(&resumed), "{file}: {}", outcome.stdout);
        expect_same(&experiment, &run, "whole");
    }
    // Named by the user, nothing takes its place.
    let newest = experiment.checkpoint_folder("whole");
    change_a_byte(&newest.join("weights.safetensors"));
    let arguments = ["eval", "--config", experiment.config(), "--checkpoint", newest.to_str().unwrap()];
    let refused = wrn_dist(1, &arguments).expect_code(1);
    assert!(refused.stderr.contains("is damaged: weights.safetensors has "), "{}", refused.stderr);
}

#[test]
fn a_checkpoint_from_before_a_key_existed_is_gone_on_from_with_the_default() {
    let experiment = experiment(1);
    let _ = experiment.train("run", 1, &["--stop-after", "step:2"]).expect_code(STOPPED);
    experiment.change_state("run", |state| {
        let meaning = state["meaning"].as_object_mut().unwrap();
        assert_eq!(meaning.remove("precision.tf32").unwrap(), "false");
    });
    let refused = experiment.train("run", 1, &["--set", "precision.tf32=true"]).expect_code(1);
    assert!(refused.stderr.contains("precision.tf32 was false, is true"), "{}", refused.stderr);
    let _ = experiment.train("run", 1, &["--stop-after", "step:3"]).expect_code(STOPPED);
    experiment.change_state("run", |state| state["meaning"]["model.later"] = "\u{1b}[2J".into());
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    let sentence = "model.later was \\u{1b}[2J, and this version does not know that key";
    assert!(refused.stderr.contains(sentence), "{}", refused.stderr);
}

#[test]
fn a_state_that_no_run_saves_is_passed_over_and_a_pointer_that_names_nothing_is_told() {
    let experiment = experiment(1);
    let stop = |step: &'static str| ["--set", "checkpoint.keep_last=3", "--stop-after", step];
    let _ = experiment.train("run", 1, &stop("step:2")).expect_code(STOPPED);
    let _ = experiment.train("run", 1, &stop("step:3")).expect_code(STOPPED);
    experiment.change_state("run", |state| state["epoch_correct"] = 1_000_000.into());
    let outcome = experiment.train("run", 1, &stop("step:4")).expect_code(STOPPED);
    let warning =
        " is damaged: state.json says epoch_correct 1000000, expected at most 96; it is passed over";
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("resumed after step 2 of 6"), "{}", outcome.stdout);

    let latest = experiment.path("run/checkpoints/latest");
    fs::write(&latest, "nonsense").unwrap();
    let run = experiment.path("run");
    let eval = ["eval", "--config", experiment.config(), "--checkpoint", run.to_str().unwrap()];
    let told = "warning: ";
    for outcome in
        [wrn_dist(1, &eval).expect_code(0), experiment.train("run", 1, &stop("step:5")).expect_code(STOPPED)]
    {
        let line = outcome.stderr.lines().find(|line| line.contains("latest names no checkpoint")).unwrap();
        assert!(line.starts_with(told) && line.ends_with("step-000000004"), "{line}");
    }
}

#[test]
fn what_has_another_kind_than_a_run_gave_it_is_named_and_nothing_waits_for_it() {
    let experiment = experiment(1);
    for (name, kind) in [
        ("lock", "folder"),
        ("lock", "FIFO"),
        ("report", "file"),
        ("checkpoints", "file"),
        ("metrics.jsonl", "folder"),
        ("metrics.jsonl", "FIFO"),
        ("run.json", "FIFO"),
        ("checkpoints/latest", "folder"),
        ("checkpoints/latest", "FIFO"),
    ] {
        let run = format!("{} {kind}", name.replace('/', " "));
        let path = experiment.path(&run).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let found = match kind {
            "folder" => fs::create_dir(&path).map(|()| "it is a folder, expected a regular file"),
            "file" => fs::write(&path, "").map(|()| "it is a regular file, expected a folder"),
            _ => Command::new("mkfifo").arg(&path).status().map(|_| "it is a FIFO, expected a regular file"),
        };
        let sentence = format!("{}: {}", path.display(), found.unwrap());
        let outcome = experiment.train(&run, 1, &[]).expect_code(1);
        assert!(outcome.stderr.contains(&sentence), "{run}: {}", outcome.stderr);
    }
}

#[test]
fn a_way_back_counts_sound_checkpoints_alone() {
    let experiment = experiment(1);
    let often = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep_last=9"];
    let back = ["--set", "train.on_nan=roll-back", "--set", "train.roll_back.checkpoints_back=2"];
    let with = |more: &[&'static str]| [&often[..], &back, more].concat();
    for step in ["step:1", "step:2", "step:3", "step:4"] {
        let _ = experiment.train("run", 1, &with(&["--stop-after", step])).expect_code(STOPPED);
    }
    // The one that the run goes on from is good, the one before it is not, and the one before that is another run's.
    let folder = experiment.path("run/checkpoints");
    change_a_byte(&folder.join("step-000000003/weights.safetensors"));
    fs::write(folder.join("latest"), "step-000000002").unwrap();
    experiment.change_state("run", |state| state["data"] = "another".into());
    fs::write(folder.join("latest"), "step-000000004").unwrap();
    let outcome = experiment.train("run", 1, &with(&["--inject-fault", "5:0:nan"])).expect_code(0);
    assert!(outcome.stdout.contains("; back to the checkpoint of step 1 with"), "{}", outcome.stdout);
    for part in ["step-000000003 is damaged: ", "step-000000002 does not belong to this run: "] {
        let line = outcome.stderr.lines().find(|line| line.contains(part)).unwrap();
        assert!(
            line.starts_with("warning: ") && line.ends_with("it is passed over for the one before it"),
            "{line}"
        );
    }
}

#[test]
fn a_run_none_of_whose_checkpoints_is_whole_does_not_begin_anew() {
    let experiment = experiment(2);
    let _ = experiment.train("run", 1, &["--stop-after", "step:3"]).expect_code(STOPPED);
    let before = experiment.metrics("run");
    change_a_byte(&experiment.checkpoint_folder("run").join("weights.safetensors"));
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    for part in ["none of the checkpoints in ", "step-000000003", "another --out"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    assert_eq!(experiment.metrics("run"), before);
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint_with_one_line_a_step() {
    let experiment = experiment(8);
    let often = ["--set", "checkpoint.every_steps=4"];
    for (ranks, victim) in [(1, 0), (2, 1), (2, 0)] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let (whole, run) = (format!("whole {ranks}"), format!("killed {ranks} {victim}"));
        if !experiment.path(&whole).exists() {
            let _ = experiment.train(&whole, ranks, &often).expect_code(0);
        }
        let mut running = experiment.start(&run, ranks, &often, &[]);
        running.wait_until("ten steps were done", |_| experiment.steps_so_far(&run) >= 10);
        running.signal_rank(victim, "KILL");
        assert_ne!(running.wait().code, Some(0));
        let reached = experiment.steps_so_far(&run);
        let outcome = experiment.train(&run, ranks, &often).expect_code(0);
        assert!(outcome.stdout.contains("resumed after step "), "from step {reached}: {}", outcome.stdout);
        expect_same(&experiment, &run, &whole);
    }
}

#[test]
fn the_best_checkpoint_stays_and_can_be_evaluated_by_its_name() {
    let experiment = experiment(6);
    let keep = ["--set", "checkpoint.keep_last=1", "--set", "checkpoint.keep_best=1"];
    let _ = experiment.train("run", 1, &keep).expect_code(0);
    let epochs = experiment.metrics("run").into_iter().filter(|line| line["kind"] == "epoch");
    let errors: Vec<(u64, f64)> =
        epochs.map(|it| (it["step"].as_u64().unwrap(), it["test_top1_error"].as_f64().unwrap())).collect();
    let &(step, error) = errors.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let folder = experiment.path("run/checkpoints");
    assert_eq!(fs::read_to_string(folder.join("best")).unwrap(), format!("step-{step:09}"), "{errors:?}");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name.starts_with("step-"));
    names.sort();
    let mut expected = vec![format!("step-{step:09}"), format!("step-{:09}", 36)];
    expected.dedup();
    assert_eq!(names, expected);
    let best = folder.join("best");
    let arguments = ["eval", "--config", experiment.config(), "--checkpoint", best.to_str().unwrap()];
    let outcome = wrn_dist(1, &arguments).expect_code(0);
    let right = format!("({} right)", (64.0 * (1.0 - error)).round());
    assert!(outcome.stdout.contains(&right), "{}: {errors:?}", outcome.stdout);
}

#[test]
fn sha256sum_finds_a_checkpoint_right() {
    let experiment = experiment(1);
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let folder = experiment.checkpoint_folder("run");
    let checked =
        Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(folder).output();
    match checked {
        Err(_) => skip("sha256sum", "it is not installed"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.lines().count() == 3, "{said}");
        }
    }
}

/// A small file system that is gone again when this is dropped.
struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    fn mount_or_skip(place: PathBuf, kib: usize) -> Option<Self> {
        fs::create_dir(&place).unwrap();
        if !mount(&["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs", place.to_str().unwrap()]) {
            skip("mount", "no file system can be mounted here");
            return None;
        }
        Some(SmallDisk { place })
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }

    /// Takes all the room there is.
    fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.ballast()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}

fn mount(arguments: &[&str]) -> bool {
    Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success())
}

const CANNOT: &str = "warning: nothing could be saved after step ";
const EVERY_STEP: [&str; 2] = ["--set", "checkpoint.every_steps=1"];

/// Trains into `run` and lets `happen` as soon as there is a checkpoint; when a save has failed, and two more epochs
/// are done, undoes it. The run comes to its end, and is the undisturbed one.
fn disturb(experiment: &Experiment, run: &str, happen: impl Fn(), undo: impl Fn()) {
    let mut running = experiment.start(run, 1, &EVERY_STEP, &[]);
    running.wait_until("it saved", |_| experiment.path(run).join("checkpoints/latest").exists());
    happen();
    running.wait_until("a save failed", |running| running.stderr_so_far().contains(CANNOT));
    std::thread::sleep(std::time::Duration::from_millis(300));
    undo();
    running
        .wait_until("saving worked again", |running| running.stderr_so_far().contains("saving works again"));
    let outcome = running.wait().expect_code(0);
    assert_eq!(outcome.stderr.matches(CANNOT).count(), 1, "said once: {}", outcome.stderr);
    expect_same(experiment, run, "whole");
    let failed = experiment.saves(run).into_iter().filter(|save| save["error"].is_string()).count();
    assert!(failed > 0, "metrics know of it");
}

#[test]
fn a_full_disk_stops_saving_and_the_run_goes_on() {
    let experiment = experiment(40);
    // Room for two runs with four checkpoints each of 0.6 MiB.
    let Some(disk) = SmallDisk::mount_or_skip(experiment.path("disk"), 12 * 1024) else { return };
    let _ = experiment.train("whole", 1, &[]).expect_code(0);
    disturb(&experiment, "disk/run", || disk.fill(), || fs::remove_file(disk.ballast()).unwrap());

    // To the very end: the run is not lost, but what it did since is, and it says so.
    let mut running = experiment.start("disk/full", 1, &EVERY_STEP, &[]);
    running.wait_until("it saved", |_| experiment.path("disk/full/checkpoints/latest").exists());
    disk.fill();
    let outcome = running.wait().expect_code(1);
    for part in
        ["error: the run ends after step 240 and could not be saved: ", "No space left", " steps since "]
    {
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
    fs::remove_file(disk.ballast()).unwrap();
    let outcome = experiment.train("disk/full", 1, &EVERY_STEP).expect_code(0);
    assert!(outcome.stdout.contains("resumed after step "), "{}", outcome.stdout);
    expect_same(&experiment, "disk/full", "whole");
}

#[test]
fn a_folder_that_cannot_be_written_or_is_gone_stops_saving_and_the_run_goes_on() {
    let experiment = experiment(40);
    let _ = experiment.train("whole", 1, &[]).expect_code(0);
    let (run, aside) = (experiment.path("gone"), experiment.path("aside"));
    disturb(&experiment, "gone", || fs::rename(&run, &aside).unwrap(), || fs::rename(&aside, &run).unwrap());

    // Root writes where others may not, but not to what is mounted for reading.
    let Some(_disk) = SmallDisk::mount_or_skip(experiment.path("disk"), 12 * 1024) else { return };
    let folder = experiment.path("disk/run/checkpoints");
    let folder = folder.to_str().unwrap();
    let forbid = || {
        assert!(mount(&["--bind", folder, folder]));
        assert!(mount(&["-o", "remount,bind,ro", folder]));
    };
    let allow = || assert!(Command::new("umount").args(["--lazy", folder]).status().unwrap().success());
    disturb(&experiment, "disk/run", forbid, allow);
}

#[test]
fn a_checkpoint_that_is_not_there_is_wrong_usage_whatever_it_is_named_by() {
    let experiment = experiment(1);
    let _ = experiment.train("run", 1, &["--stop-after", "step:1"]).expect_code(STOPPED);
    let weights = experiment.checkpoint_folder("run").join("weights.safetensors");
    let other = experiment.path("foo.safetensors");
    fs::copy(&weights, &other).unwrap();
    let averaged = weights.with_file_name("averaged.safetensors");
    for (path, code, part) in [
        (Path::new("/nowhere/weights.safetensors"), 2, "at /nowhere/weights.safetensors"),
        (Path::new("weights.safetensors"), 2, "at weights.safetensors"),
        (&other, 2, "foo.safetensors, which is a file; `wrn-dist model import` "),
        (&averaged, 2, "averaged.safetensors"),
        (&weights, 0, ""),
    ] {
        let arguments = ["eval", "--config", experiment.config(), "--checkpoint", path.to_str().unwrap()];
        let outcome = wrn_dist(1, &arguments).expect_code(code);
        assert!(outcome.stderr.contains(part), "{}: {}", path.display(), outcome.stderr);
    }
}

#[test]
fn a_state_that_contradicts_the_precision_is_not_gone_on_from() {
    let experiment = experiment(1);
    let stop = ["--stop-after", "step:2"];
    let _ = experiment.train("run", 1, &stop).expect_code(STOPPED);
    experiment.change_state("run", |state| {
        state["health"]["loss_scale"] = serde_json::json!({"scale": 1024.0, "good_steps": 0});
    });
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    assert!(refused.stderr.contains("which only a run in fp16 has"), "{}", refused.stderr);
}

#[test]
fn an_epoch_that_a_version_began_which_counted_no_samples_is_saved_soundly() {
    let experiment = experiment(1);
    let _ = experiment.train("run", 1, &["--stop-after", "step:2"]).expect_code(STOPPED);
    experiment.change_state("run", |state| {
        let _ = state.as_object_mut().unwrap().remove("epoch_counted").unwrap();
    });
    let _ = experiment.train("run", 1, &["--stop-after", "step:4"]).expect_code(STOPPED);
    let outcome = experiment.train("run", 1, &[]).expect_code(0);
    assert!(outcome.stdout.contains("resumed after step 4 of 6"), "{}", outcome.stdout);
    let _ = experiment.train("whole", 1, &[]).expect_code(0);
    expect_same(&experiment, "run", "whole");
}

#[test]
fn a_run_that_is_resumed_with_another_optimizer_is_told_what_differs() {
    let experiment = experiment(1);
    let scaled = ["--set", "optimizer={kind: adamw}", "--set", "schedule.scale_rate={reference_batch: 32}"];
    let _ =
        experiment.train("run", 1, &[&scaled[..], &["--stop-after", "step:1"]].concat()).expect_code(STOPPED);
    let refused = experiment.train("run", 1, &[]).expect_code(1);
    for part in ["optimizer.kind was adamw, is sgd", "optimizer.betas was ", "schedule.scale_rate.rule was "]
    {
        assert!(refused.stderr.contains(part), "`{}` lacks `{part}`", refused.stderr);
    }
    assert!(!refused.stderr.contains("does not know"), "{}", refused.stderr);
}

#[test]
fn a_way_back_tells_of_damage_on_its_way_alone() {
    let experiment = experiment(1);
    let keep = ["--set", "checkpoint.keep_last=9", "--set", "train.on_nan=roll-back"];
    let stop = |step: &'static str| [&keep[..], &["--stop-after", step]].concat();
    for step in ["step:1", "step:2", "step:3"] {
        let _ = experiment.train("run", 1, &stop(step)).expect_code(STOPPED);
    }
    // Those before the newest, the one from before the first step among them.
    for step in 0..3 {
        let place = experiment.path("run/checkpoints").join(format!("step-{step:09}"));
        change_a_byte(&place.join("weights.safetensors"));
    }
    let more = ["--set", "train.roll_back.checkpoints_back=2", "--inject-fault", "4:0:nan"];
    let outcome = experiment.train("run", 1, &[&keep[..], &more].concat()).expect_code(0);
    assert!(outcome.stdout.contains("; back to the checkpoint of step 3 with"), "{}", outcome.stdout);
    assert!(!outcome.stderr.contains("is passed over"), "{}", outcome.stderr);
    let said = "checkpoints_back is 2, but there are not so many sound checkpoints in ";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
}
