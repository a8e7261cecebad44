//! What the smaller commands print, and that it agrees with what training does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use end_to_end::{Experiment, FashionMnist, mpirun_or_skip, skip, wrn_dist, wrn_dist_by_variables_each};
use serde_json::Value;

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 64, test: 101 },
        "model: {arch: wrn-10-1}
train: {epochs: 2, global_batch: 16, micro_batch: 8, threads: 1}
schedule: {kind: step, rate: 0.1, milestones: [2], factor: 0.2}
",
    )
}

#[test]
fn eval_counts_what_training_counted_on_any_number_of_ranks() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let epoch = experiment.metrics("run").pop().unwrap();
    assert_eq!(epoch["test_samples"], 101, "every image once, also when ranks do not divide them");
    let expected = format!("101 test images: loss {:.4}", epoch["test_loss"].as_f64().unwrap());
    let right = format!("({} right)", epoch["test_top1_correct"]);
    for ranks in [1, 2, 3] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        // Three ranks do not divide the global batch, which evaluation does not need to do.
        let sets = ["--set", "train.global_batch=48"];
        let run = experiment.path("run");
        let arguments = ["eval", "--config", experiment.config(), "--checkpoint", run.to_str().unwrap()];
        let outcome = wrn_dist(ranks, &[&arguments[..], &sets].concat()).expect_code(0);
        assert!(
            outcome.stdout.contains(&expected) && outcome.stdout.contains(&right),
            "{ranks}: {}",
            outcome.stdout
        );
        assert_eq!(outcome.stdout.lines().count(), 1, "printed once: {}", outcome.stdout);
    }
    // Evaluation scales branches by it, so another value would be another network.
    let run = experiment.path("run");
    let arguments = ["eval", "--config", experiment.config(), "--checkpoint", run.to_str().unwrap()];
    let other =
        wrn_dist(1, &[&arguments[..], &["--set", "model.stochastic_depth=0.5"]].concat()).expect_code(1);
    assert!(other.stderr.contains("model.stochastic_depth"), "{}", other.stderr);
}

#[test]
fn ranks_that_were_asked_for_different_things_are_told_which() {
    let experiment = experiment();
    let out = experiment.path("run");
    let (out, config) = (out.to_str().unwrap(), experiment.config());
    let train = ["train", "--config", config, "--out", out];
    let eval = ["eval", "--config", config, "--checkpoint", out];
    let bench = ["bench", "step", "--config", config];
    let cases: [(Vec<&str>, Vec<&str>, &str); 7] = [
        (train.to_vec(), eval.to_vec(), "has 'wrn-dist: train', rank 1 on "),
        (eval.to_vec(), [&eval[..], &["--ten-crop"]].concat(), "has '--ten-crop: false', rank 1 on "),
        (
            [&train[..], &["--stop-after", "step:2"]].concat(),
            train.to_vec(),
            "has '--stop-after: Step(2)', rank 1",
        ),
        (
            train.to_vec(),
            [&train[..], &["--inject-fault", "2:1:kill"]].concat(),
            "has '--inject-fault: not given'",
        ),
        (train.to_vec(), [&train[..], &["--resume", "none"]].concat(), "has '--resume: Auto', rank 1 on "),
        (
            [&bench[..], &["--steps", "2"]].concat(),
            [&bench[..], &["--steps", "3"]].concat(),
            "has '--steps: 2'",
        ),
        (
            [&train[..], &["--set", "optimizer.clip_norm=1"]].concat(),
            train.to_vec(),
            "'optimizer.clip_norm: 1.0', rank 1",
        ),
    ];
    for (first, second, part) in cases {
        let outcomes = wrn_dist_by_variables_each(&[&first, &second]);
        let said: String = outcomes.iter().map(|outcome| &*outcome.stderr).collect();
        assert_eq!(said.matches(" differs between ranks: ").count(), 1, "{first:?}, {second:?}: {said}");
        assert!(said.contains(part), "{first:?}, {second:?}: {said}");
        assert!(outcomes.iter().all(|outcome| outcome.code == Some(2)), "{first:?}, {second:?}: {said}");
    }
}

#[test]
fn senseless_options_are_refused_with_what_is_expected() {
    let experiment = experiment();
    let plan = ["plan", "--config", experiment.config()];
    let cases: [(&[&str], &[&str], &str); 6] = [
        (&["bench", "model", "wrn-10-1"], &["--threads", "1025"], "1..=1024"),
        (&["bench", "model", "wrn-10-1"], &["--dtype", "fp16"], "expected fp32 or bf16"),
        (&plan, &["--ranks", "1048577"], "1..=1048576"),
        (&plan, &["--step-ms", "1e308"], "--step-ms 1"),
        (&plan, &["--step-ms", "5", "--gbit", "1e-300"], "is out of range; expected 1e-9 to 1e9"),
        (&plan, &["--set", "telemetry.prometheus=127.0.0.1:0"], "expected 1 to 65535"),
    ];
    for (command, more, part) in cases {
        let refused = wrn_dist(1, &[command, more].concat()).expect_code(2);
        assert!(refused.stderr.contains(part), "{command:?} {more:?}: {}", refused.stderr);
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let experiment = experiment();
    for arguments in
        [&["doctor"][..], &["plan", "--config", experiment.config()], &["model", "show", "wrn-10-1"]]
    {
        let mut command = Command::new(end_to_end::binary());
        let full = command.args(arguments).stdout(File::create("/dev/full").unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&full.stderr);
        assert_eq!(full.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains("cannot be written to standard output: No space left"),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn a_run_directory_holds_what_the_contract_names() {
    let experiment = experiment();
    let _ = experiment.train("run", 1, &[]).expect_code(0);
    let run = experiment.path("run");
    for file in ["config.yaml", "run.json", "metrics.jsonl", "checkpoints/latest", "report/curves.svg"] {
        assert!(run.join(file).exists(), "{file}");
    }
    let svg = std::fs::read_to_string(run.join("report/curves.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("top-1 error") && svg.contains("</svg>"));
    let record: Value = serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["parameters"], 77_850, "the paper's formula for WRN-10-1");
    assert_eq!(record["steps_per_epoch"], 4);
    // The resolved configuration starts the same run.
    let config = run.join("config.yaml");
    let out = experiment.path("again");
    let arguments = ["train", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let _ = wrn_dist(1, &arguments).expect_code(0);
    assert!(experiment.checkpoint("again") == experiment.checkpoint("run"));
}

#[test]
fn model_show_prints_the_papers_counts() {
    let outcome = wrn_dist(1, &["model", "show", "wrn-28-10", "--format", "json"]).expect_code(0);
    let model: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(model["parameters"], 36_479_194);
    assert_eq!(model["macs"], 5_243_328_768_u64);
    assert_eq!(model["convolutions"], 28);
    let table = wrn_dist(1, &["model", "show", "wrn-28-10", "--classes", "100"]).expect_code(0).stdout;
    assert!(table.contains("36536884") && table.contains("640"), "{table}");
    let unknown = wrn_dist(1, &["model", "show", "wrn-29-10"]).expect_code(2);
    assert!(unknown.stderr.contains("6N+4"), "{}", unknown.stderr);
}

#[test]
fn plan_names_batches_buckets_and_rates_and_refuses_what_training_refuses() {
    let experiment = experiment();
    let plan = wrn_dist(1, &["plan", "--config", experiment.config(), "--ranks", "2"]).expect_code(0).stdout;
    for part in
        ["77850 parameters", "2 micro batches of 8, 1 on each of 2", "4 an epoch", "0.100000", "0.020000"]
    {
        assert!(plan.contains(part), "{plan}\nlacks {part}");
    }
    let refused = wrn_dist(1, &["plan", "--config", experiment.config(), "--ranks", "3"]).expect_code(2);
    assert!(refused.stderr.contains("train.global_batch"), "{}", refused.stderr);
}

#[test]
fn config_show_writes_out_defaults_and_overrides() {
    let experiment = experiment();
    let arguments = ["config", "show", "--config", experiment.config(), "--set", "optimizer.momentum=0.8"];
    let shown = wrn_dist(1, &arguments).expect_code(0).stdout;
    for line in ["momentum: 0.8", "nesterov: true", "reduce: ordered", "conv_init: fan-in", "workers: 1"] {
        assert!(shown.contains(line), "{shown}\nlacks {line}");
    }
}

#[test]
fn doctor_names_versions_and_says_whether_there_is_a_gpu() {
    let text = wrn_dist(1, &["doctor"]).expect_code(0).stdout;
    for part in ["libtorch      2.13", "CUDA", "GPUs", "cores", "MPI"] {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
}

fn scrape(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn prometheus_can_scrape_a_run_in_progress() {
    let experiment = experiment();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("wrn-dist");
    let mut child = Command::new(binary)
        .args(["train", "--config", experiment.config(), "--set", "train.epochs=100000", "--out"])
        .arg(experiment.path("run"))
        .args(["--set", &format!("telemetry.prometheus=127.0.0.1:{port}")])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let complete = |text: &String| {
        text.contains("wrn_dist_test_top1_error") && text.contains("wrn_dist_phase_seconds_bucket")
    };
    let text = loop {
        if let Some(text) = scrape(port).filter(complete) {
            break text;
        }
        assert!(
            child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(60),
            "no metrics"
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    for part in [
        "# TYPE wrn_dist_steps_total counter",
        "wrn_dist_loss{rank=\"0\"}",
        "phase=\"backward\"",
        "le=\"0.03\"",
    ] {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
    match Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Err(_) => skip("prometheus", "promtool is not installed, so only the text was looked at"),
        Ok(mut promtool) => {
            promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let outcome = promtool.wait_with_output().unwrap();
            assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        }
    }
}
