//! The memory of a process that decodes epoch after epoch.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod jpeg_support;
mod shards_support;

use std::fs;
use std::sync::Arc;

use data_sharding::{
    Augmentation, AutoAugment, Crop, EncodedSource, Filter, ImageSize, OnBadSample, Order, Pool, PoolOptions,
    RandomErasing, RandomResizedCrop, ReadMode, Sampler, ShardSet,
};
use jpeg_support::{Coding, PLAIN, encode, picture};
use shards_support::{options, prepare_folder};

const IMAGES: u64 = 600;
const EPOCHS: usize = 20;
const BATCH: usize = 50;
/// What the allocator may keep more of after many epochs than after a few.
const SLACK_KIB: u64 = 4096;

/// Resident memory of this process in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "long"]
fn memory_stays_the_same_over_twenty_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let (source, shards) = (dir.path().join("in"), dir.path().join("out"));
    for image in 0..IMAGES {
        let folder = source.join(format!("class-{}", image % 5));
        fs::create_dir_all(&folder).unwrap();
        let (width, height) = (300 + (image % 7) as u32 * 40, 280 + (image % 5) as u32 * 30);
        let coding = Coding { progressive: image % 10 == 0, optimize: true, ..PLAIN };
        let jpeg = encode(&picture(3, width, height, image), 3, width, height, coding);
        fs::write(folder.join(format!("{image}.jpg")), jpeg).unwrap();
    }
    prepare_folder(&source, &shards, &options()).unwrap();
    let set: Arc<dyn EncodedSource> = Arc::new(ShardSet::open(&shards, ReadMode::Read).unwrap());
    let crop = Crop::RandomResized {
        crop: RandomResizedCrop::default(),
        size: ImageSize::constant(176),
        filter: Filter::Bilinear,
    };
    let augmentation = Augmentation {
        flip: true,
        auto: Some(AutoAugment::TrivialWide),
        erase: Some(RandomErasing { probability: 0.5, area: (0.02, 0.33), aspect: (0.3, 3.3) }),
        ..Augmentation::of_test(crop)
    };
    let sampler = Sampler::new(set.len(), 1, Order::Shuffled);
    let batches = set.len() / BATCH;
    let requests = (0..EPOCHS as u64).flat_map(move |epoch| {
        let order = sampler.epoch(epoch);
        (0..batches).map(|batch| order.keys(batch * BATCH..(batch + 1) * BATCH)).collect::<Vec<_>>()
    });
    let pool_options =
        PoolOptions { workers: 2, batch_size: BATCH, prefetch: 4, on_bad_sample: OnBadSample::Error };
    let mut pool = Pool::start(set, augmentation, Box::new(requests), pool_options).unwrap();
    let mut resident = Vec::new();
    for _ in 0..EPOCHS {
        (0..batches).for_each(|_| drop(pool.next().unwrap().unwrap()));
        resident.push(resident_kib());
    }
    assert!(pool.next().is_none());
    eprintln!("resident memory in KiB after each of {EPOCHS} epochs of {IMAGES} images: {resident:?}");
    let most = |epochs: &[u64]| *epochs.iter().max().unwrap();
    assert!(most(&resident[10..]) <= most(&resident[1..5]) + SLACK_KIB, "{resident:?}");
}
