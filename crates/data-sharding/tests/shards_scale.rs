//! A data set of ImageNet's size with tiny images: prepared from a tar of tars, opened, read, ordered. Prints time and
//! memory.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod shards_support;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use data_sharding::{
    Order, PrepareKind, PrepareOptions, Progress, ReadMode, Sampler, ShardSet, prepare, verify,
};
use shards_support::{jpeg, tar};

const CLASSES: usize = 1000;
const SAMPLES: usize = 1_281_167;

/// Resident memory of this process in MB: its own, and mapped files.
fn resident() -> (f64, f64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1000.0
    };
    (field("RssAnon:"), field("RssFile:"))
}

/// The training archive: a tar of a tar a class.
fn write_archive(path: &Path) {
    let images: Vec<Vec<u8>> = (0..8).map(|seed| jpeg(16 + seed as u32, 16, seed)).collect();
    let mut outer = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path).unwrap()));
    for class in 0..CLASSES {
        let count = SAMPLES * (class + 1) / CLASSES - SAMPLES * class / CLASSES;
        let names: Vec<String> = (0..count).map(|image| format!("n{class:08}_{image}.JPEG")).collect();
        let files: Vec<(&str, &[u8])> = names
            .iter()
            .enumerate()
            .map(|(image, name)| (&name[..], &images[(class + image) % 8][..]))
            .collect();
        let inner = tar(&files);
        let mut header = tar::Header::new_gnu();
        header.set_size(inner.len() as u64);
        outer.append_data(&mut header, format!("n{class:08}.tar"), &inner[..]).unwrap();
    }
    outer.into_inner().unwrap().flush().unwrap();
}

#[test]
#[ignore = "long"]
fn a_data_set_of_imagenets_size_is_prepared_opened_and_ordered() {
    let dir = tempfile::tempdir().unwrap();
    write_archive(&dir.path().join("ILSVRC2012_img_train.tar"));
    let out = dir.path().join("out");

    let begin = Instant::now();
    let options = PrepareOptions { shard_bytes: 64 << 20, ..PrepareOptions::default() };
    prepare(PrepareKind::ImageNet, dir.path(), &out, &options, &Progress::silent()).unwrap();
    println!(
        "prepare: {:?} on {} threads, now resident {:?} MB",
        begin.elapsed(),
        options.threads,
        resident()
    );

    let folder = out.join("train");
    let bytes = |name: &str| fs::metadata(folder.join(name)).unwrap().len() as f64;
    println!("sample index: {:.1} bytes a sample", bytes("samples.index") / SAMPLES as f64);
    println!("seek index: {:.1} bytes a sample of these tiny images", bytes("seek.index") / SAMPLES as f64);

    let before = resident();
    let begin = Instant::now();
    let set = ShardSet::open(&folder, ReadMode::Read).unwrap();
    println!("open: {:?}", begin.elapsed());
    assert_eq!((set.len(), set.classes().len()), (SAMPLES, CLASSES));

    let begin = Instant::now();
    let mut buffer = Vec::new();
    assert!(!set.bytes(SAMPLES / 2, &mut buffer).unwrap().is_empty());
    println!("first sample: {:?}", begin.elapsed());
    let after = resident();
    let own = after.0 - before.0;
    println!(
        "memory of an opened set: {own:.1} MB of its own, {:.1} MB mapped and shared",
        after.1 - before.1
    );
    assert!(own < 5.0, "own memory does not grow with the data set");

    let begin = Instant::now();
    let order = Sampler::new(SAMPLES, 0, Order::Shuffled).epoch(0);
    println!("order of an epoch: {:?}", begin.elapsed());

    let begin = Instant::now();
    let mut labels = vec![0_u32; CLASSES];
    let mut read = 0;
    for &sample in order.samples() {
        labels[set.label(sample as usize) as usize] += 1;
        read += set.bytes(sample as usize, &mut buffer).unwrap().len();
        assert!(set.seek_record(sample as usize).is_some());
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "an epoch read at random on one thread: {seconds:.1} s, {:.0} samples/s",
        SAMPLES as f64 / seconds
    );
    assert!(read > SAMPLES * 300 && labels.iter().all(|&count| (1281..=1282).contains(&count)));
    let end = resident();
    println!("resident at the end: {end:?} MB");
    assert!(end.0 - after.0 < 20.0, "own memory does not grow with what was read: {:.1} MB", end.0 - after.0);

    let begin = Instant::now();
    assert_eq!(verify(&out, &Progress::silent()).unwrap(), [""; 0]);
    println!("verify: {:?}", begin.elapsed());
}
