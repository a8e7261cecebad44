//! The parts of decoding's time.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod jpeg_support;
mod shards_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use data_sharding::{
    Augmentation, Crop, DataSet, EncodedSource, Filter, ImageFiles, ImageSize, RandomResizedCrop, ReadMode,
    SampleKey, ShardSet, decode_breakdown,
};
use jpeg_support::{Coding, PLAIN, encode, picture};
use shards_support::{options, prepare_folder};

fn augmentation() -> Augmentation {
    let crop = RandomResizedCrop::default();
    let size = ImageSize::constant(64);
    Augmentation::of_test(Crop::RandomResized { crop, size, filter: Filter::Bilinear })
}

fn keys(count: u32) -> Vec<SampleKey> {
    (0..count).map(|sample| SampleKey { sample, epoch: 0, repetition: 0 }).collect()
}

fn write(folder: &Path, name: &str, coding: Coding) {
    fs::create_dir_all(folder).unwrap();
    let jpeg = encode(&picture(3, 320, 240, 1), 3, 320, 240, coding);
    fs::write(folder.join(name), jpeg).unwrap();
}

#[test]
fn images_of_our_own_decoder_are_divided_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, others, shards) = (dir.path().join("in/a"), dir.path().join("others"), dir.path().join("out"));
    for image in 0..4 {
        write(&ours, &format!("{image}.jpg"), PLAIN);
        write(&others, &format!("{image}.jpg"), Coding { progressive: true, ..PLAIN });
    }
    fs::write(others.join("9.jpg"), b"no image").unwrap();
    let files = |folder: &Path| -> DataSet {
        let files: Arc<dyn EncodedSource> = Arc::new(ImageFiles::open(folder).unwrap());
        files.into()
    };
    prepare_folder(&dir.path().join("in"), &shards, &options()).unwrap();
    let indexed: Arc<dyn EncodedSource> = Arc::new(ShardSet::open(&shards, ReadMode::Read).unwrap());
    for data in [files(&ours), indexed.into()] {
        let found = decode_breakdown(&data, &augmentation(), &keys(4)).unwrap().unwrap();
        for part in [found.open, found.entropy, found.reconstruct] {
            assert!(!part.is_zero(), "{found:?}");
        }
        assert!(found.undivided.is_zero(), "{found:?}");
    }
    let found = decode_breakdown(&files(&others), &augmentation(), &keys(5)).unwrap().unwrap();
    assert!(found.undivided == found.sum() && !found.sum().is_zero(), "{found:?}");
    let none = decode_breakdown(&files(&others), &augmentation(), &keys(5)[4..]).unwrap();
    assert_eq!(none, None, "nothing that can be decoded");
}
