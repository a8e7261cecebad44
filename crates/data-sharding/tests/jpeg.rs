//! Regions of JPEGs of every kind have the coefficients and the pixels of a full decode, exactly.
#![allow(clippy::unwrap_used)] // All of it is test code.

mod jpeg_support;

use std::collections::BTreeMap;
use std::path::Path;

use data_sharding::jpeg::{
    Decoded, ImageDecoder, ImageEncoder, ImageError, ImageHeader, Region, View, Way, seek,
};
use jpeg_support::{
    Coding, PLAIN, Random, Reference, SUBSAMPLINGS, encode, images_of_folder, picture, regions, skip,
};
use turbojpeg_sys as sys;

/// The pixels of a decoded buffer's view, which must lie on whole pixels.
fn pixels_of_view(rgb: &[u8], decoded: Decoded) -> Vec<u8> {
    let view = decoded.view;
    let [left, top, width, height] = [view.left, view.top, view.width, view.height].map(|x| {
        assert_eq!(x.fract(), 0.0);
        x as usize
    });
    crop(rgb, decoded.width as usize, left, top, width, height)
}

fn crop(rgb: &[u8], row: usize, left: usize, top: usize, width: usize, height: usize) -> Vec<u8> {
    (top..top + height).flat_map(|y| &rgb[3 * (y * row + left)..][..3 * width]).copied().collect()
}

/// The quantised coefficients of an MCU's blocks, by its row and column.
type Mcus = BTreeMap<(u32, u32), Vec<[i16; 64]>>;

fn coefficients(
    decoder: &mut ImageDecoder,
    jpeg: &[u8],
    region: Region,
    record: Option<&[u8]>,
) -> (Option<Way>, Mcus) {
    let mut mcus = Mcus::new();
    let keep = |row, column, blocks: &[[i16; 64]]| {
        assert!(mcus.insert((row, column), blocks.to_vec()).is_none(), "each MCU once");
    };
    let way = decoder.coefficients(jpeg, region, None, record, keep).unwrap();
    (way, mcus)
}

/// Checks that each region has the pixels of libjpeg-turbo's full decode, and the coefficients of the image's, without a
/// seek record and with one. Tells whether there is a record.
fn assert_regions_equal_full_decode(
    decoder: &mut ImageDecoder,
    name: &str,
    jpeg: &[u8],
    regions: &[Region],
) -> bool {
    let record = seek::build(jpeg).unwrap();
    let ways: &[Way] =
        if record.is_some() { &[Way::Sequential, Way::Indexed] } else { &[Way::Cropped, Way::Whole] };
    let mut reference = Reference::new();
    let (mut full, mut rgb) = (Vec::new(), Vec::new());
    let (width, height) = reference.decode(jpeg, None, &mut full);
    // That these are libjpeg's too, the pixels show that are made of them.
    let (_, all_mcus) = coefficients(decoder, jpeg, Region::whole(width, height), None);
    assert_eq!(decoder.header(jpeg), Ok(ImageHeader { width, height }), "{name}");
    for &region in regions {
        let [left, top, w, h] = [region.left, region.top, region.width, region.height].map(|x| x as usize);
        let expected = crop(&full, width as usize, left, top, w, h);
        for record in [None, record.as_deref()] {
            let decoded = decoder.decode(jpeg, region, None, record, &mut rgb).unwrap();
            let way = decoded.way;
            assert!(ways.contains(&way), "{name}: {region:?} of {width}x{height}: {way:?}");
            assert_eq!(way == Way::Indexed, record.is_some(), "{name}: {region:?} of {width}x{height}");
            assert!(
                pixels_of_view(&rgb, decoded) == expected,
                "{name}: {region:?} of {width}x{height}, {way:?}"
            );
        }
        for seek in [None, record.as_deref()] {
            let (way, mcus) = coefficients(decoder, jpeg, region, seek);
            let expected =
                record.as_ref().map(|_| if seek.is_some() { Way::Indexed } else { Way::Sequential });
            assert_eq!(way, expected, "{name}: {region:?} of {width}x{height}");
            assert_eq!(mcus.is_empty(), record.is_none());
            for (place, blocks) in &mcus {
                assert!(
                    all_mcus.get(place) == Some(blocks),
                    "{name}: {region:?} of {width}x{height}, {place:?}"
                );
            }
        }
    }
    record.is_some()
}

#[test]
fn regions_of_every_subsampling_and_coding_have_the_pixels_of_a_full_decode() {
    let mut decoder = ImageDecoder::new().unwrap();
    let mut random = Random::new(1);
    let codings = [
        ("baseline", PLAIN),
        ("optimized", Coding { optimize: true, ..PLAIN }),
        ("progressive", Coding { progressive: true, ..PLAIN }),
        ("restarts", Coding { restart_rows: 1, ..PLAIN }),
        ("arithmetic", Coding { arithmetic: true, ..PLAIN }),
        ("fine", Coding { quality: 100, optimize: true, ..PLAIN }),
        ("coarse", Coding { quality: 5, optimize: true, ..PLAIN }),
    ];
    let sizes = [(1, 1), (3, 5), (16, 16), (17, 33), (18, 40), (35, 70), (67, 51), (200, 131)];
    for (subsampling_name, subsampling) in SUBSAMPLINGS {
        for (coding_name, coding) in codings {
            for (width, height) in sizes {
                let name = format!("{subsampling_name} {coding_name}");
                let pixels = picture(3, width, height, 7);
                let jpeg = encode(&pixels, 3, width, height, Coding { subsampling, ..coding });
                let regions = regions(width, height, 30, &mut random);
                let has_record = assert_regions_equal_full_decode(&mut decoder, &name, &jpeg, &regions);
                assert_eq!(
                    has_record,
                    !["progressive", "restarts", "arithmetic"].contains(&coding_name),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn sampling_factors_of_a_grey_image_change_nothing() {
    let (width, height) = (75, 60);
    let pixels = picture(3, width, height, 8);
    let mut random = Random::new(3);
    let mut decoder = ImageDecoder::new().unwrap();
    // A scan of one component has one block an MCU, whatever its factors are.
    for factors in [0x11, 0x22, 0x21, 0x14] {
        let mut jpeg =
            encode(&pixels, 3, width, height, Coding { subsampling: sys::TJSAMP_TJSAMP_GRAY, ..PLAIN });
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[frame + 11] = factors;
        let regions = regions(width, height, 40, &mut random);
        let name = format!("factors {factors:02x}");
        assert!(assert_regions_equal_full_decode(&mut decoder, &name, &jpeg, &regions), "{name}");
    }
}

#[test]
fn an_encoded_image_decodes_to_about_the_same_pixels() {
    let (width, height) = (121, 77);
    let pixels: Vec<u8> =
        (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 99])).collect();
    let (mut jpeg, mut rgb) = (Vec::new(), Vec::new());
    ImageEncoder::new(95).unwrap().encode(&pixels, width, height, &mut jpeg).unwrap();
    let decoded = ImageDecoder::new()
        .unwrap()
        .decode(&jpeg, Region::whole(width, height), None, None, &mut rgb)
        .unwrap();
    assert_eq!((decoded.width, decoded.height), (width, height));
    let worst = rgb.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst < Some(12), "{worst:?}");
    let refused = ImageEncoder::new(95).unwrap().encode(&pixels, width + 1, height, &mut jpeg);
    assert_eq!(refused, Err(ImageError::Pixels { width: width + 1, height, bytes: pixels.len() }));
}

#[test]
fn a_large_source_is_scaled_while_it_is_decoded_but_never_below_the_target() {
    let (width, height) = (640, 500);
    let jpeg = encode(&picture(3, width, height, 3), 3, width, height, PLAIN);
    let mut decoder = ImageDecoder::new().unwrap();
    let mut rgb = Vec::new();
    // Left, top, width, height of the region; target; the scale to expect.
    let cases = [
        ([0, 0, 640, 500], (80, 62), 8),
        ([0, 0, 640, 500], (81, 62), 4),
        ([3, 5, 448, 448], (224, 224), 2),
        ([3, 5, 447, 448], (224, 224), 1),
        ([77, 90, 448, 230], (112, 112), 2),
    ];
    for ([left, top, width, height], target, scale) in cases {
        let region = Region { left, top, width, height };
        let decoded = decoder.decode(&jpeg, region, Some(target), None, &mut rgb).unwrap();
        let View { left, top, width, height } = decoded.view;
        assert_eq!(
            (width, height),
            (f64::from(region.width) / scale as f64, f64::from(region.height) / scale as f64)
        );
        assert!(left + width <= f64::from(decoded.width) && top + height <= f64::from(decoded.height));
        assert!(width >= f64::from(target.0) && height >= f64::from(target.1));
        let slack = 3 * 16 / scale + 3;
        assert!(
            decoded.width <= width as u32 + slack && decoded.height <= height as u32 + slack,
            "{decoded:?}"
        );
    }
}

#[test]
#[ignore = "long"]
fn regions_of_real_images_have_the_pixels_of_a_full_decode() {
    let Some(folder) = std::env::var_os("WRN_DIST_IMAGES") else {
        return skip("images", "WRN_DIST_IMAGES names no folder of photos");
    };
    let images = images_of_folder(Path::new(&folder));
    let mut decoder = ImageDecoder::new().unwrap();
    let mut random = Random::new(2);
    let (mut compared, mut indexed) = (0, 0);
    for image in &images {
        let bytes = std::fs::read(image).unwrap();
        let name = image.display().to_string();
        let ImageHeader { width, height } = match decoder.header(&bytes) {
            Ok(header) => header,
            Err(error) => {
                eprintln!("passed over: {name}: {error}");
                continue;
            }
        };
        let regions = regions(width, height, 60, &mut random);
        if assert_regions_equal_full_decode(&mut decoder, &name, &bytes, &regions) {
            indexed += 1;
            compared += regions.len();
        }
    }
    eprintln!("{} images, {indexed} with a seek record, {compared} regions of these", images.len());
    assert!(compared > 0);
}
