//! Training on prepared shards, with every augmentation: the same bits on any number of ranks and decoder threads, bad
//! samples as configured, and combinations that make no sense refused with their key.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use data_sharding::jpeg::ImageEncoder;
use end_to_end::{
    expect_failure, expect_parts, metrics_without_times, mpirun_or_skip, wrn_dist, wrn_dist_in_environment,
};
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
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap());
        // Of those that tell of checkpoints, equal runs may have others.
        let metrics = lines.filter(|line: &Value| line["kind"] != "checkpoint").collect();
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
    // Its two visits stand in the first step of each epoch, whose own line counts them too.
    assert_eq!(skipped, [2, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 2]);
    // A mean over the samples that are there: with the skipped ones counted as zeros it would be an eighth less.
    let whole = Shards::new();
    let (sound, _) = whole.train("sound", 1, &sets);
    let [loss, of_sound] = [&metrics, &sound].map(|metrics| metrics[0]["loss"].as_f64().unwrap());
    assert!((loss / of_sound - 1.0).abs() < 0.1, "{loss} with two of 16 samples skipped, {of_sound} without");
    // Fewer than five classes have no top-5 error.
    assert!(metrics[6]["test_top5_error"].is_null() && metrics[6]["test_top1_error"].is_f64());
}

/// Overwrites the images of a shard with zeros, as far as `spared` allows; its index stays right.
fn spoil_images(shard: &Path, spared: usize) {
    let mut bytes = fs::read(shard).unwrap();
    let mut at = 0;
    let mut images = 0;
    // A header block, the file's own blocks; names of images end in .jpg or .png.
    while bytes.get(at).is_some_and(|&byte| byte != 0) {
        let name = bytes[at..at + 100].split(|&byte| byte == 0).next().unwrap().to_vec();
        let size = std::str::from_utf8(&bytes[at + 124..at + 135]).unwrap();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap();
        if !name.ends_with(b".cls") {
            images += 1;
            if images > spared {
                bytes[at + 512..at + 512 + size].fill(0);
            }
        }
        at += 512 + size.next_multiple_of(512);
    }
    assert!(images > spared);
    fs::write(shard, bytes).unwrap();
}

#[test]
fn a_rank_that_cannot_decode_is_heard_by_ranks_that_have_begun_the_next_step() {
    if !mpirun_or_skip() {
        return;
    }
    let shards = Shards::new();
    // Of step 2, which visits eight samples twice, the second half is rank 1's.
    spoil_images(&shards.path("shards/train/shard-000000.tar"), 12);
    let (config, double) = (shards.path("run.yaml"), nccl_double::shared_library());
    let environment = [("WRN_DIST_NCCL", double.to_str().unwrap())];
    // With shards of the optimizer every step ends with a collective of its own.
    for shard in ["optimizer.shard=false", "optimizer.shard=true"] {
        let out = shards.path(shard);
        let mut arguments =
            vec!["train", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let over_nccl = ["train.determinism=run", "comm.backend=nccl", "comm.timeout_s=20", shard];
        for set in ["data.order=sequential"].iter().chain(&over_nccl) {
            arguments.extend(["--set", set]);
        }
        let sentence = expect_failure("decode", &wrn_dist_in_environment(2, &arguments, &environment));
        expect_parts(&sentence, &["error (rank 1 on ", "sample 12 cannot be decoded"]);
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), 1, "the step before it counts: {metrics}");
    }
}

#[test]
fn a_data_set_in_which_no_image_can_be_decoded_is_not_trained_on() {
    let shards = Shards::new();
    spoil_images(&shards.path("shards/train/shard-000000.tar"), 0);
    for ranks in [1, 2] {
        if ranks > 1 && !mpirun_or_skip() {
            return;
        }
        let out = shards.path(&format!("train {ranks}"));
        let ended = shards
            .command(ranks, &["train", "--out", out.to_str().unwrap()], &["data.on_bad_sample=skip-and-log"])
            .expect_code(1);
        assert_eq!(
            ended.stderr.matches("no sample of step 1 could be decoded").count(),
            1,
            "{}",
            ended.stderr
        );
        assert!(!out.join("checkpoints").exists(), "nothing is saved");
    }

    let shards = Shards::new();
    spoil_images(&shards.path("shards/val/shard-000000.tar"), 0);
    let out = shards.path("test");
    let ended = shards
        .command(1, &["train", "--out", out.to_str().unwrap()], &["data.on_bad_sample=skip-and-log"])
        .expect_code(1);
    assert!(ended.stderr.contains("no test image could be decoded"), "{}", ended.stderr);
}

#[test]
fn test_images_that_cannot_be_decoded_are_wrong_and_counted() {
    let shards = Shards::new();
    spoil_images(&shards.path("shards/val/shard-000000.tar"), 15);
    let (metrics, _) = shards.train("run", 2, &["data.on_bad_sample=skip-and-log", "train.epochs=1"]);
    let epoch = metrics.last().unwrap();
    assert_eq!((&epoch["test_samples"], &epoch["test_skipped_samples"]), (&20.into(), &5.into()));
    assert!(epoch["test_loss"].as_f64().unwrap() > 0.5 && epoch["test_top1_error"].as_f64().unwrap() >= 0.25);
    let evaluated = shards.command(
        1,
        &["eval", "--checkpoint", shards.path("run").to_str().unwrap()],
        &["data.on_bad_sample=skip-and-log"],
    );
    let evaluated = evaluated.expect_code(0);
    assert!(
        evaluated.stdout.contains("20 test images, 5 of which could not be decoded: loss "),
        "{}",
        evaluated.stdout
    );
    assert!(!evaluated.stdout.contains("top-5"), "{}", evaluated.stdout);
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
        ("data.class_fraction=0", ["data.class_fraction:", "expected 1e-6 to 1"]),
        ("data.repetitions=0", ["data.repetitions:", "1 to 1024"]),
        ("data.rand_magnitude=31", ["data.rand_magnitude:", "0 to 30"]),
        ("data.image_size={from: 8}", ["data.image_size:", "expected a number of pixels"]),
        (
            "data.image_size={from: 24, to: 32, until_epoch: 0}",
            ["data.image_size.until_epoch:", "expected 1 to"],
        ),
        ("data.image_size={from: 32, to: 24, until_epoch: 2}", ["data.image_size.from:", "sizes that grow"]),
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
    // More batches a round than are decoded ahead, else nothing may be left to measure.
    let measure =
        ["--batch", "8", "--batches", "8", "--rounds", "1", "--threads", "2", "--image-size", "32", "--json"];
    // Shards, the prepared set that they are a half of, and files.
    for folder in [folder, shards.path("shards"), shards.path("images/train")] {
        let arguments = [&["bench", "data", folder.to_str().unwrap()][..], &measure].concat();
        let bench: Value = serde_json::from_str(&wrn_dist(1, &arguments).expect_code(0).stdout).unwrap();
        assert_eq!(bench["shape"], serde_json::json!([8, 32, 32, 3]));
        assert!(bench["images_per_second"].as_f64().unwrap() > 0.0);
        let decode = bench["decoder_milliseconds"]["decode"].as_f64().unwrap();
        let parts = bench["decode_milliseconds"].as_object().unwrap();
        let sum: f64 = parts.values().map(|part| part.as_f64().unwrap()).sum();
        assert!(decode > 0.0 && (sum / decode - 1.0).abs() < 1e-6 && parts.len() == 4, "{bench:#}");
        assert!(bench["limit"].as_str().unwrap().len() > 20);
    }
    let of_config =
        shards.command(1, &["bench", "data", "--batch", "8", "--batches", "1", "--rounds", "1"], &[]);
    assert!(of_config.expect_code(0).stdout.contains("images/s"));
}
