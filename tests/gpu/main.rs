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

#[test]
fn a_gpu_gets_the_batches_of_the_pool_whole_and_in_order_however_far_ahead_they_are_decoded() {
    if !gpus_or_skip(1) {
        return;
    }
    // So small a network that copies are as long as the computation beside which they run.
    let experiment = Experiment::new(
        FashionMnist { train: 200 * 64, test: 1000 },
        "model: {arch: wrn-10-1}
train: {epochs: 1, global_batch: 64, micro_batch: 32}
schedule: {kind: constant, rate: 0.05}
",
    );
    let mixing = ["--set", "data.mixup=0.2", "--set", "data.cutmix=1.0", "--set", "data.erase=0.3"];
    // With one buffer nothing is decoded while a batch is copied.
    for (run, prefetch) in [("one buffer", 1), ("two", 2), ("eight", 8)] {
        let set = format!("data.prefetch={prefetch}");
        let sets = [&["--set", "train.device=cuda", "--set", &set][..], &mixing].concat();
        let _ = experiment.train(run, 1, &sets).expect_code(0);
        let result = |run: &str| (metrics_without_times(experiment.metrics(run)), experiment.checkpoint(run));
        assert!(result(run) == result("one buffer"), "{run}: other numbers than with one buffer");
    }
    let sets = [&["--set", "train.device=cpu"][..], &mixing].concat();
    let _ = experiment.train("cpu", 1, &sets).expect_code(0);
    for (step, (gpu, cpu)) in
        losses(&experiment, "eight").iter().zip(losses(&experiment, "cpu")).take(20).enumerate()
    {
        assert!((gpu - cpu).abs() < 0.05 * (1.0 + cpu), "step {step}: loss {gpu}, on the CPU {cpu}");
    }
}

#[test]
fn the_copy_of_a_batch_takes_no_time_of_the_step() {
    if !gpus_or_skip(1) {
        return;
    }
    let experiment = experiment();
    let _ = experiment.train("run", 1, &["--set", "train.device=cuda"]).expect_code(0);
    let metrics = experiment.metrics("run");
    let mut shares: Vec<f64> = (metrics.iter().filter(|line| line["loss"].is_f64()))
        .filter_map(|line| Some(line["seconds"]["input"].as_f64()? / line["seconds"]["step"].as_f64()?))
        .collect();
    shares.sort_by(f64::total_cmp);
    let median = shares[shares.len() / 2];
    assert!(median < 0.2, "the host spends {median} of a step on the input: it waits for the copy");
}

#[test]
fn tf32_and_autotuning_change_roundings_alone() {
    if !gpus_or_skip(1) {
        return;
    }
    let experiment = experiment();
    for (run, set) in [
        ("fp32", "precision.tf32=false"),
        ("tf32", "precision.tf32=true"),
        ("autotune", "train.determinism=off"),
    ] {
        let _ = experiment.train(run, 1, &["--set", "train.device=cuda", "--set", set]).expect_code(0);
        for (step, (one, other)) in
            losses(&experiment, run).iter().zip(losses(&experiment, "fp32")).enumerate()
        {
            assert!((one - other).abs() < 0.02 * (1.0 + other), "{run}, step {step}: loss {one} for {other}");
        }
    }
    assert_ne!(losses(&experiment, "tf32"), losses(&experiment, "fp32"), "TF32 rounds");
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
fn a_gpu_that_decides_by_itself_leaves_out_the_steps_that_the_host_would() {
    if !gpus_or_skip(1) {
        return;
    }
    let experiment = experiment();
    let nan = ["--set", "train.device=cuda", "--set", "train.on_nan=skip", "--inject-fault", "4:0:nan"];
    // Where gradients pass through host memory, the host decides.
    let waits = ["--set", "comm.reduce=mpi"];
    for rule in [
        "optimizer={kind: sgd}",
        "optimizer={kind: sgd, clip_norm: 0.5}",
        "optimizer={kind: adamw}",
        "optimizer={kind: lars, clip_norm: 2}",
        "optimizer={kind: lamb}",
        "precision={dtype: fp16, loss_scale: {initial: 1024, growth_interval: 3}}",
    ] {
        let result = |name: &str, more: &[&str]| {
            let run = format!("{rule}, {name}");
            let _ = experiment.train(&run, 1, &[&nan[..], &["--set", rule], more].concat()).expect_code(0);
            let steps = experiment.metrics(&run).into_iter().filter(|line| line["kind"] == "step");
            let (ahead, left_out): (Vec<bool>, Vec<bool>) =
                steps.map(|step| (step["ahead"] == true, step["skipped"] == true)).unzip();
            assert_eq!(left_out.iter().position(|&left_out| left_out), Some(3), "{run}");
            (ahead.contains(&true), experiment.checkpoint(&run), losses(&experiment, &run))
        };
        let (ahead, waited) = (result("ahead", &[]), result("waited for", &waits));
        assert_eq!((ahead.0, waited.0), (true, false), "{rule}");
        assert!((ahead.1, ahead.2) == (waited.1, waited.2), "{rule}: another run");
    }
}

#[test]
fn two_ranks_that_see_the_same_gpu_only_are_refused_before_they_compute() {
    if !gpus_or_skip(1) || !mpirun_or_skip() {
        return;
    }
    let experiment = experiment();
    let one = [("CUDA_VISIBLE_DEVICES", "0")];
    let _ = experiment.train_in_environment("alone", 1, &["--set", "train.device=cuda"], &one).expect_code(0);
    for backend in ["mpi", "nccl"] {
        let set = format!("comm.backend={backend}");
        let sets = ["--set", "train.device=cuda", "--set", &set];
        let refused = experiment.train_in_environment("shared", 2, &sets, &one).expect_code(1);
        let sentence =
            "rank 0 and rank 1 would compute on the same GPU (this one has CUDA_VISIBLE_DEVICES=0)";
        assert_eq!(refused.stderr.matches(sentence).count(), 1, "{}", refused.stderr);
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
