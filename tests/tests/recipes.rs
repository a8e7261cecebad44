//! The configurations of `configs/imagenet/` run: on generated photos, small and few, with a small network of the same
//! kind. Whether they reach their accuracy is not tested. Each has a job script that asks for the GPUs it is meant for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use end_to_end::{expect_parts, mpirun_or_skip, prepare_photos, small_recipe, wrn_dist};
use serde_json::Value;

const STOPPED: i32 = 75;
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn recipes() -> Vec<PathBuf> {
    let folder = Path::new(ROOT).join("configs/imagenet");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_recipe_for_imagenet_trains_20_steps_and_its_plan_can_be_shown() {
    if !mpirun_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = format!("data.path={}", prepare_photos(folder.path()).display());
    let small = [&small_recipe()[..], &["--set", &path]].concat();
    let recipes = recipes();
    assert!(recipes.len() >= 3, "{recipes:?}");
    for recipe in recipes {
        let name = recipe.file_stem().unwrap().to_str().unwrap();
        let config = ["--config", recipe.to_str().unwrap()];
        let plan = wrn_dist(1, &[&["plan", "--ranks", "2"], &config[..], &small].concat()).expect_code(0);
        assert!(plan.stdout.contains("6 an epoch"), "{name}: {}", plan.stdout);

        let out = folder.path().join(name);
        let train = ["train", "--stop-after", "step:20", "--out", out.to_str().unwrap()];
        let _ = wrn_dist(2, &[&train, &config[..], &small].concat()).expect_code(STOPPED);
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let metrics: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<&Value> = metrics.iter().filter(|line| line["kind"] == "step").collect();
        assert_eq!(steps.len(), 20, "{name}");
        assert!(steps.iter().all(|step| step["loss"].is_f64() && step["skipped"] == false), "{name}");
        let epochs: Vec<&Value> = metrics.iter().filter(|line| line["kind"] == "epoch").collect();
        assert!(epochs[2]["test_loss"].is_f64(), "{name}: {}", epochs[2]);
    }
}

/// A number that a job script asks `sbatch` for.
fn asked_for(script: &str, option: &str) -> usize {
    let value = script.lines().find_map(|line| line.strip_prefix(&format!("#SBATCH --{option}=")));
    value.unwrap_or_else(|| panic!("no --{option}")).parse().unwrap()
}

/// The arguments of `srun` that a job script of `launch/slurm` comes to with these variables and arguments.
fn command_of(script: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let srun = folder.path().join("srun");
    fs::write(&srun, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    fs::set_permissions(&srun, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut job = Command::new("bash");
    job.arg(Path::new(ROOT).join("launch/slurm").join(script)).args(arguments);
    job.env("PATH", path)
        .env("WRN_DIST_ROOT", ROOT)
        .env("BINARY", "wrn-dist")
        .envs(variables.iter().copied());
    let output = job.output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_recipe_has_a_job_script_with_as_many_gpus_as_it_is_meant_for() {
    /// Script, recipe, ranks, and what is planned for so many: its batches, its steps, and its learning rates in the
    /// first step of an epoch.
    type Case<'a> = (&'a str, &'a str, usize, [&'a str; 2], &'a [(u32, f64)]);
    let cases: [Case; 3] = [
        (
            "imagenet-1x8.sbatch",
            "wrn-50-2",
            8,
            [
                "256 images = 8 micro batches of 32, 1 on each of 8 rank(s)\n",
                " 5004 an epoch (143 images of ",
            ],
            &[(1, 0.1), (31, 0.01), (61, 0.001)],
        ),
        (
            "imagenet-1x8.sbatch",
            "wrn-50-2-modern",
            8,
            [
                "1024 images = 8 micro batches of 128, 1 on each of 8 rank(s)\n",
                " 1251 an epoch (143 images of ",
            ],
            &[(1, 0.005), (2, 0.104), (3, 0.203), (4, 0.302), (5, 0.401), (6, 0.5)],
        ),
        (
            "imagenet-8x8.sbatch",
            "wrn-50-2-large-batch",
            64,
            [
                "8192 images = 256 micro batches of 32, 4 on each of 64 rank(s)\n",
                " 156 an epoch (3215 images of ",
            ],
            &[
                (1, 0.1),
                (2, 0.72),
                (3, 1.34),
                (4, 1.96),
                (5, 2.58),
                (6, 3.2),
                (31, 0.32),
                (61, 0.032),
                (81, 0.0032),
            ],
        ),
    ];
    let names: Vec<String> =
        recipes().iter().map(|recipe| recipe.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    for name in &names {
        assert!(cases.iter().any(|(_, recipe, ..)| recipe == name), "no job script for {name}");
    }
    for (script, recipe, ranks, parts, rates) in cases {
        let text = fs::read_to_string(Path::new(ROOT).join("launch/slurm").join(script)).unwrap();
        let [nodes, a_node, gpus] =
            ["nodes", "ntasks-per-node", "gpus-per-node"].map(|option| asked_for(&text, option));
        assert_eq!((nodes * a_node, gpus), (ranks, a_node), "{script}: one rank a GPU");

        let variables = [("RECIPE", recipe), ("SLURM_GPUS_ON_NODE", "8"), ("SLURM_CPUS_PER_TASK", "12")];
        let command = command_of(script, &variables, &["--set", "precision.dtype=bf16"]);
        let own = command.iter().position(|argument| argument == "train").unwrap();
        assert_eq!(command[..own], ["--mpi=none", "--cpus-per-task=12", "--gpu-bind=none", "wrn-dist"]);
        let out = command.iter().position(|argument| argument == "--out").unwrap();
        assert_eq!(command[out + 1], format!("runs/{recipe}"));
        assert_eq!(command[own + 3..out], ["--set", "data.path=data/imagenet"]);
        assert_eq!(command[out + 2..], ["--set", "precision.dtype=bf16"]);

        let common = [&command[own + 1..out], &command[out + 2..]].concat();
        let (ranks, a_node) = (ranks.to_string(), a_node.to_string());
        let cluster = ["--ranks", &ranks, "--ranks-a-host", &a_node, "--step-ms", "300", "--gbit", "100"];
        let common = common.iter().map(String::as_str);
        let plan = ["plan"].into_iter().chain(cluster).chain(common).collect::<Vec<_>>();
        let plan = wrn_dist(1, &plan).expect_code(0).stdout;
        expect_parts(&plan, &parts);
        // Of a rate that changes in every epoch only the warm-up is compared.
        let planned: Vec<(u32, f64)> = (plan.lines())
            .filter_map(|line| line.strip_prefix("  epoch ")?.split_once(' '))
            .map(|(epoch, rate)| (epoch.parse().unwrap(), rate.trim().parse().unwrap()))
            .take(if recipe == "wrn-50-2-modern" { rates.len() } else { usize::MAX })
            .collect();
        assert_eq!(planned, rates, "{recipe}");
    }
}

#[test]
fn a_job_script_for_imagenet_has_a_recipe_of_its_own_and_takes_data_and_folder_from_variables() {
    let elsewhere = [("DATA", "/scratch/a b"), ("OUT", "/results/first run")];
    for (script, recipe) in
        [("imagenet-1x8.sbatch", "wrn-50-2"), ("imagenet-8x8.sbatch", "wrn-50-2-large-batch")]
    {
        let command = command_of(script, &elsewhere, &[]);
        let config = format!("/configs/imagenet/{recipe}.yaml");
        let given = ["--set", "data.path=/scratch/a b", "--out", "/results/first run"];
        assert_eq!(command[..4], ["--mpi=none", "wrn-dist", "train", "--config"], "{script}");
        assert!(command[4].ends_with(&config), "{script}: {command:?}");
        assert_eq!(command[5..], given, "{script}");
    }
}
