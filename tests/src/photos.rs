//! What takes the place of ImageNet, and of the networks for it, where recipes for it are tried.

use std::fs;
use std::path::{Path, PathBuf};

use data_sharding::jpeg::ImageEncoder;

use crate::command::wrn_dist;

const CLASSES: u32 = 4;

/// Options that let a recipe for ImageNet run on few photos, with a small network of the same kind and 6 steps an
/// epoch.
#[must_use]
pub fn small_recipe() -> Vec<&'static str> {
    let sets = [
        "model.arch=wrn-18-1-imagenet",
        "data.image_size=32",
        "data.test_resize=36",
        "data.test_size=32",
        "train.global_batch=8",
        "train.micro_batch=4",
        "train.threads=1",
        "checkpoint.every_epochs=100",
        "train.evaluate_every_epochs=3",
    ];
    sets.iter().flat_map(|set| ["--set", set]).collect()
}

/// Makes 48 photos for training and 12 for validation below `folder`, and shards of them. The folder of these.
///
/// # Panics
/// When `folder` is not writable.
#[must_use]
pub fn prepare_photos(folder: &Path) -> PathBuf {
    let (photos, prepared) = (folder.join("photos"), folder.join("prepared"));
    write_photos(&photos.join("train"), 12);
    write_photos(&photos.join("val"), 3);
    let path = |folder: &Path| folder.to_str().expect("temporary paths are UTF-8").to_owned();
    let arguments = ["data", "prepare", "imagefolder", &path(&photos), &path(&prepared)];
    let _ = wrn_dist(1, &arguments).expect_code(0);
    prepared
}

/// A folder a class, whose colour tells it.
fn write_photos(folder: &Path, a_class: u32) {
    let mut encoder = ImageEncoder::new(90).expect("libjpeg-turbo has an encoder");
    for class in 0..CLASSES {
        let folder = folder.join(format!("class-{class}"));
        fs::create_dir_all(&folder).expect("the test's folder is writable");
        for sample in 0..a_class {
            let (width, height) = (40 + sample % 9, 48 - sample % 5);
            let pixel = |at: u32| {
                let shade = (at * 7 + sample * 31) % 90;
                [0, 1, 2].map(|channel| (if channel == class { 140 } else { 20 } + shade) as u8)
            };
            let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
            let mut file = Vec::new();
            encoder.encode(&rgb, width, height, &mut file).expect("so small a picture can be encoded");
            fs::write(folder.join(format!("{sample}.jpg")), file).expect("the test's folder is writable");
        }
    }
}
