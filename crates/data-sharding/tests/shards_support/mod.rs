//! Small images, tar files and folders of shards for tests.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses some of it; all of it is test code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use data_sharding::jpeg::ImageEncoder;
use data_sharding::{PrepareKind, PrepareOptions, Progress, prepare};

/// A JPEG of this size, whose pixels depend on `seed`.
pub(crate) fn jpeg(width: u32, height: u32, seed: usize) -> Vec<u8> {
    let mut out = Vec::new();
    ImageEncoder::new(80).unwrap().encode(&pixels(width, height, seed), width, height, &mut out).unwrap();
    out
}

/// A PNG of this size.
pub(crate) fn png(width: u32, height: u32, seed: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&pixels(width, height, seed)).unwrap();
    out
}

fn pixels(width: u32, height: u32, seed: usize) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    (0..width * height * 3)
        .map(|i| ((i / 3 % width * 5 + i / 3 / width * 3 + seed * 17 + i % 3 * 40) % 256) as u8)
        .collect()
}

/// A tar file with these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// As [`tar`], with names that no good program writes, of 100 bytes at the most.
pub(crate) fn tar_as_it_is(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A folder of `classes` class folders with `each` images of different sizes.
pub(crate) fn image_folder(root: &Path, classes: usize, each: usize) {
    for class in 0..classes {
        let folder = root.join(format!("class-{class}"));
        fs::create_dir_all(&folder).unwrap();
        for image in 0..each {
            let seed = class * each + image;
            let (width, height) = (16 + seed as u32 % 40, 24 + seed as u32 % 7);
            fs::write(folder.join(format!("img.{image:03}.JPEG")), jpeg(width, height, seed)).unwrap();
        }
    }
}

/// Shards of about 8 KiB, quietly.
pub(crate) fn options() -> PrepareOptions {
    PrepareOptions { shard_bytes: 8 << 10, threads: 2, ..PrepareOptions::default() }
}

/// Prepares an image folder.
pub(crate) fn prepare_folder(
    source: &Path,
    destination: &Path,
    options: &PrepareOptions,
) -> Result<(), String> {
    prepare(PrepareKind::ImageFolder, source, destination, options, &Progress::silent())
        .map_err(|e| e.to_string())
}

/// Every file below `root` with its contents, by relative path.
pub(crate) fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files
                .extend(contents(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}
