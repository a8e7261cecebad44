//! What only GPUs can show: streams beside each other, and NVIDIA's own NCCL. Skipped, loudly, without them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use end_to_end::{Experiment, FashionMnist, metrics_without_times, mpirun_or_skip, skip, wrn_dist};

/// Whether there are as many GPUs; says so loudly when there are not.
fn gpus_or_skip(wanted: usize) -> bool {
    let list = Command::new("nvidia-smi").arg("--list-gpus").output();
    let found = list.map_or(0, |list| String::from_utf8_lossy(&list.stdout).lines().count());
    if found < wanted {
        skip("gpu", &format!("{wanted} GPU(s) are needed, and there are {found}"));
    }
    found >= wanted
}

fn experiment() -> Experiment {
    Experiment::new(
        FashionMnist { train: 10 * 64, test: 100 },
        "model: {arch: wrn-16-4}
train: {epochs: 1, global_batch: 64, micro_batch: 16}
schedule: {kind: constant, rate: 0.05}
comm: {first_bucket_kib: 64, bucket_kib: 1024}
",
    )
}

fn losses(experiment: &Experiment, run: &str) -> Vec<f64> {
    experiment.metrics(run).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn a_gpu_trains_as_the_cpu_does_and_twice_the_same() {
    if !gpus_or_skip(1) {
        return;
    }
    let experiment = experiment();
    for (run, device) in [("cpu", "cpu"), ("gpu", "cuda"), ("again", "cuda")] {
        let set = format!("train.device={device}");
        let _ = experiment.train(run, 1, &["--set", &set]).expect_code(0);
    }
    let first = experiment.checkpoint("gpu");
    assert!(first == experiment.checkpoint("again"), "train.determinism: run promises the same bits");
    for (step, (gpu, cpu)) in losses(&experiment, "gpu").iter().zip(losses(&experiment, "cpu")).enumerate() {
        assert!((gpu - cpu).abs() < 0.02 * (1.0 + cpu), "step {step}: loss {gpu}, on the CPU {cpu}");
    }
}

#[test]
fn two_gpus_sum_over_nccl_to_the_bits_of_the_sum_over_mpi() {
    if !gpus_or_skip(2) || !mpirun_or_skip() {
        return;
    }
    let doctor = wrn_dist(1, &["doctor"]).expect_code(0);
    assert!(doctor.stdout.contains("libnccl.so"), "{}", doctor.stdout);
    let experiment = experiment();
    for (run, more) in [
        ("mpi", &["--set", "comm.backend=mpi"][..]),
        ("nccl", &["--set", "comm.backend=nccl"]),
        ("nccl, in one go", &["--set", "comm.backend=nccl", "--set", "comm.overlap=false"]),
        ("nccl, updated early", &["--set", "comm.backend=nccl", "--set", "comm.overlap=sync+step"]),
        ("nccl, in shards", &["--set", "comm.backend=nccl", "--set", "optimizer.shard=true"]),
    ] {
        let _ = experiment.train(run, 2, &[&["--set", "train.device=cuda"], more].concat()).expect_code(0);
        let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
        assert!(result(run) == result("mpi"), "{run}: another run than over MPI");
    }
    let own = ["--set", "train.device=cuda", "--set", "comm.backend=nccl", "--set", "comm.reduce=nccl"];
    let _ = experiment.train("nccl's own order", 2, &own).expect_code(0);
}

#[test]
fn sums_between_two_gpus_are_measured_and_right() {
    if !gpus_or_skip(2) || !mpirun_or_skip() {
        return;
    }
    for reduce in ["ordered", "nccl"] {
        let arguments = ["bench", "allreduce", "--backend", "nccl", "--max-kib", "1024", "--reduce", reduce];
        let bench = wrn_dist(2, &arguments).expect_code(0);
        assert!(bench.stdout.contains("backend nccl, memory Cuda(0)"), "{}", bench.stdout);
    }
}
