//! What a region of a JPEG costs: by libjpeg-turbo, whole and cropped, and by our decoder, whole, from the beginning
//! up to the region, and entered by the seek record; and of the last its entropy decoding alone. One thread; the regions
//! are RandomResizedCrop's (area 0.08 to 1, aspect ratio 3/4 to 4/3).
//!
//! `WRN_DIST_IMAGES` names a folder of images to take instead of generated ones; `ROUNDS` is how often each is
//! decoded (9); `VARIANT` picks one, for a profiler. Each variant runs over all images before the next does, in an order that rotates every round: on
//! one image back to back the later ones would profit from warm caches. Times are medians over the rounds.
#![allow(clippy::unwrap_used)] // It is a measurement.

#[path = "../tests/jpeg_support/mod.rs"]
mod jpeg_support;

use std::path::Path;
use std::time::Instant;

use data_sharding::jpeg::{ImageDecoder, ImageEncoder, Region, seek};
use jpeg_support::{Reference, images_of_folder};

/// Bounds of the classes of area that are told apart.
const AREAS: [(f64, f64); 4] = [(0.0, 1.01), (0.08, 0.25), (0.25, 0.5), (0.5, 1.01)];
const CROPS_AN_IMAGE: usize = 3;

struct Case {
    image: usize,
    region: Region,
    area: f64,
}

struct Tools {
    decoder: ImageDecoder,
    library: Reference,
    rgb: Vec<u8>,
}

type Variant = (&'static str, fn(&mut Tools, &[u8], Region, &[u8]));

/// The first is what the others are compared with.
const VARIANTS: [Variant; 6] = [
    ("libjpeg-turbo, all", |tools, bytes, _, _| {
        tools.library.decode(bytes, None, &mut tools.rgb);
    }),
    ("libjpeg-turbo, part", |tools, bytes, region, _| {
        // The least that it can decode from: MCUs of up to 16 pixels, and the neighbours that upsampling looks at.
        let left = region.left.saturating_sub(1) / 16 * 16;
        let part = Region { left, width: region.width + region.left - left, ..region };
        tools.library.decode(bytes, Some(part), &mut tools.rgb);
    }),
    ("ours, all", |tools, bytes, _, _| {
        let header = tools.decoder.header(bytes).unwrap();
        tools
            .decoder
            .decode(bytes, Region::whole(header.width, header.height), None, None, &mut tools.rgb)
            .unwrap();
    }),
    ("ours, part", |tools, bytes, region, _| {
        tools.decoder.decode(bytes, region, None, None, &mut tools.rgb).unwrap();
    }),
    ("ours, indexed", |tools, bytes, region, record| {
        tools.decoder.decode(bytes, region, None, Some(record), &mut tools.rgb).unwrap();
    }),
    ("entropy decoding", |tools, bytes, region, record| {
        let read = |_, _, blocks: &[[i16; 64]]| {
            std::hint::black_box(blocks[0][0]);
        };
        tools.decoder.coefficients(bytes, region, None, Some(record), read).unwrap();
    }),
];

struct Image {
    jpeg: Vec<u8>,
    record: Vec<u8>,
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let mut tools =
        Tools { decoder: ImageDecoder::new().unwrap(), library: Reference::new(), rgb: Vec::new() };
    let jpegs = images();
    let started = Instant::now();
    let with_record = |jpeg: Vec<u8>| seek::build(&jpeg).ok().flatten().map(|record| Image { jpeg, record });
    let images: Vec<Image> = jpegs.into_iter().filter_map(with_record).collect();
    let build_time = started.elapsed() / images.len() as u32;
    let jpeg_bytes = images.iter().map(|image| image.jpeg.len()).sum::<usize>() / images.len();
    let record_bytes = images.iter().map(|image| image.record.len()).sum::<usize>() / images.len();
    println!(
        "{} images of {jpeg_bytes} bytes; record {record_bytes} bytes, built in {build_time:.0?}",
        images.len()
    );

    let variant = std::env::var("VARIANT").unwrap_or_default();
    let variants: Vec<Variant> = VARIANTS.into_iter().filter(|(name, _)| name.contains(&variant)).collect();
    let cases = cases(&images, &mut tools.decoder);
    let mut times = vec![vec![Vec::new(); cases.len()]; variants.len()];
    for round in 0..rounds {
        for turn in 0..variants.len() {
            let variant = (round + turn) % variants.len();
            for (case, times) in cases.iter().zip(&mut times[variant]) {
                let Image { jpeg, record } = &images[case.image];
                let started = Instant::now();
                variants[variant].1(&mut tools, jpeg, case.region, record);
                times.push(started.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    print!("{:<20}", "us an image");
    AREAS.iter().for_each(|(low, high)| print!("  {low:.2}-{:.2} ", high.min(1.0)));
    println!();
    let mut first = [0.0; AREAS.len()];
    for (variant, times) in variants.iter().zip(&mut times) {
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        print!("{:<20}", variant.0);
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

fn cases(images: &[Image], decoder: &mut ImageDecoder) -> Vec<Case> {
    let mut state = 1_u64;
    let mut unit = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    let mut cases = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let header = decoder.header(&image.jpeg).unwrap();
        let (width, height) = (f64::from(header.width), f64::from(header.height));
        let mut found = 0;
        while found < CROPS_AN_IMAGE {
            let (area, ratio) = (0.08 + 0.92 * unit(), ((unit() * 2.0 - 1.0) * (4.0_f64 / 3.0).ln()).exp());
            let w = (width * height * area * ratio).sqrt().round();
            let h = (width * height * area / ratio).sqrt().round();
            if w <= width && h <= height {
                let (left, top) = ((unit() * (width - w + 1.0)) as u32, (unit() * (height - h + 1.0)) as u32);
                cases.push(Case {
                    image: index,
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
    images_of_folder(Path::new(&folder)).into_iter().map(|file| std::fs::read(file).unwrap()).collect()
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
