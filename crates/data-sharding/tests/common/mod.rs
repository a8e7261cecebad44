//! Small data sets, made by hand byte by byte.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

use std::fs;
use std::io::Write;
use std::path::Path;

use data_sharding::SourceKind;
use flate2::{Compression, write::GzEncoder};

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn idx_images(count: usize) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3];
    bytes.extend((count as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 28, 0, 0, 0, 28]);
    bytes.extend((0..count * 784).map(|i| (i * 31 % 249) as u8));
    bytes
}

pub(crate) fn idx_labels(labels: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 1];
    bytes.extend((labels.len() as u32).to_be_bytes());
    bytes.extend(labels);
    bytes
}

pub(crate) fn write_fashion_mnist(root: &Path, prefix: &str, labels: &[u8], gzipped: bool) {
    let write = |name: &str, bytes: Vec<u8>| {
        let (name, bytes) = if gzipped { (format!("{name}.gz"), gzip(&bytes)) } else { (name.into(), bytes) };
        fs::write(root.join(format!("{prefix}-{name}")), bytes).unwrap();
    };
    write("images-idx3-ubyte", idx_images(labels.len()));
    write("labels-idx1-ubyte", idx_labels(labels));
}

/// Record `index` of a made-up CIFAR: labels, then 3072 pixels in planes.
pub(crate) fn cifar_record(kind: SourceKind, index: usize) -> Vec<u8> {
    let labels = match kind {
        SourceKind::Cifar100 => vec![(index % 20) as u8, (index * 7 % 100) as u8],
        _ => vec![(index % 10) as u8],
    };
    labels.into_iter().chain((0..3072).map(|i| ((i + index) * 13 % 253) as u8)).collect()
}

/// All files of an archive, `per_file` records each; training records are numbered through.
pub(crate) fn write_cifar(folder: &Path, kind: SourceKind, per_file: usize) {
    let (train, test): (Vec<String>, _) = match kind {
        SourceKind::Cifar100 => (vec!["train.bin".into()], "test.bin"),
        _ => ((1..=5).map(|i| format!("data_batch_{i}.bin")).collect(), "test_batch.bin"),
    };
    let records =
        |range: std::ops::Range<usize>| range.flat_map(|i| cifar_record(kind, i)).collect::<Vec<u8>>();
    for (file, name) in train.iter().enumerate() {
        fs::write(folder.join(name), records(file * per_file..(file + 1) * per_file)).unwrap();
    }
    fs::write(folder.join(test), records(0..per_file)).unwrap();
}
