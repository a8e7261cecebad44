//! Training on prepared shards, with every augmentation: the same bits on any number of ranks and decoder threads, bad
//! samples as configured, and combinations that make no sense refused with their key.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use data_sharding::jpeg::ImageEncoder;
use end_to_end::{metrics_without_times, mpirun_or_skip, wrn_dist};
use serde_json::Value;
use tempfile::TempDir;

const CLASSES: usize = 4;

/// Files of several sizes: a class is a colour, a sample has stripes of its own.
fn write_images(folder: &Path, a_class: usize) {
    let mut encoder = ImageEncoder::new(90).unwrap();
    for class in 0..CLASSES {
        let folder = folder.join(format!("class-{class}"));
        fs::create_dir_all(&folder).unwrap();
        for sample in 0..a_class {
            let (width, height) = (40 + 7 * (sample % 5) as u32, 36 + 5 * (sample % 7) as u32);
            let mut rgb = Vec::new();
            for y in 0..height {
                for x in 0..width {
                    let bright = ((x + y * (1 + sample as u32 % 3)) / 6).is_multiple_of(2);
                    let stripe = if bright { 60 } else { 0 };
                    rgb.extend([0, 1, 2].map(|channel| if channel == class { 150 + stripe } else { stripe }));
                }
            }
            let mut file = Vec::new();
            encoder.encode(&rgb, width, height, &mut file).unwrap();
            fs::write(folder.join(format!("{sample}.jpg")), file).unwrap();
        }
    }
}

struct Shards(TempDir);

impl Shards {
    /// 4 classes of 12 training and 5 test images, prepared, and a configuration with everything on.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_images(&folder.path().join("images/train"), 12);
        write_images(&folder.path().join("images/val"), 5);
        let shards = Shards(folder);
        shards.write_config("");
        shards.prepare();
        shards
    }

    fn prepare(&self) {
        let (images, prepared) = (self.path("images"), self.path("shards"));
        let arguments =
            ["data", "prepare", "imagefolder", images.to_str().unwrap(), prepared.to_str().unwrap()];
        let _ = wrn_dist(1, &arguments).expect_code(0);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write_config(&self, more: &str) {
        let config = format!(
            "seed: 7
model: {{arch: wrn-10-1, dropout: 0.1}}
data:
  kind: shards
  path: {}
  image_size: {{from: 24, to: 32, until_epoch: 2, step: 8}}
  test_resize: 36
  color_jitter: {{brightness: 0.4, contrast: 0.4, saturation: 0.4}}
  lighting: 0.1
  auto_augment: trivial-wide
  erase: 0.3
  mixup: 0.2
  cutmix: 1.0
  repetitions: 2
{more}train: {{epochs: 2, global_batch: 16, micro_batch: 4, determinism: world, threads: 1}}
schedule: {{kind: constant, rate: 0.05}}
",
            self.path("shards").display()
        );
        fs::write(self.path("run.yaml"), config).unwrap();
    }

    fn command(&self, ranks: usize, command: &[&str], sets: &[&str]) -> end_to_end::Outcome {
        let config = self.path("run.yaml");
        let mut arguments = command.to_vec();
        arguments.extend(["--config", config.to_str().unwrap()]);
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        wrn_dist(ranks, &arguments)
    }

    fn train(&self, name: &str, ranks: usize, sets: &[&str]) -> (Vec<Value>, Vec<u8>) {
        let out = self.path(name);
        let _ = self.command(ranks, &["train", "--out", out.to_str().unwrap()], sets).expect_code(0);
        let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let metrics = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let latest = fs::read_to_string(out.join("checkpoints/latest")).unwrap();
        let weights = fs::read(out.join("checkpoints").join(latest).join("weights.safetensors")).unwrap();
        (metrics_without_times(metrics), weights)
    }
}

#[test]
fn everything_on_gives_the_same_bits_on_any_number_of_ranks_and_decoders() {
    let shards = Shards::new();
    let reference = shards.train("one", 1, &["data.workers=1"]);
    // 4 classes of 12 samples, twice: 6 steps an epoch.
    assert_eq!(reference.0.len(), 2 * 6 + 2);
    let again = shards.train("more decoders", 1, &["data.workers=3", "data.read=map"]);
    assert!(again == reference, "decoder threads change the run");
    if mpirun_or_skip() {
        let two = shards.train("two", 2, &[]);
        assert!(two == reference, "the number of ranks changes the run");
    }
    for set in
        ["data.mixup=0", "data.erase=0", "data.lighting=0", "data.auto_augment=null", "data.order=block"]
    {
        let other = shards.train(set, 1, &[set, "train.epochs=1"]);
        assert_ne!(other.0[0], reference.0[0], "{set} changes the first step");
    }
    let out = shards.path("one");
    let ten = shards.command(1, &["eval", "--ten-crop", "--checkpoint", out.to_str().unwrap()], &[]);
    let ten = ten.expect_code(0);
    assert!(ten.stdout.contains("20 test images"), "{}", ten.stdout);
}

#[test]
fn a_damaged_sample_ends_the_run_or_is_skipped_and_counted() {
    let shards = Shards::new();
    let archive = shards.path("shards/train/shard-000000.tar");
    let mut bytes = fs::read(&archive).unwrap();
    // The first image starts in the second block of the archive.
    bytes[512..640].fill(0);
    fs::write(&archive, bytes).unwrap();
    let out = shards.path("ends");
    let sets = ["data.order=sequential"];
    let ended = shards.command(1, &["train", "--out", out.to_str().unwrap()], &sets).expect_code(1);
    assert!(ended.stderr.contains("sample 0 cannot be decoded"), "{}", ended.stderr);
    let (metrics, _) =
        shards.train("goes on", 1, &["data.order=sequential", "data.on_bad_sample=skip-and-log"]);
    let skipped: Vec<u64> = metrics.iter().filter_map(|line| line["skipped_samples"].as_u64()).collect();
    // Its two visits stand in the first step of each epoch.
    assert_eq!(skipped, [2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert!(metrics[0]["loss"].as_f64().unwrap().is_finite());
}

#[test]
fn combinations_that_make_no_sense_are_refused_with_their_key() {
    let shards = Shards::new();
    for (set, parts) in [
        ("data.crop=padded", ["data.crop:", "random-resized"]),
        ("data.crop_padding=4", ["data.crop_padding:", "padded"]),
        ("data.pad_to=32", ["data.pad_to:", "not for shards"]),
        ("data.normalize=zca", ["data.normalize:", "one size"]),
        ("data.normalize=whitened", ["data.normalize:", "zca"]),
        ("data.test_resize=20", ["data.test_resize:", "32 to 8192"]),
        ("data.crop=center", ["data.image_size:", "one size"]),
        ("data.crop_area=[0.5,0.1]", ["data.crop_area:", "ascending"]),
        ("data.erase=1.5", ["data.erase:", "0 to 1"]),
        ("data.class_fraction=0", ["data.class_fraction:", "0 excluded"]),
        ("data.repetitions=0", ["data.repetitions:", "1 to 1024"]),
        ("data.rand_magnitude=31", ["data.rand_magnitude:", "0 to 30"]),
        ("data.image_size={from: 8}", ["data.image_size:", "expected a number of pixels"]),
        ("data.path=/nonexistent", ["data.path:", "`train`"]),
        ("train.micro_batch=1", ["data.mixup:", "micro_batch"]),
    ] {
        let refused = shards.command(1, &["plan"], &[set]).expect_code(2);
        for part in parts {
            assert!(refused.stderr.contains(part), "{set}: `{}` lacks `{part}`", refused.stderr);
        }
    }
}

#[test]
fn a_picture_and_a_measurement_of_the_data() {
    let shards = Shards::new();
    let picture = shards.path("samples.png");
    let shown = shards.command(
        1,
        &["data", "show", "--samples", "3", "--epochs", "2", "--out", picture.to_str().unwrap()],
        &[],
    );
    let _ = shown.expect_code(0);
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    let folder = shards.path("shards/train");
    let measure =
        ["--batch", "8", "--batches", "2", "--rounds", "1", "--threads", "2", "--image-size", "32", "--json"];
    for folder in [folder, shards.path("images/train")] {
        let arguments = [&["bench", "data", folder.to_str().unwrap()][..], &measure].concat();
        let bench: Value = serde_json::from_str(&wrn_dist(1, &arguments).expect_code(0).stdout).unwrap();
        assert_eq!(bench["shape"], serde_json::json!([8, 32, 32, 3]));
        assert!(bench["images_per_second"].as_f64().unwrap() > 0.0);
        assert!(bench["decoder_milliseconds"]["decode"].as_f64().unwrap() > 0.0);
        assert!(bench["limit"].as_str().unwrap().len() > 20);
    }
    let of_config =
        shards.command(1, &["bench", "data", "--batch", "8", "--batches", "1", "--rounds", "1"], &[]);
    assert!(of_config.expect_code(0).stdout.contains("images/s"));
}
