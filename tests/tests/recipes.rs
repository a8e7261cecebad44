//! The configurations of `configs/imagenet/` run: on generated photos, small and few, with a small network of the same
//! kind. Whether they reach their accuracy is not tested.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use data_sharding::jpeg::ImageEncoder;
use end_to_end::{mpirun_or_skip, wrn_dist};
use serde_json::Value;

const STOPPED: i32 = 75;
const CLASSES: u32 = 4;

/// A folder a class, whose colour tells it.
fn write_photos(folder: &Path, a_class: u32) {
    let mut encoder = ImageEncoder::new(90).unwrap();
    for class in 0..CLASSES {
        let folder = folder.join(format!("class-{class}"));
        fs::create_dir_all(&folder).unwrap();
        for sample in 0..a_class {
            let (width, height) = (40 + sample % 9, 48 - sample % 5);
            let pixel = |at: u32| {
                let shade = (at * 7 + sample * 31) % 90;
                [0, 1, 2].map(|channel| (if channel == class { 140 } else { 20 } + shade) as u8)
            };
            let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
            let mut file = Vec::new();
            encoder.encode(&rgb, width, height, &mut file).unwrap();
            fs::write(folder.join(format!("{sample}.jpg")), file).unwrap();
        }
    }
}

fn recipes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/imagenet");
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
    let (photos, prepared) = (folder.path().join("photos"), folder.path().join("prepared"));
    write_photos(&photos.join("train"), 12);
    write_photos(&photos.join("val"), 3);
    let arguments = ["data", "prepare", "imagefolder", photos.to_str().unwrap(), prepared.to_str().unwrap()];
    let _ = wrn_dist(1, &arguments).expect_code(0);
    let path = format!("data.path={}", prepared.display());
    let small = [
        "model.arch=wrn-18-1-imagenet",
        "data.image_size=32",
        "data.test_resize=36",
        "data.test_size=32",
        "train.global_batch=8",
        "train.micro_batch=4",
        "train.threads=1",
        "checkpoint.every_epochs=100",
        "train.evaluate_every_epochs=3",
        &path,
    ];
    let small: Vec<&str> = small.iter().flat_map(|set| ["--set", set]).collect();
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
