//! What a region of a JPEG costs: decoded whole, by libjpeg-turbo's cropping, and cut out by its seek record. One
//! thread; the regions are RandomResizedCrop's (area 0.08 to 1, aspect ratio 3/4 to 4/3).
//!
//! `WRN_DIST_IMAGES` names a folder of images to take instead of generated ones; `ROUNDS` is how often each is
//! decoded (9). Each variant runs over all images before the next does, in an order that rotates every round: on
//! one image back to back the later ones would profit from warm caches. Times are medians over the rounds.

use std::path::PathBuf;
use std::time::Instant;

use data_sharding::jpeg::{ImageDecoder, ImageEncoder, Region, seek};

/// Bounds of the classes of area that are told apart.
const AREAS: [(f64, f64); 4] = [(0.0, 1.01), (0.08, 0.25), (0.25, 0.5), (0.5, 1.01)];
const CROPS_AN_IMAGE: usize = 3;

struct Case {
    image: usize,
    region: Region,
    area: f64,
}

type Variant = (&'static str, fn(&mut ImageDecoder, &[u8], Region, &[u8], &mut Vec<u8>));

const VARIANTS: [Variant; 4] = [
    ("full decode", |decoder, bytes, _, _, rgb| {
        let header = decoder.header(bytes).unwrap();
        decoder.decode(bytes, Region::whole(header.width, header.height), None, None, rgb).unwrap();
    }),
    ("region decode", |decoder, bytes, region, _, rgb| {
        decoder.decode(bytes, region, None, None, rgb).unwrap();
    }),
    ("cut + decode", |decoder, bytes, region, record, rgb| {
        decoder.decode(bytes, region, None, Some(record), rgb).unwrap();
    }),
    ("cut alone", |decoder, bytes, region, record, _| {
        decoder.cut(bytes, region, record).unwrap();
    }),
];

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let mut decoder = ImageDecoder::new().unwrap();
    let images = images();
    let started = Instant::now();
    let images: Vec<(Vec<u8>, Vec<u8>)> = images
        .into_iter()
        .filter_map(|bytes| seek::build(&bytes).ok().flatten().map(|record| (bytes, record)))
        .collect();
    let build = started.elapsed().as_micros() as f64 / images.len() as f64;
    let mean =
        |size: &dyn Fn(&(Vec<u8>, Vec<u8>)) -> usize| images.iter().map(size).sum::<usize>() / images.len();
    println!(
        "{} images of {} bytes; seek record {} bytes, built in {build:.0} us",
        images.len(),
        mean(&|image| image.0.len()),
        mean(&|image| image.1.len())
    );

    let cases = cases(&images, &mut decoder);
    let mut times = vec![vec![vec![0_f64; rounds]; cases.len()]; VARIANTS.len()];
    let mut rgb = Vec::new();
    for round in 0..rounds {
        for turn in 0..VARIANTS.len() {
            let variant = (round + turn) % VARIANTS.len();
            for (index, case) in cases.iter().enumerate() {
                let (bytes, record) = &images[case.image];
                let started = Instant::now();
                VARIANTS[variant].1(&mut decoder, bytes, case.region, record, &mut rgb);
                times[variant][index][round] = started.elapsed().as_secs_f64() * 1e6;
            }
        }
    }
    print!("{:<16}", "us an image");
    AREAS.iter().for_each(|(low, high)| print!("  {low:.2}-{:.2} ", high.min(1.0)));
    println!();
    let mut first = [0.0; AREAS.len()];
    for (variant, times) in VARIANTS.iter().zip(&mut times) {
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        print!("{:<16}", variant.0);
        for (&(low, high), first) in AREAS.iter().zip(&mut first) {
            let of_class: Vec<f64> = cases
                .iter()
                .zip(&medians)
                .filter(|(case, _)| (low..high).contains(&case.area))
                .map(|(_, time)| *time)
                .collect();
            let mean = of_class.iter().sum::<f64>() / of_class.len() as f64;
            *first = if *first == 0.0 { mean } else { *first };
            print!("{mean:>6.0} {:>4.2}x", *first / mean);
        }
        println!();
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn cases(images: &[(Vec<u8>, Vec<u8>)], decoder: &mut ImageDecoder) -> Vec<Case> {
    let mut state = 1_u64;
    let mut unit = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    let mut cases = Vec::new();
    for (image, (bytes, _)) in images.iter().enumerate() {
        let header = decoder.header(bytes).unwrap();
        let (width, height) = (f64::from(header.width), f64::from(header.height));
        let mut found = 0;
        while found < CROPS_AN_IMAGE {
            let (area, ratio) = (0.08 + 0.92 * unit(), ((unit() * 2.0 - 1.0) * (4.0_f64 / 3.0).ln()).exp());
            let w = (width * height * area * ratio).sqrt().round();
            let h = (width * height * area / ratio).sqrt().round();
            if w <= width && h <= height {
                let (left, top) = ((unit() * (width - w + 1.0)) as u32, (unit() * (height - h + 1.0)) as u32);
                cases.push(Case {
                    image,
                    region: Region { left, top, width: w as u32, height: h as u32 },
                    area,
                });
                found += 1;
            }
        }
    }
    cases
}

/// The images of the folder that `WRN_DIST_IMAGES` names, or 40 made ones of 500x375.
fn images() -> Vec<Vec<u8>> {
    let Some(folder) = std::env::var_os("WRN_DIST_IMAGES") else {
        let mut encoder = ImageEncoder::new(92).unwrap();
        return (0..40).map(|seed| generated(&mut encoder, seed)).collect();
    };
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Waves under noise: about the bytes a pixel of a photo.
fn generated(encoder: &mut ImageEncoder, seed: u32) -> Vec<u8> {
    let (width, height) = (500_u32, 375_u32);
    let mut state = seed;
    let mut rgb = Vec::new();
    for pixel in 0..width * height {
        let (x, y) = ((pixel % width) as f32, (pixel / width) as f32);
        for channel in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let wave = (x * 0.05 * (channel + 1) as f32).sin() * 50.0 + (y * 0.07 + seed as f32).cos() * 50.0;
            rgb.push((128.0 + wave + (state >> 27) as f32) as u8);
        }
    }
    let mut jpeg = Vec::new();
    encoder.encode(&rgb, width, height, &mut jpeg).unwrap();
    jpeg
}
