//! Every operation against torchvision at the same parameters: `tests/torchvision_operations.py` is the oracle.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::auto::{KINDS, Kind, NARROW, Operation, WIDE};
use super::color::Enhance;
use super::crop::{CENTER, Framing, whole};
use super::resize::{Filter, Pixels, Resizer};
use super::{RandomResizedCrop, SampleKey};
use crate::jpeg::{ImageDecoder, ImageEncoder, Region};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torchvision_operations.py");

/// Noise on gradients, with a flat corner.
fn image(width: usize, height: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut bytes = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (state >> 27) as usize;
                let value =
                    20 + noise + 150 * [x, y, x + y][channel] / [width, height, width + height][channel];
                bytes.push(if x < width / 4 && y < height / 4 { 200 } else { value as u8 });
            }
        }
    }
    bytes
}

/// Runs the jobs; their results one after another and what was printed. `None` where there is no torchvision.
fn run(jobs: &str) -> Option<(Vec<u8>, String)> {
    let found = Command::new("python3").args(["-c", "import torchvision, PIL"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 has no torchvision and Pillow to compare with");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("results.rgb");
    let mut python = Command::new("python3")
        .arg(SCRIPT)
        .arg(&output)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(jobs.as_bytes()).unwrap();
    let printed = python.wait_with_output().unwrap();
    assert!(printed.status.success(), "the oracle failed");
    Some((std::fs::read(&output).unwrap(), String::from_utf8(printed.stdout).unwrap()))
}

/// As [`run`], each job on the image.
fn torchvision(width: usize, height: usize, image: &[u8], jobs: &[String]) -> Option<(Vec<u8>, String)> {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("image.rgb");
    std::fs::write(&input, image).unwrap();
    let mut lines = String::new();
    for job in jobs {
        let input = input.display();
        writeln!(lines, r#"{{"image": "{input}", "width": {width}, "height": {height}, {job}}}"#).unwrap();
    }
    run(&lines)
}

/// torchvision's name.
fn name(kind: Kind) -> String {
    format!("{kind:?}")
}

fn magnitude(operation: Operation) -> f64 {
    use super::affine::Affine;
    match operation {
        Operation::Identity | Operation::AutoContrast | Operation::Equalize => 0.0,
        Operation::Affine(
            Affine::ShearX(m)
            | Affine::ShearY(m)
            | Affine::TranslateX(m)
            | Affine::TranslateY(m)
            | Affine::Rotate(m),
        ) => m,
        Operation::Enhance(Enhance::Brightness(f) | Enhance::Contrast(f) | Enhance::Saturation(f))
        | Operation::Sharpness(f) => f64::from(f) - 1.0,
        Operation::Posterize(bits) => bits.into(),
        Operation::Solarize(threshold) => threshold,
    }
}

#[test]
fn every_operation_is_torchvisions_to_the_bit() {
    for (width, height) in [(61, 61), (64, 48)] {
        let image = image(width, height);
        let mut cases = Vec::new();
        for ranges in [&WIDE, &NARROW] {
            for kind in KINDS {
                for bin in [0, 1, 9, 14, 15, 20, 29, 30] {
                    cases.extend(
                        [false, true].map(|negative| {
                            (kind, Operation::new(kind, ranges, bin, negative, width as u32))
                        }),
                    );
                }
            }
        }
        let jobs: Vec<String> = cases
            .iter()
            .map(|(kind, operation)| {
                format!(r#""operation": "{}", "magnitude": {:?}"#, name(*kind), magnitude(*operation))
            })
            .collect();
        let Some((expected, _)) = torchvision(width, height, &image, &jobs) else { return };
        assert_eq!(expected.len(), cases.len() * image.len());
        let mut changed = 0;
        for ((kind, operation), expected) in cases.into_iter().zip(expected.chunks(image.len())) {
            let mut found = image.clone();
            operation.apply(width, &mut found, &mut Vec::new());
            let difference = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
            assert_eq!(difference, Some(0), "{kind:?} {operation:?} on {width}x{height}");
            changed += usize::from(found != image);
        }
        assert!(changed > 250, "{changed} operations did something");
    }
}

#[test]
fn tables_of_magnitudes_are_torchvisions() {
    let Some((_, printed)) = torchvision(1, 1, &[0; 3], &[r#""operation": "tables""#.into()]) else { return };
    // [[NAME, [MAGNITUDES], SIGNED], …] a policy, without spaces around what is parsed here.
    for (policy, ranges) in [("wide", &WIDE), ("narrow", &NARROW)] {
        let list = printed.split(&format!("\"{policy}\": ")).nth(1).unwrap();
        let entries: Vec<&str> = list.split("[\"").skip(1).take(KINDS.len()).collect();
        for (kind, entry) in KINDS.into_iter().zip(entries) {
            let (found_name, rest) = entry.split_once('"').unwrap();
            assert_eq!(found_name, name(kind));
            let (numbers, signed) = rest.split_once('[').unwrap().1.split_once(']').unwrap();
            let numbers: Vec<f64> = numbers.split(", ").map(|number| number.parse().unwrap()).collect();
            assert_eq!(numbers.len(), 31);
            let signed = signed.trim_start_matches(", ").starts_with("true");
            for (bin, expected) in numbers.into_iter().enumerate() {
                let positive = magnitude(Operation::new(kind, ranges, bin as u32, false, 224));
                let negative = magnitude(Operation::new(kind, ranges, bin as u32, true, 224));
                // Factors are kept as 1 + magnitude in single precision, as Pillow takes them.
                assert!(
                    (positive - expected).abs() < 1.3e-7,
                    "{policy} {kind:?} {bin}: {positive} {expected}"
                );
                let mirrored = if signed { -expected } else { expected };
                assert!((negative - mirrored).abs() < 1.3e-7, "{policy} {kind:?} {bin}: {negative}");
            }
        }
    }
}

#[test]
fn scaled_crops_differ_from_torchvisions_by_rounding_only() {
    let (width, height) = (203_u32, 151_u32);
    let image = image(width as usize, height as usize);
    let mut cases = Vec::new();
    for (filter, name) in [(Filter::Bilinear, "bilinear"), (Filter::Bicubic, "bicubic")] {
        for (left, top, w, h) in [(0, 0, 203, 151), (17, 9, 100, 80), (60, 70, 31, 40), (101, 2, 102, 77)] {
            let region = Region { left, top, width: w, height: h };
            cases.push((
                Framing::cut(region, 64, filter),
                format!(
                    r#""operation": "crop", "box": [{top}, {left}, {h}, {w}], "size": 64, "filter": "{name}""#
                ),
            ));
        }
        for (shorter, size) in [(73, 64), (64, 64), (200, 64), (151, 64)] {
            cases.push((
                Framing::scaled(width, height, shorter, size, CENTER, filter),
                format!(r#""operation": "center", "shorter": {shorter}, "size": {size}, "filter": "{name}""#),
            ));
        }
    }
    let jobs: Vec<String> = cases.iter().map(|(_, job)| job.clone()).collect();
    let Some((expected, _)) = torchvision(width as usize, height as usize, &image, &jobs) else { return };
    let mut resizer = Resizer::default();
    for ((framing, job), expected) in cases.into_iter().zip(expected.chunks(64 * 64 * 3)) {
        let mut found = vec![0; 64 * 64 * 3];
        let pixels = Pixels { bytes: &image, width, height, channels: 3 };
        let region = whole(framing.region);
        resizer.resize(pixels, region, framing.view, framing.filter, framing.size, &mut found).unwrap();
        let (mean, largest) = difference(&found, expected);
        assert!(largest <= 1 && mean < 0.3, "{job}: largest difference {largest}, mean {mean}");
    }
}

/// Mean and largest difference a value.
fn difference(a: &[u8], b: &[u8]) -> (f64, u8) {
    let differences = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (sum as f64 / a.len() as f64, differences.max().unwrap_or(0))
}

/// Random crops of JPEGs, as the pool decodes and scales them, against Pillow and torchvision; without and with
/// scaling during the inverse transform.
fn compare_files(files: &[PathBuf], crops: u32, size: u32) {
    let mut decoder = ImageDecoder::new().unwrap();
    let crop = RandomResizedCrop::default();
    let (mut jobs, mut found, mut names) = (String::new(), Vec::new(), Vec::new());
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let header = decoder.header(&bytes).unwrap();
        for sample in 0..crops {
            let key = SampleKey { sample, epoch: 0, repetition: 0 };
            let region = crop.draw(1, &key, header.width, header.height);
            let Region { left, top, width, height } = region;
            writeln!(
                jobs,
                r#"{{"image": "{}", "operation": "crop", "box": [{top}, {left}, {height}, {width}], "size": {size}, "filter": "bilinear"}}"#,
                file.display()
            )
            .unwrap();
            let framing = Framing::cut(region, size, Filter::Bilinear);
            let scaled = |decoder: &mut ImageDecoder, target| {
                let (mut rgb, mut output) = (Vec::new(), vec![0; (size * size * 3) as usize]);
                let decoded = decoder.decode(&bytes, region, target, None, &mut rgb).unwrap();
                let (width, height) = (decoded.width, decoded.height);
                let used = (width * height * 3) as usize;
                let pixels = Pixels { bytes: &rgb[..used], width, height, channels: 3 };
                let view = framing.view_within(decoded.view);
                let mut resizer = Resizer::default();
                resizer.resize(pixels, decoded.view, view, framing.filter, size, &mut output).unwrap();
                output
            };
            found.push([scaled(&mut decoder, None), scaled(&mut decoder, Some(framing.target()))]);
            names.push(format!("{} {region:?}", file.display()));
        }
    }
    let Some((expected, _)) = run(&jobs) else { return };
    let (mut sums, mut largest) = ([0.0; 2], [0; 2]);
    for ((found, name), expected) in
        found.iter().zip(&names).zip(expected.chunks_exact((size * size * 3) as usize))
    {
        for (way, found) in found.iter().enumerate() {
            let (mean, most) = difference(found, expected);
            sums[way] += mean;
            largest[way] = most.max(largest[way]);
            assert!(mean <= [0.5, 4.0][way], "{name}: mean difference {mean}");
        }
    }
    eprintln!(
        "{} crops: mean difference {:.3} of 255, largest {}; with scaling in the decoder {:.3}, largest {}",
        names.len(),
        sums[0] / names.len() as f64,
        largest[0],
        sums[1] / names.len() as f64,
        largest[1]
    );
}

#[test]
fn crops_of_jpegs_are_those_of_pillow_and_torchvision() {
    let folder = tempfile::tempdir().unwrap();
    let mut encoder = ImageEncoder::new(90).unwrap();
    let files: Vec<PathBuf> = [(203_u32, 151_u32), (500, 375), (64, 333)]
        .into_iter()
        .map(|(width, height)| {
            let mut file = Vec::new();
            encoder.encode(&image(width as usize, height as usize), width, height, &mut file).unwrap();
            let path = folder.path().join(format!("{width}.jpg"));
            std::fs::write(&path, file).unwrap();
            path
        })
        .collect();
    compare_files(&files, 6, 64);
}

#[test]
#[ignore = "long"]
fn crops_of_a_folder_of_jpegs_are_those_of_pillow_and_torchvision() {
    let Some(folder) = std::env::var_os("WRN_DIST_IMAGES") else {
        eprintln!("skipped: WRN_DIST_IMAGES names no folder of JPEGs");
        return;
    };
    let files =
        walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().flatten().map(|e| e.into_path());
    let is_jpeg =
        |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jpeg") || e == "jpg");
    compare_files(&files.filter(is_jpeg).collect::<Vec<_>>(), 3, 224);
}
