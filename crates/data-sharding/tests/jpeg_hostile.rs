//! Damaged images and damaged seek records: errors, or the pixels of the plain way; never a panic, never much memory.
#![allow(clippy::unwrap_used)] // All of it is test code.

mod jpeg_support;

use std::sync::LazyLock;

use data_sharding::jpeg::{ImageDecoder, ImageError, Region, Way, seek};
use jpeg_support::{Coding, PLAIN, Reference, SUBSAMPLINGS, encode, picture};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const WIDTH: u32 = 150;
const HEIGHT: u32 = 97;

/// A small image of each subsampling, optimized and with the standard tables.
static IMAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let pixels = picture(3, WIDTH, HEIGHT, 21);
    let codings = SUBSAMPLINGS.iter().flat_map(|&(_, subsampling)| {
        [true, false].map(|optimize| Coding { subsampling, optimize, quality: 60, ..PLAIN })
    });
    codings.map(|coding| encode(&pixels, 3, WIDTH, HEIGHT, coding)).collect()
});

/// Changes that storage, transport or malice make to bytes.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Cut(Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match self {
            Change::Set(at, value) => bytes[at.index(len)] = *value,
            Change::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Change::Remove(at, count) => drop(bytes.drain(at.index(len)..(at.index(len) + count).min(len))),
            Change::Insert(at, new) => drop(bytes.splice(at.index(len)..at.index(len), new.iter().copied())),
            Change::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Change::Set(at, value)),
        4 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..20)).prop_map(|(at, new)| Change::Insert(at, new)),
        1 => any::<Index>().prop_map(Change::Cut),
    ];
    vec(change, 1..6)
}

/// A region of an image of this size, from four numbers.
fn region(width: u32, height: u32, numbers: [u32; 4]) -> Region {
    let (left, top) = (numbers[0] % width, numbers[1] % height);
    Region { left, top, width: 1 + numbers[2] % (width - left), height: 1 + numbers[3] % (height - top) }
}

/// The region's pixels alone, out of the buffer around them.
fn decode(
    decoder: &mut ImageDecoder,
    jpeg: &[u8],
    region: Region,
    record: Option<&[u8]>,
) -> Result<(Way, Vec<u8>), ImageError> {
    let mut rgb = Vec::new();
    let decoded = decoder.decode(jpeg, region, None, record, &mut rgb)?;

    let (left, top) = (decoded.view.left as usize, decoded.view.top as usize);
    let row = |y: usize| &rgb[3 * ((top + y) * decoded.width as usize + left)..][..3 * region.width as usize];
    Ok((decoded.way, (0..region.height as usize).flat_map(row).copied().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn a_damaged_image_is_an_error_or_an_image(image in 0..14_usize, changes in changes(), numbers: [u32; 4]) {
        let mut jpeg = IMAGES[image].clone();
        changes.iter().for_each(|change| change.apply(&mut jpeg));
        let mut decoder = ImageDecoder::new().unwrap();
        if let Ok(header) = decoder.header(&jpeg) {
            let region = region(header.width, header.height, numbers);
            // What the builder takes for whole, the decoder takes without a complaint, and both ways agree.
            let record = seek::build(&jpeg).unwrap();
            let _ = decode(&mut decoder, &jpeg, region, None);
            if let Some(record) = record {
                let mut full = Vec::new();
                Reference::new().decode(&jpeg, None, &mut full);
                let left = region.left as usize;
                let row = |y: u32| &full[3 * (y as usize * header.width as usize + left)..][..3 * region.width as usize];
                let expected: Vec<u8> = (region.top..region.top + region.height).flat_map(row).copied().collect();
                for (record, way) in [(None, Way::Sequential), (Some(&*record), Way::Indexed)] {
                    let (found, pixels) = decode(&mut decoder, &jpeg, region, record).unwrap();
                    prop_assert!(found == way && pixels == expected, "{:?}", way);
                }
            }
        }
    }

    #[test]
    fn a_damaged_record_changes_no_pixel(image in 0..14_usize, changes in changes(), numbers: [u32; 4]) {
        let jpeg = &IMAGES[image];
        let record = seek::build(jpeg).unwrap().unwrap();
        let mut damaged = record.clone();
        changes.iter().for_each(|change| change.apply(&mut damaged));
        let mut decoder = ImageDecoder::new().unwrap();
        let region = region(WIDTH, HEIGHT, numbers);
        let (_, plain) = decode(&mut decoder, jpeg, region, None).unwrap();
        let (way, pixels) = decode(&mut decoder, jpeg, region, Some(&damaged)).unwrap();
        prop_assert!(pixels == plain);
        prop_assert_eq!(way == Way::Indexed, damaged == record);
    }

    #[test]
    fn a_record_of_the_image_before_its_damage_does_no_harm(
        image in 0..14_usize, changes in changes(), numbers: [u32; 4],
    ) {
        let record = seek::build(&IMAGES[image]).unwrap().unwrap();
        let mut jpeg = IMAGES[image].clone();
        changes.iter().for_each(|change| change.apply(&mut jpeg));
        let mut decoder = ImageDecoder::new().unwrap();
        if let Ok(header) = decoder.header(&jpeg) {
            let region = region(header.width, header.height, numbers);
            let _ = decode(&mut decoder, &jpeg, region, Some(&record));
            let _ = decoder.coefficients(&jpeg, region, None, Some(&record), |_, _, _| ());
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_an_image(start in 0..4_usize, bytes in vec(any::<u8>(), 0..400), record in vec(any::<u8>(), 0..60)) {
        let start: &[u8] = [&b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xc0\0\x11\x08"][start];
        let bytes = [start, &bytes].concat();
        let mut decoder = ImageDecoder::new().unwrap();
        if let Ok(header) = decoder.header(&bytes) {
            let _ = decode(&mut decoder, &bytes, region(header.width, header.height, [0, 0, 9, 9]), Some(&record));
        }
        let _ = seek::build(&bytes);
    }
}

#[test]
fn a_record_of_another_image_changes_no_pixel() {
    let region = Region { left: 40, top: 20, width: 50, height: 40 };
    let mut decoder = ImageDecoder::new().unwrap();
    for (index, jpeg) in IMAGES.iter().enumerate() {
        let (_, plain) = decode(&mut decoder, jpeg, region, None).unwrap();
        for (other, image) in IMAGES.iter().enumerate() {
            let record = seek::build(image).unwrap().unwrap();
            let (way, pixels) = decode(&mut decoder, jpeg, region, Some(&record)).unwrap();
            assert_eq!(way == Way::Indexed, index == other);
            assert!(pixels == plain);
        }
    }
}

#[test]
fn sizes_that_no_file_of_that_length_can_hold_are_refused_before_memory_is_taken() {
    let mut jpeg = IMAGES[0].clone();
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let mut decoder = ImageDecoder::new().unwrap();
    for (width, height) in [(65_500_u16, 65_500_u16), (65_535, 65_535), (20_000, 8_000), (65_500, 200)] {
        jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        let refused = decoder.header(&jpeg);
        assert!(matches!(refused, Err(ImageError::TooLarge { .. })), "{width}x{height}: {refused:?}");
        let region = Region { left: 0, top: 0, width: 8, height: 8 };
        let mut rgb = Vec::new();
        assert!(decoder.decode(&jpeg, region, None, None, &mut rgb).is_err());
        assert!(rgb.capacity() == 0);
    }
}

#[test]
fn regions_outside_the_image_are_refused_with_its_size() {
    let mut decoder = ImageDecoder::new().unwrap();
    for [left, top, width, height] in
        [[0, 0, 0, 5], [0, 0, 5, 0], [0, 0, 151, 1], [150, 0, 1, 1], [0, 90, 1, 8], [u32::MAX, 0, 2, 1]]
    {
        let region = Region { left, top, width, height };
        let refused = decoder.decode(&IMAGES[0], region, None, None, &mut Vec::new());
        assert_eq!(refused, Err(ImageError::Region { region, width: WIDTH, height: HEIGHT }));
    }
}
