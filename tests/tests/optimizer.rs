//! Update rules in real runs: the same bits on any number of ranks, when stopped, and with the work shared out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip};

const STOPPED: i32 = 75;

/// Six steps of 32 images in micro batches of 8.
fn experiment(optimizer: &str) -> Experiment {
    Experiment::new(
        FashionMnist { train: 6 * 32, test: 40 },
        &format!(
            "model: {{arch: wrn-10-1}}
train: {{epochs: 1, global_batch: 32, micro_batch: 8, determinism: world, threads: 1, label_smoothing: 0.1}}
schedule: {{kind: cosine, rate: 0.02, warmup_epochs: 0.5}}
optimizer: {optimizer}
"
        ),
    )
}

fn set(key_and_value: &str) -> [&str; 2] {
    ["--set", key_and_value]
}

#[test]
fn ranks_shares_and_interruptions_change_no_bit_of_any_rule() {
    if !mpirun_or_skip() {
        return;
    }
    let small_buckets = [set("comm.first_bucket_kib=16"), set("comm.bucket_kib=64")].concat();
    let shared = set("optimizer.shard=true");
    for (optimizer, most_ranks) in [
        ("{kind: sgd}", 4),
        ("{kind: sgd, clip_norm: 0.5, decay_norm_and_bias: false}", 2),
        ("{kind: lars}", 2),
        ("{kind: lamb, clip_norm: 1}", 4),
        ("{kind: adamw}", 2),
    ] {
        let experiment = experiment(optimizer);
        let result =
            |name: &str| (metrics_without_times(experiment.metrics(name)), experiment.checkpoint(name));
        let _ = experiment.train("alone", 1, &[]).expect_code(0);
        let expected = result("alone");
        assert_eq!(expected.0.len(), 7, "six steps and an epoch");
        let clips = optimizer.contains("clip_norm");
        assert_eq!(expected.0[0]["gradient_norm"].is_f64(), clips, "{optimizer}: {}", expected.0[0]);

        let check = |name: &str| {
            let found = result(name);
            assert!(
                found.0 == expected.0,
                "{optimizer}, {name}: metrics differ: {:#?}\n{:#?}",
                found.0,
                expected.0
            );
            assert!(found.1[0] == expected.1[0], "{optimizer}, {name}: weights differ");
            assert!(found.1[1] == expected.1[1], "{optimizer}, {name}: the optimizer's state differs");
        };
        for ranks in [2, 4].into_iter().filter(|&ranks| ranks <= most_ranks) {
            let name = format!("{ranks} ranks");
            let _ = experiment.train(&name, ranks, &[]).expect_code(0);
            check(&name);
            let name = format!("{ranks} ranks, shared");
            let more = [&shared[..], &small_buckets].concat();
            let _ = experiment.train(&name, ranks, &more).expect_code(0);
            check(&name);
        }
        // Shared by two, then one alone, then shared by two again.
        for (ranks, more) in
            [(2, [&shared[..], &["--stop-after", "step:2"]].concat()), (1, vec!["--stop-after", "step:4"])]
        {
            let _ = experiment.train("stopped", ranks, &more).expect_code(STOPPED);
        }
        let _ = experiment.train("stopped", 2, &shared).expect_code(0);
        check("stopped");
    }
}

#[test]
fn a_share_that_is_not_finite_skips_the_step_on_all_ranks() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = experiment("{kind: sgd}");
    let skip = [&set("train.on_nan=skip")[..], &["--inject-fault", "2:1:nan"]].concat();
    let shared = [&skip[..], &set("optimizer.shard=true")].concat();
    for (name, more) in [("whole", &skip), ("shared", &shared)] {
        let _ = experiment.train(name, 2, more).expect_code(0);
        let metrics = experiment.metrics(name);
        let skipped: Vec<bool> = metrics
            .iter()
            .filter(|line| line["kind"] == "step")
            .map(|line| line["skipped"] == true)
            .collect();
        assert_eq!(skipped, [false, true, false, false, false, false], "{name}");
    }
    assert!(experiment.checkpoint("whole") == experiment.checkpoint("shared"));
}

#[test]
fn smoothing_enters_the_training_loss_and_not_evaluation() {
    let experiment = experiment("{kind: sgd, weight_decay: 0}");
    let mut losses = Vec::new();
    for smoothing in ["0", "0.1"] {
        let name = format!("smoothing {smoothing}");
        let smoothing = format!("train.label_smoothing={smoothing}");
        let more = [set(&smoothing), set("schedule.rate=0"), set("schedule.warmup_epochs=0")].concat();
        let _ = experiment.train(&name, 1, &more).expect_code(0);
        let epoch = experiment.metrics(&name).pop().unwrap();
        losses.push(["train_loss", "test_loss"].map(|key| epoch[key].as_f64().unwrap()));
    }
    assert_ne!(losses[0][0], losses[1][0], "training");
    assert_eq!(losses[0][1], losses[1][1], "evaluation");
}

#[test]
fn the_plan_tells_rule_shares_and_scaled_rate() {
    let experiment = experiment("{kind: adamw, shard: true}");
    let arguments = ["plan", "--config", experiment.config(), "--ranks", "2"];
    let scaled = [&arguments[..], &set("schedule.scale_rate={reference_batch: 8}")].concat();
    let plan = end_to_end::wrn_dist(1, &scaled).expect_code(0).stdout;
    for part in ["adamw with 2 numbers a weight, in 2 shares", "x 4.0000", "instead of 8"] {
        assert!(plan.contains(part), "`{plan}` lacks `{part}`");
    }
}
