//! A run that is ill says so while it goes on: slow ranks, ranks that no longer hold the same numbers, losses that
//! jump. Every decision is the same on all ranks, and survives a resume.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use end_to_end::{
    Experiment, FashionMnist, expect_straggler, metrics_without_times, mpirun_or_skip, steady_experiment,
};
use serde_json::Value;

const STOPPED: i32 = 75;

fn experiment(epochs: u32) -> Experiment {
    Experiment::new(
        FashionMnist { train: 10 * 32, test: 32 },
        &format!(
            "model: {{arch: wrn-10-1}}
train: {{epochs: {epochs}, global_batch: 32, micro_batch: 8, threads: 1}}
schedule: {{kind: constant, rate: 0.05}}
"
        ),
    )
}

fn of_kind<'a>(metrics: &'a [Value], kind: &str) -> Vec<&'a Value> {
    metrics.iter().filter(|line| line["kind"] == kind).collect()
}

#[test]
fn a_slow_rank_is_named_with_its_phase_within_20_steps_and_nobody_else() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = steady_experiment(32);
    for (victim, slow_from) in [(1, 11), (0, 8)] {
        let run = format!("slow {victim}");
        let fault = format!("{slow_from}:{victim}:slow");
        let outcome = experiment.train(&run, 2, &["--inject-fault", &fault]).expect_code(0);
        let metrics = experiment.metrics(&run);
        for straggler in expect_straggler(&outcome, &metrics, victim, slow_from, &["data wait"]) {
            let times_slower = straggler["times_slower"].as_f64().unwrap();
            assert!((1.3..4.0).contains(&times_slower), "{straggler}");
        }
        assert_eq!(outcome.stdout.matches(" is slow: ").count(), 1, "{}", outcome.stdout);
    }
}

/// Seconds that rank 0 computed in the latest step of the run in `out`, and which step that was.
fn latest_step(out: &Path) -> Option<(u64, f64)> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).ok()?;
    let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let latest = lines.find(|line| line["kind"] == "step")?;
    let seconds = |part: &str| latest["seconds"][part].as_f64();
    Some((latest["step"].as_u64()?, seconds("input")? + seconds("forward")? + seconds("backward")?))
}

#[test]
fn a_rank_that_is_stopped_most_of_the_time_is_named_with_its_phase_within_20_steps_and_nobody_else() {
    if !mpirun_or_skip() {
        return;
    }
    let (slow_from, steps) = (12, 44);
    let experiment = steady_experiment(steps);
    let out = experiment.path("pulses");
    // Four ranks on fewer cores, which other programs may use too: half as slow again as the others says nothing there.
    let factor = ["--set", "telemetry.straggler_factor=2.5"];
    let mut running = experiment.start("pulses", 4, &factor, &[]);
    let mut before = slow_from - 2;
    // Near its end the rank may be gone at any moment.
    running.wait_until("its last steps", |running| {
        let Some((step, seconds)) = latest_step(&out) else { return false };
        if step > before {
            before = step;
            // In every step for four times as long as rank 0 works on it, whatever else this machine does.
            running.signal_rank(1, "STOP");
            std::thread::sleep(Duration::from_secs_f64(4.0 * seconds));
            running.signal_rank(1, "CONT");
        }
        step >= steps as u64 - 4
    });
    let outcome = running.wait().expect_code(0);
    // A new line of metrics lets it stop at once, as the step after it begins.
    let phases = ["forward", "backward"];
    let _ = expect_straggler(&outcome, &experiment.metrics("pulses"), 1, slow_from, &phases);
}

#[test]
fn one_flipped_bit_in_one_rank_ends_the_run_and_the_rank_and_the_tensor_are_named() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment(1);
    let every = ["--set", "train.check_replicas_every=2"];
    for (ranks, victim, expected) in [
        (4, 2, " does not hold the same numbers as the other ranks: first in fc.bias of the weights"),
        (2, 1, "; no majority tells which are right"),
    ] {
        let fault = format!("3:{victim}:flip-bit");
        let run = format!("flip {ranks}");
        let outcome =
            experiment.train(&run, ranks, &[&every[..], &["--inject-fault", &fault]].concat()).expect_code(1);
        let errors: Vec<_> = outcome.stderr.lines().filter(|line| line.starts_with("error")).collect();
        assert_eq!(errors.len(), 1, "{}", outcome.stderr);
        for part in [&format!("error (rank {victim} on "), "after step 4 rank ", expected] {
            assert!(errors[0].contains(part), "`{}` lacks `{part}`", errors[0]);
        }
    }
    // Undisturbed ranks pass, with everything that is compared switched on.
    let averaging = ["--set", "train.averaging={decay: 0.9}"];
    let _ = experiment.train("healthy", 4, &[&every[..], &averaging].concat()).expect_code(0);
}

/// Ways back without their reasons, which name ranks.
fn without_reasons(mut metrics: Vec<Value>) -> Vec<Value> {
    for object in metrics.iter_mut().filter_map(Value::as_object_mut) {
        let _ = object.remove("reason");
    }
    metrics
}

#[test]
fn a_nan_leads_back_to_the_last_checkpoint_with_a_lower_rate_and_a_resume_keeps_it() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment(3);
    let policy = ["--set", "train.on_nan=roll-back", "--set", "train.determinism=world"];
    let with = |more: &[&'static str]| [&policy[..], more].concat();
    let mut reference = None;
    for ranks in [1, 2, 4] {
        let fault = format!("15:{}:nan", ranks - 1);
        let run = format!("whole {ranks}");
        let arguments = [&policy[..], &["--inject-fault", &fault]].concat();
        let outcome = experiment.train(&run, ranks, &arguments).expect_code(0);
        assert_eq!(outcome.stdout.matches("; back to the checkpoint of step 10 with 0.5 times").count(), 1);
        let metrics = metrics_without_times(experiment.metrics(&run));
        let steps: Vec<_> = of_kind(&metrics, "step");
        assert_eq!(steps.len(), 30, "one line a step");
        for (index, step) in steps.iter().enumerate() {
            assert_eq!(step["step"], index + 1);
            assert_eq!(step["learning_rate"], if index < 10 { 0.05 } else { 0.025 }, "{step}");
            assert_eq!(step["skipped"], false, "{step}");
        }
        let back = of_kind(&metrics, "roll-back");
        assert_eq!(back.len(), 1);
        assert_eq!((&back[0]["from_step"], &back[0]["to_step"]), (&15.into(), &10.into()));
        let reason = back[0]["reason"].as_str().unwrap();
        match ranks {
            1 => assert!(reason.ends_with(" NaN somewhere"), "{reason}"),
            _ => assert!(reason.contains(&format!(" NaN on rank {} on ", ranks - 1)), "{reason}"),
        }
        let metrics = without_reasons(metrics);
        let result = (metrics, experiment.checkpoint(&run));
        let reference = reference.get_or_insert_with(|| result.clone());
        assert!(result == *reference, "{ranks} ranks take the same way");
    }

    for (name, stop) in [("in the same epoch", "step:16"), ("in the next", "step:24")] {
        let arguments = with(&["--inject-fault", "15:1:nan", "--stop-after"]);
        let _ = experiment.train(name, 2, &[&arguments[..], &[stop]].concat()).expect_code(STOPPED);
        let _ = experiment.train(name, 2, &policy).expect_code(0);
        let metrics = without_reasons(metrics_without_times(experiment.metrics(name)));
        assert!(Some((metrics, experiment.checkpoint(name))) == reference, "resumed {name}");
    }
}

#[test]
fn a_way_back_or_a_smaller_loss_scale_comes_out_alike_however_the_weights_are_updated() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment(2);
    let way_back = ["--inject-fault", "15:1:nan", "--set", "train.on_nan=roll-back"];
    let fp16 =
        ["--inject-fault", "15:1:nan", "--set", "precision={dtype: fp16, loss_scale: {initial: 1024}}"];
    let (shard, early) = (["--set", "optimizer.shard=true"], ["--set", "comm.overlap=sync+step"]);
    let (adamw, clip) = (["--set", "optimizer.kind=adamw"], ["--set", "optimizer.clip_norm=0.5"]);
    /// Name, what goes wrong, what both runs are told, what one of them is told.
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 4] = [
        ("shards", &way_back, &[], &shard),
        ("early", &way_back, &[], &early),
        ("adamw", &way_back, &adamw, &shard),
        ("fp16", &fp16, &clip, &shard),
    ];
    for (name, trouble, common, other) in cases {
        let common = [trouble, common, &["--set", "train.averaging={decay: 0.9}"]].concat();
        let result = |run: &str, more: &[&str]| {
            let _ = experiment.train(run, 2, &[&common, more].concat()).expect_code(0);
            let averaged = fs::read(experiment.checkpoint_folder(run).join("averaged.safetensors")).unwrap();
            (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run), averaged)
        };
        let plain = result(&format!("{name} plain"), &[]);
        assert_eq!(of_kind(&plain.0, "roll-back").len(), usize::from(name != "fp16"), "{name}");
        assert_eq!(plain.0.iter().any(|line| line["skipped"] == true), name == "fp16", "{name}");
        assert!(plain == result(name, other), "{name}: the same bits");
    }
}

#[test]
fn before_the_first_save_that_is_due_a_way_back_leads_to_the_start_and_too_often_it_is_the_end() {
    let experiment = experiment(2);
    let policy = ["--set", "train.on_nan=roll-back"];
    for shard in ["optimizer.shard=false", "optimizer.shard=true"] {
        let ranks = if mpirun_or_skip() { 2 } else { 1 };
        let more = ["--inject-fault", "3:0:nan", "--set", shard];
        let outcome = experiment.train(shard, ranks, &[&policy[..], &more].concat()).expect_code(0);
        assert!(
            outcome.stdout.contains("; back to the checkpoint of step 0 with 0.5 times"),
            "{}",
            outcome.stdout
        );
        let metrics = experiment.metrics(shard);
        let steps = of_kind(&metrics, "step");
        assert_eq!(steps.len(), 20, "one line a step");
        assert!(steps.iter().all(|step| step["learning_rate"] == 0.025), "{steps:?}");
        assert_eq!(experiment.saves(shard)[0]["step"], 0);
    }
    // A run that nothing leads back saves when it is due.
    let _ = experiment.train("plain", 1, &[]).expect_code(0);
    assert_eq!(experiment.saves("plain")[0]["step"], 10);

    // After the first step already, no rate helps these weights any more.
    let often = ["--set", "schedule.rate=1e30", "--set", "train.roll_back.most=2"];
    let stop = [&policy[..], &often, &["--stop-after", "step:1"]].concat();
    let _ = experiment.train("wild", 1, &stop).expect_code(STOPPED);
    let outcome = experiment.train("wild", 1, &[&policy[..], &often].concat()).expect_code(1);
    assert!(outcome.stderr.contains("2 times, which is train.roll_back.most"), "{}", outcome.stderr);
}

/// Three epochs of one step. The rate of the last one takes every weight out of what fp32 can hold.
fn experiment_that_explodes_at_its_end() -> Experiment {
    Experiment::new(
        FashionMnist { train: 32, test: 32 },
        "model: {arch: wrn-10-1}
train: {epochs: 3, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: step, rate: 0.05, milestones: [3], factor: 1.0e+60}
",
    )
}

#[test]
fn weights_that_a_save_finds_not_finite_lead_back_where_that_is_the_policy() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment_that_explodes_at_its_end();
    let back = ["--set", "train.on_nan=roll-back", "--set", "train.roll_back.rate_factor=1e-60"];
    for (run, policy, ends_with) in [
        ("stop", &["--set", "train.on_nan=stop"][..], 1),
        ("skip", &["--set", "train.on_nan=skip"], 1),
        ("back", &back, 0),
    ] {
        for ranks in [1, 2] {
            let run = format!("{run} {ranks}");
            let outcome = experiment.train(&run, ranks, policy).expect_code(ends_with);
            if ends_with == 1 {
                let error =
                    " is no longer finite after step 3: nothing is saved; go on from the last checkpoint";
                assert_eq!(outcome.stderr.matches(error).count(), 1, "{}", outcome.stderr);
                assert!(experiment.checkpoint_folder(&run).ends_with("step-000000002"));
                continue;
            }
            let metrics = experiment.metrics(&run);
            let back = of_kind(&metrics, "roll-back");
            assert_eq!(back.len(), 1, "{metrics:?}");
            assert_eq!((&back[0]["from_step"], &back[0]["to_step"]), (&3.into(), &2.into()));
            assert!(back[0]["reason"].as_str().unwrap().ends_with(" is no longer finite after step 3"));
            assert_eq!(of_kind(&metrics, "step").len(), 3, "one line a step");
            assert!(experiment.checkpoint_folder(&run).ends_with("step-000000003"));
        }
    }
    // The next step meets these weights while they are being saved: one way back is enough for both.
    let earlier = [&back[..], &["--set", "schedule.milestones=[2]"]].concat();
    let _ = experiment.train("earlier", 2, &earlier).expect_code(0);
    let metrics = experiment.metrics("earlier");
    let back = of_kind(&metrics, "roll-back");
    assert_eq!(back.iter().map(|line| &line["to_step"]).collect::<Vec<_>>(), [1]);
    assert_eq!(of_kind(&metrics, "step").len(), 3, "one line a step");
}

#[test]
fn a_run_that_was_stopped_counts_the_steps_that_it_left_out_as_an_undisturbed_one() {
    // The first step takes the weights so far that from then on all steps are left out.
    let experiment = experiment(3);
    let wild = ["--set", "schedule.rate=1e30", "--set", "train.on_nan=skip"];
    let end = |run: &str| {
        let outcome = experiment.train(run, 1, &wild).expect_code(1);
        let error = outcome.stderr.lines().find(|line| line.starts_with("error")).unwrap();
        error[error.find("at step ").unwrap()..].to_owned()
    };
    let whole = end("whole");
    assert!(
        whole.starts_with("at step 17 ") && whole.contains("so many steps have been left out"),
        "{whole}"
    );
    for stop in ["step:6", "step:13"] {
        let stop = [&wild[..], &["--stop-after", stop]].concat();
        let _ = experiment.train("parts", 1, &stop).expect_code(STOPPED);
    }
    assert_eq!(end("parts"), whole);
}

#[test]
fn the_search_for_a_loss_scale_may_take_more_steps_than_an_epoch_has() {
    let experiment = Experiment::new(
        FashionMnist { train: 32, test: 32 },
        "model: {arch: wrn-10-1}
train: {epochs: 12, global_batch: 32, micro_batch: 8, threads: 1}
schedule: {kind: constant, rate: 0.05}
precision: {dtype: fp16, loss_scale: {initial: 1.0e+12, backoff_factor: 0.01}}
",
    );
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let metrics = experiment.metrics("run");
    let steps = of_kind(&metrics, "step");
    let skipped = steps.iter().filter(|step| step["skipped"] == true).count();
    assert!((1..8).contains(&skipped), "{skipped} of {steps:?}");
    let epochs = of_kind(&metrics, "epoch");
    assert_eq!(epochs.len(), 12);
    for (epoch, step) in epochs.iter().zip(&steps) {
        let skipped = step["skipped"] == true;
        assert_eq!((epoch["train_loss"].is_null(), epoch["train_top1_error"].is_null()), (skipped, skipped));
    }
    assert!(experiment.path("run/report/curves.svg").exists());
}

#[test]
fn a_loss_that_jumps_on_one_rank_is_seen_by_all() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment(3);
    let spike = [
        "--set",
        "train.loss_spike.window=10",
        "--set",
        "schedule.rate=0.01",
        "--inject-fault",
        "25:1:spike",
    ];
    let outcome = experiment.train("warned", 2, &spike).expect_code(0);
    let sentences: Vec<_> =
        outcome.stdout.lines().filter(|line| line.contains(" is far above the usual ")).collect();
    assert_eq!(sentences.len(), 1, "{}", outcome.stdout);
    assert!(sentences[0].contains(", highest on rank 1 on "), "{}", sentences[0]);
    let metrics = experiment.metrics("warned");
    let spikes: Vec<_> =
        of_kind(&metrics, "step").into_iter().filter(|step| step["loss_spike"] == true).collect();
    assert_eq!(spikes.len(), 1);
    assert_eq!(spikes[0]["step"], 25);

    let back = [&spike[..], &["--set", "train.loss_spike.action=roll-back"]].concat();
    let _ = experiment.train("back", 2, &back).expect_code(0);
    let metrics = experiment.metrics("back");
    let back = of_kind(&metrics, "roll-back");
    assert_eq!((&back[0]["from_step"], &back[0]["to_step"]), (&25.into(), &20.into()));
    assert!(back[0]["reason"].as_str().unwrap().contains("far above the usual"));
    assert_eq!(of_kind(&metrics, "step").len(), 30);
}

#[test]
fn a_run_that_ends_for_its_numbers_leaves_evidence() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment(1);
    let _ = experiment.train("run", 2, &["--inject-fault", "3:1:nan"]).expect_code(1);
    let text = fs::read_to_string(experiment.path("run/evidence/step-000000003.json")).unwrap();
    let evidence: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&evidence["step"], &evidence["epoch"]), (&3.into(), &1.into()));
    let ranks = evidence["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 1, "{text}");
    assert_eq!(ranks[0]["rank"], 1);
    assert_eq!(ranks[0]["micro_batch"], 2, "the first one of rank 1");
    assert_eq!(ranks[0]["tensor"], "fc.bias", "{text}");
    assert_eq!(ranks[0]["samples"].as_array().unwrap().len(), 8);
}

#[test]
fn senseless_values_are_refused_with_their_key() {
    let experiment = experiment(1);
    for (set, parts) in [
        ("train.roll_back={most: 2}", ["train.roll_back", "has no meaning without train.on_nan: roll-back"]),
        ("train.loss_spike.window=3", ["train.loss_spike.window", "3 is out of range; expected 8 to 10000"]),
        (
            "train.loss_spike.deviations=-1",
            ["train.loss_spike.deviations", "is out of range; expected 0.001 to 1000000"],
        ),
        ("train.averaging={decay: 1}", ["train.averaging.decay", "expected 0 to 1 (excluded)"]),
        (
            "train.averaging={decay: 0.9, warmup_epochs: 2}",
            ["train.averaging.warmup_epochs", "train.epochs (1)"],
        ),
        ("train.averaging={decay: 0.9, every_steps: 0}", ["train.averaging.every_steps", "expected 1 to"]),
        ("precision={loss_scale: {initial: 8}}", ["precision.loss_scale", "expected fp16"]),
        ("precision={dtype: fp16, loss_scale: {growth_factor: 1}}", ["growth_factor", "1 (excluded)"]),
        ("telemetry.straggler_factor=1", ["telemetry.straggler_factor", "expected 1 (excluded)"]),
    ] {
        let outcome = experiment.train("run", 1, &["--set", set]).expect_code(2);
        for part in parts {
            assert!(outcome.stderr.contains(part), "{set}: `{}` lacks `{part}`", outcome.stderr);
        }
    }
    let back = ["--set", "train.on_nan=roll-back", "--set", "train.roll_back.checkpoints_back=3"];
    let outcome = experiment.train("run", 1, &back).expect_code(2);
    assert!(outcome.stderr.contains("1 to checkpoint.keep_last (2)"), "{}", outcome.stderr);
}

/// `train.micro_batch: auto` with this limit.
fn limited(limit: &'static str) -> [&'static str; 4] {
    ["--set", "train.micro_batch=auto", "--set", limit]
}

/// The micro batch that a run has written down.
fn micro_batch_of(experiment: &Experiment, run: &str) -> usize {
    let config = fs::read_to_string(experiment.path(run).join("config.yaml")).unwrap();
    let value = config.lines().find_map(|line| line.trim_start().strip_prefix("micro_batch: ")).unwrap();
    value.trim().parse().unwrap()
}

#[test]
fn an_automatic_micro_batch_fits_the_memory_is_written_down_and_kept() {
    let experiment = experiment(1);
    let mut chosen = Vec::new();
    for (run, limit) in [("much", "train.memory_limit_gib=4"), ("little", "train.memory_limit_gib=0.02")] {
        let _ = experiment
            .train(run, 1, &[&limited(limit)[..], &["--stop-after", "step:2"]].concat())
            .expect_code(STOPPED);
        chosen.push(micro_batch_of(&experiment, run));
    }
    assert_eq!(chosen[0], 32, "everything at once");
    assert!(chosen[1] < 32 && 32 % chosen[1] == 0, "{chosen:?}");

    // With more memory the run that has begun keeps what it had.
    let _ = experiment.train("little", 1, &limited("train.memory_limit_gib=4")).expect_code(0);
    // Without a checkpoint nothing has begun, whatever else is in the folder.
    fs::remove_dir_all(experiment.path("little/checkpoints")).unwrap();
    let _ = experiment.train("little", 1, &limited("train.memory_limit_gib=4")).expect_code(0);
    assert_eq!(micro_batch_of(&experiment, "little"), 32);
    let outcome = experiment.train("none", 1, &limited("train.memory_limit_gib=0.001")).expect_code(2);
    assert!(outcome.stderr.contains("even micro batches of one image need "), "{}", outcome.stderr);
    let outcome = experiment.train("none", 1, &["--set", "train.micro_batch=auto"]).expect_code(2);
    assert!(outcome.stderr.contains("auto needs train.memory_limit_gib"), "{}", outcome.stderr);
}

#[test]
fn a_way_back_that_would_leave_no_learning_rate_is_the_end() {
    // After the first step already, no rate helps these weights any more.
    let experiment = experiment(1);
    let often = ["--set", "schedule.rate=1e30", "--set", "train.on_nan=roll-back"];
    let factor = ["--set", "train.roll_back.rate_factor=1e-200"];
    let stop = [&often[..], &factor, &["--stop-after", "step:1"]].concat();
    let _ = experiment.train("run", 1, &stop).expect_code(STOPPED);
    let outcome = experiment.train("run", 1, &[&often[..], &factor].concat()).expect_code(1);
    let said = "one more way back would leave 0 of the learning rate (train.roll_back.rate_factor: ";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    assert_eq!(of_kind(&experiment.metrics("run"), "roll-back").len(), 1);
}

#[test]
fn an_automatic_micro_batch_is_the_same_on_all_ranks_and_kept_by_other_numbers_of_them() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment(1);
    let stop = |more: &[&'static str], step: &'static str| [more, &["--stop-after", step]].concat();
    let little = limited("train.memory_limit_gib=0.015");
    let _ = experiment.train("auto", 2, &stop(&little, "step:3")).expect_code(STOPPED);
    let chosen = micro_batch_of(&experiment, "auto");
    assert!(chosen < 16 && 16 % chosen == 0, "{chosen} of each rank's 16 images");
    // With more memory, and by one rank, which would take all 32 images at once.
    let much = limited("train.memory_limit_gib=4");
    let _ = experiment.train("auto", 2, &stop(&much, "step:6")).expect_code(STOPPED);
    assert_eq!(micro_batch_of(&experiment, "auto"), chosen);
    let _ = experiment.train("auto", 1, &stop(&much, "step:8")).expect_code(STOPPED);
    assert_eq!(micro_batch_of(&experiment, "auto"), chosen);

    // Had the ranks not agreed, this would be another run.
    let set = format!("train.micro_batch={chosen}");
    let written = ["--set", set.as_str()];
    for (ranks, step) in [(2, "step:6"), (1, "step:8")] {
        let more = [&written[..], &["--stop-after", step]].concat();
        let _ = experiment.train("written", ranks, &more).expect_code(STOPPED);
    }
    let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
    assert!(result("auto") == result("written"), "micro batches of {chosen}");
}
