//! Jobs of `launch/slurm` under a real Slurm: over both nodes, stopped, put back into the queue, and finished with the
//! bits of a run that nobody disturbed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Instant;

use end_to_end::{
    Experiment, FashionMnist, SlurmCluster, SlurmJob, metrics_without_times, mpirun_or_skip, prepare_photos,
    skip, small_recipe,
};
use serde_json::Value;

/// Long enough to be stopped on the way; the same bits on any number of ranks.
fn experiment(epochs: usize) -> Experiment {
    Experiment::new(
        FashionMnist { train: 4 * 32, test: 32 },
        &format!(
            "model: {{arch: wrn-10-1, dropout: 0.3}}
train: {{epochs: {epochs}, global_batch: 32, micro_batch: 8, threads: 1, determinism: world, evaluate_every_epochs: 25}}
schedule: {{kind: constant, rate: 0.05}}
checkpoint: {{every_epochs: 5}}
"
        ),
    )
}

const EPOCHS: usize = 60;

type Result = (Vec<Value>, [Vec<u8>; 2]);

fn result(experiment: &Experiment, run: &str) -> Result {
    (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run))
}

fn undisturbed(experiment: &Experiment) -> Result {
    let _ = experiment.train("undisturbed", 1, &[]).expect_code(0);
    result(experiment, "undisturbed")
}

fn submit(
    cluster: &SlurmCluster,
    experiment: &Experiment,
    run: &str,
    script: &str,
    options: &[&str],
) -> SlurmJob {
    let out = experiment.path(run);
    let arguments = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
    cluster.submit(script, options, &arguments)
}

fn steps(experiment: &Experiment, run: &str) -> usize {
    fs::read_to_string(experiment.path(run).join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until a run has made some steps since it was asked before.
fn wait_for_steps(cluster: &SlurmCluster, job: &SlurmJob, experiment: &Experiment, run: &str) {
    let before = steps(experiment, run);
    cluster.wait(job, "steps", || steps(experiment, run) > before + 8);
}

/// Over the test double of NCCL, whose ranks find each other by Slurm's variables.
fn trains_over_nccl(cluster: &SlurmCluster) {
    let experiment = experiment(2);
    let out = experiment.path("nccl");
    let library = format!("WRN_DIST_NCCL={}", nccl_double::shared_library().display());
    let srun = [&library, "srun", "--mpi=none", "--nodes=2", "--ntasks=4", cluster.binary()];
    let train = ["train", "--config", experiment.config(), "--out", out.to_str().unwrap()];
    let arguments = [&srun[..], &train, &["--set", "comm.backend=nccl"]].concat();
    let _ = cluster.run("env", &arguments).expect_code(0);
    assert!(result(&experiment, "nccl") == undisturbed(&experiment), "NCCL changes the run");
}

#[test]
fn srun_starts_ranks_on_both_nodes_with_and_without_mpi() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    trains_over_nccl(&cluster);
    let kinds = cluster.run("srun", &["--mpi=list"]);
    for (mpi, transport) in [("none", "TCP, ranks met at "), ("pmix", "Open MPI ")] {
        if ![&kinds.stdout, &kinds.stderr].iter().any(|list| list.contains(mpi)) {
            skip("slurm", &format!("srun has no --mpi={mpi}"));
            continue;
        }
        let mpi = format!("--mpi={mpi}");
        let bench = ["bench", "allreduce", "--json", "--max-kib", "64", "--iterations", "3"];
        let arguments = [&[&mpi, "--nodes=2", "--ntasks=4", cluster.binary()][..], &bench].concat();
        let outcome = cluster.run("srun", &arguments).expect_code(0);
        let bench: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(bench["world_size"], 4);
        assert!(bench["transport"].as_str().unwrap().starts_with(transport), "{mpi}: {bench}");
        assert!(bench["rows"].as_array().unwrap().iter().all(|row| row["wrong"] == 0), "{bench}");
    }
}

/// A job on both nodes, asked to stop by `scancel` with these options.
fn stop_and_go_on(
    cluster: &SlurmCluster,
    experiment: &Experiment,
    expected: &Result,
    launcher: &str,
    scancel: &[&str],
) {
    let run = format!("{launcher}{}", scancel.concat());
    let export = format!("--export=ALL,LAUNCHER={launcher}");
    let options = ["--nodes=2", "--ntasks-per-node=1", &export];
    let job = submit(cluster, experiment, &run, "many-nodes.sbatch", &options);
    wait_for_steps(cluster, &job, experiment, &run);
    assert_eq!(cluster.field(&job, "NodeList"), "n[1-2]");
    let _ = cluster.run("scancel", &[scancel, &[job.id()]].concat()).expect_code(0);
    cluster.wait_for_success(&job);
    assert_eq!(cluster.field(&job, "Restarts"), "1", "{}", cluster.log(&job));
    assert!(cluster.log(&job).contains("goes back into the queue"), "{}", cluster.log(&job));
    assert!(result(experiment, &run) == *expected, "{run} is not the undisturbed run");
}

#[test]
fn a_job_on_two_nodes_saves_on_a_signal_and_goes_on_from_the_queue() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    let experiment = experiment(EPOCHS);
    let expected = undisturbed(&experiment);
    stop_and_go_on(&cluster, &experiment, &expected, "srun", &["--signal=USR2"]);
    if mpirun_or_skip() {
        stop_and_go_on(&cluster, &experiment, &expected, "mpirun", &["--batch", "--signal=USR2"]);
    }
}

#[test]
#[ignore = "long"]
fn a_signal_to_the_shell_of_a_job_reaches_the_ranks_of_srun() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    let experiment = experiment(EPOCHS);
    let expected = undisturbed(&experiment);
    stop_and_go_on(&cluster, &experiment, &expected, "srun", &["--batch", "--signal=USR2"]);
}

#[test]
#[ignore = "long"]
fn a_time_limit_saves_in_time_and_the_job_goes_on() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    // Slurm counts time limits in minutes, so the run is to take some.
    let begin = Instant::now();
    let _ = undisturbed(&experiment(EPOCHS));
    let epochs = EPOCHS * 150 / begin.elapsed().as_secs().max(1) as usize;
    let experiment = experiment(epochs);
    let expected = undisturbed(&experiment);
    let options = ["--ntasks-per-node=2", "--time=1", "--signal=B:USR2@20"];
    let job = submit(&cluster, &experiment, "limited", "single-node.sbatch", &options);
    cluster.wait_for_success(&job);
    let restarts: usize = cluster.field(&job, "Restarts").parse().unwrap();
    assert!(restarts > 0, "it took less than a minute: {}", cluster.log(&job));
    assert_eq!(cluster.log(&job).matches("goes back into the queue").count(), restarts);
    assert!(result(&experiment, "limited") == expected);
}

#[test]
#[ignore = "long"]
fn a_job_of_a_recipe_gets_its_gpus_and_goes_on_from_the_queue() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (prepare_photos(folder.path()), folder.path().join("run"));
    let more = [&small_recipe()[..], &["--stop-after", "step:8"]].concat();
    for (script, options, nodes) in [
        ("imagenet-1x8.sbatch", &["--ntasks-per-node=2", "--gpus-per-node=2"][..], "1"),
        ("imagenet-8x8.sbatch", &["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1"], "2"),
    ] {
        let out = out.join(script);
        let export = format!("--export=ALL,DATA={},OUT={}", data.display(), out.display());
        let job = cluster.submit(script, &[options, &[&export]].concat(), &more);
        cluster.wait_for_success(&job);
        let log = cluster.log(&job);
        // It ended with 75 after 8 steps, and had nothing to do when it came back.
        assert_eq!([cluster.field(&job, "Restarts"), cluster.field(&job, "NumNodes")], ["1", nodes], "{log}");
        assert!(cluster.field(&job, "TRES").ends_with(",gres/gpu=2"), "{}", cluster.field(&job, "TRES"));
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.matches("\"kind\":\"step\"").count(), 8, "{log}");
    }
}

#[test]
#[ignore = "long"]
fn a_job_that_is_requeued_in_mid_step_goes_on_from_its_latest_checkpoint() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    let experiment = experiment(EPOCHS);
    let expected = undisturbed(&experiment);
    let job = submit(&cluster, &experiment, "requeued", "many-nodes.sbatch", &["--ntasks-per-node=2"]);
    for _ in 0..2 {
        wait_for_steps(&cluster, &job, &experiment, "requeued");
        let _ = cluster.run("scontrol", &["requeue", job.id()]).expect_code(0);
        cluster.wait(&job, "the job in the queue", || cluster.field(&job, "JobState") == "PENDING");
    }
    cluster.wait_for_success(&job);
    assert_eq!(cluster.field(&job, "Restarts"), "2", "{}", cluster.log(&job));
    assert!(result(&experiment, "requeued") == expected);
}

#[test]
#[ignore = "long"]
fn each_seed_of_an_array_is_a_run_of_its_own_and_is_requeued_alone() {
    let Some(cluster) = SlurmCluster::start_or_skip() else { return };
    let experiment = experiment(EPOCHS);
    let runs = experiment.path("runs");
    let export = format!("--export=ALL,RUNS={}", runs.display());
    let array = cluster.submit(
        "seeds-array.sbatch",
        &["--array=7-8", &export],
        &["train", "--config", experiment.config()],
    );
    // The last task of an array has the number of the whole array.
    let last = array.task(8);
    wait_for_steps(&cluster, &last, &experiment, "runs/seed-8");
    let _ = cluster.run("scancel", &["--batch", "--signal=USR2", last.id()]).expect_code(0);
    for index in [7, 8] {
        cluster.wait_for_success(&array.task(index));
    }
    assert_eq!([7, 8].map(|index| cluster.field(&array.task(index), "Restarts")), ["0", "1"]);
    // The experiment's own seed is 7.
    assert!(result(&experiment, "runs/seed-7") == undisturbed(&experiment));
    assert_ne!(experiment.checkpoint("runs/seed-8")[0], experiment.checkpoint("runs/seed-7")[0]);
}
