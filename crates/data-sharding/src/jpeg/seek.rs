//! Seek records: where in a JPEG's entropy-coded data each row of MCUs, and every eighth MCU in it, begins, and which
//! DC values the differences there add to. With one, a reader can start in the middle of an image. How a region is
//! decoded so stands in `part.rs`; how the records of a data set are stored is not this module's.
//!
//! A record, little endian:
//!
//! | bytes | |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | checksum of what follows: XXH3-64 |
//! | 8 | identity of the file: XXH3-64 of its length and of samples of its bytes |
//! | rest | entries, row after row, then one for the end of the scan |
//!
//! An entry is the distance in bits to the one before, then for each component the difference of the predicted DC
//! value from that of the entry above (in the first row: of the entry before), zigzag; all of them as LEB128 varints.
//! Bits are counted with the stuffed bytes, from the first byte of the scan.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::bits::BitPosition;
use super::scan::{self, Scan};
use super::walk::{DC_VALUES, Predictors, Tables, Walk};
use super::{ImageDecoder, ImageError, Region};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 8;
/// MCUs from one entry of a row to the next. Half of it would double the records for a few percent of the time.
const STRIDE: u32 = 8;

/// Where an MCU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) position: BitPosition,
    pub(super) predictors: Predictors,
}

/// Builds the seek record of an image: about 2 KB for one of 500x400.
///
/// `None` for images that have no use for one: PNG, progressive, arithmetic or lossless coding,
/// other than eight bits a sample, one or three components, several scans, restart markers; and for anything that
/// does not parse from the first bit to the end-of-image marker, so that what has a record is known to be whole.
///
/// # Errors
/// Bytes that are neither JPEG nor PNG; a JPEG that has no valid frame header.
pub fn build(bytes: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    if !super::decoder::may_have_record(bytes)? {
        return Ok(None);
    }
    let Some(record) = Scan::of(bytes).and_then(|scan| record(bytes, &scan)) else { return Ok(None) };
    // The scan is sound; that the tables and everything else before it are, the decoder of one pixel tells.
    let pixel = Region { left: 0, top: 0, width: 1, height: 1 };
    let sound = ImageDecoder::new()?.decode(bytes, pixel, None, None, &mut Vec::new()).is_ok();
    Ok(sound.then_some(record))
}

fn record(bytes: &[u8], scan: &Scan) -> Option<Vec<u8>> {
    let mut tables = Tables::new();
    tables.load(scan)?;
    let data = &bytes[scan.start..];
    let mut walk = Walk::new(scan, &tables, data);
    let mut entries = Vec::new();
    for _ in 0..scan.mcus_down {
        for column in 0..scan.mcus_across {
            if column % STRIDE == 0 {
                entries.push(Entry { position: walk.position(), predictors: walk.predictors });
            }
            walk.pass()?;
        }
    }
    let end = walk.position();
    entries.push(Entry { position: end, predictors: walk.predictors });
    if !scan::ends_image(data, end) {
        return None;
    }

    let mut record = vec![0; HEADER_BYTES];
    let across = entries_across(scan);
    for (index, entry) in entries.iter().enumerate() {
        let (position, predictors) = reference(&entries, index, across);
        put_varint(&mut record, (entry.position.0 - position.0) as u64);
        for (value, predicted) in entry.predictors.iter().zip(predictors).take(scan.components.len()) {
            let difference = value - predicted;
            put_varint(&mut record, u64::from(((difference << 1) ^ (difference >> 31)) as u32));
        }
    }
    seal(&mut record, bytes);
    Some(record)
}

/// Writes the header of a record, whose entries are there, of the image `bytes`.
fn seal(record: &mut [u8], bytes: &[u8]) {
    record[0] = VERSION;
    record[9..17].copy_from_slice(&identity(bytes).to_le_bytes());
    let checksum = xxh3_64(&record[9..]);
    record[1..9].copy_from_slice(&checksum.to_le_bytes());
}

/// The entries of an image, as far as they have been read.
#[derive(Default)]
pub(super) struct Entries {
    list: Vec<Entry>,
    across: usize,
}

impl Entries {
    /// Reads the entries of the rows up to and with `last_row` and the one behind them. False where the record is
    /// damaged or another image's.
    pub(super) fn read(&mut self, record: &[u8], bytes: &[u8], scan: &Scan, last_row: u32) -> bool {
        self.try_read(record, bytes, scan, last_row).is_some()
    }

    fn try_read(&mut self, record: &[u8], bytes: &[u8], scan: &Scan, last_row: u32) -> Option<()> {
        let (&[version, ref hashes @ ..], mut body) = record.split_first_chunk::<HEADER_BYTES>()?;
        let (checksum, file) = hashes.split_at(8);
        if version != VERSION
            || checksum != xxh3_64(&record[9..]).to_le_bytes()
            || file != identity(bytes).to_le_bytes()
        {
            return None;
        }
        self.across = entries_across(scan);
        self.list.clear();
        let wanted = self.across * (last_row as usize + 1) + 1;
        // Each entry takes two bytes at least, so a record cannot ask for more memory than a few times its own.
        if wanted > body.len() {
            return None;
        }
        self.list.reserve(wanted);
        let components = scan.components.len();
        for index in 0..wanted {
            let (before, mut predictors) = reference(&self.list, index, self.across);
            let distance = usize::try_from(take_varint(&mut body)?).ok()?;
            let position = BitPosition(before.0.checked_add(distance)?);
            for value in predictors.iter_mut().take(components) {
                let zigzag = u32::try_from(take_varint(&mut body)?).ok()?;
                let difference = (zigzag >> 1) as i32 ^ -((zigzag & 1) as i32);
                *value = value.checked_add(difference).filter(|value| DC_VALUES.contains(value))?;
            }
            self.list.push(Entry { position, predictors });
        }
        Some(())
    }

    /// The last entry at or before an MCU, and the column of MCUs that it stands for. Behind the last column lies
    /// the next row's first entry.
    pub(super) fn at(&self, row: u32, column: u32, scan: &Scan) -> (Entry, u32) {
        let start = row as usize * self.across;
        if column == scan.mcus_across {
            return (self.list[start + self.across], column);
        }
        (self.list[start + (column / STRIDE) as usize], column / STRIDE * STRIDE)
    }
}

/// Entries in a row of MCUs.
fn entries_across(scan: &Scan) -> usize {
    scan.mcus_across.div_ceil(STRIDE) as usize
}

/// What entry `index` is told relative to, given those before it.
fn reference(entries: &[Entry], index: usize, across: usize) -> (BitPosition, Predictors) {
    let Some(before) = index.checked_sub(1).map(|i| entries[i]) else { return (BitPosition(0), [0; 3]) };
    let above = index.checked_sub(across).map_or(before, |i| entries[i]);
    (before.position, above.predictors)
}

/// A hash of a file's length and of 64 bytes at each of 16 places, evenly spread, the first and the last bytes among
/// them. It tells one image from another; damage to an image is its shard's checksum's to find.
fn identity(bytes: &[u8]) -> u64 {
    const PLACES: usize = 16;
    const SAMPLE: usize = 64;
    let mut hash = Xxh3::with_seed(bytes.len() as u64);
    let last = bytes.len().saturating_sub(SAMPLE);
    for place in 0..PLACES {
        let start = last * place / (PLACES - 1);
        hash.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
    }
    hash.digest()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(body: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = body.split_first()?;
        *body = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::super::{ImageEncoder, Way};
    use super::*;

    const WIDTH: u32 = 180;
    const HEIGHT: u32 = 120;

    fn image() -> Vec<u8> {
        let pixel = |i: u32| [i % 251, i * i % 239, i / 7 % 256].map(|value| value as u8);
        let rgb: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(pixel).collect();
        let mut jpeg = Vec::new();
        ImageEncoder::new(80).unwrap().encode(&rgb, WIDTH, HEIGHT, &mut jpeg).unwrap();
        jpeg
    }

    #[test]
    fn an_entry_is_where_the_walk_says() {
        let jpeg = image();
        let record = build(&jpeg).unwrap().unwrap();
        let scan = Scan::of(&jpeg).unwrap();
        let mut tables = Tables::new();
        tables.load(&scan).unwrap();
        let mut walk = Walk::new(&scan, &tables, &jpeg[scan.start..]);
        let mut entries = Entries::default();
        assert!(entries.read(&record, &jpeg, &scan, scan.mcus_down - 1));
        for row in 0..scan.mcus_down {
            for column in 0..scan.mcus_across {
                let (entry, start) = entries.at(row, column, &scan);
                assert_eq!(start, column / STRIDE * STRIDE);
                if start == column {
                    assert_eq!((entry.position, entry.predictors), (walk.position(), walk.predictors));
                }
                walk.pass().unwrap();
            }
            let (entry, _) = entries.at(row, scan.mcus_across, &scan);
            assert_eq!((entry.position, entry.predictors), (walk.position(), walk.predictors));
        }
        assert!(!entries.read(&record, &jpeg, &scan, scan.mcus_down), "there is no such row");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        /// Checksums keep such records away; should one ever pass, it leads to wrong pixels at worst.
        #[test]
        fn a_record_with_wrong_entries_and_a_right_checksum_does_no_harm(
            changes in vec((any::<Index>(), any::<u8>()), 1..8), cut_at in any::<Index>(), shortens: bool, region: [u32; 4],
        ) {
            let jpeg = image();
            let mut record = build(&jpeg).unwrap().unwrap();
            let entries = HEADER_BYTES..record.len();
            for (at, value) in changes {
                record[entries.start + at.index(entries.len())] = value;
            }
            if shortens {
                record.truncate(entries.start + cut_at.index(entries.len()));
            }
            seal(&mut record, &jpeg);
            let (left, top) = (region[0] % WIDTH, region[1] % HEIGHT);
            let (width, height) = (1 + region[2] % (WIDTH - left), 1 + region[3] % (HEIGHT - top));
            let region = Region { left, top, width, height };
            let mut decoder = ImageDecoder::new().unwrap();
            let mut rgb = Vec::new();
            let decoded = decoder.decode(&jpeg, region, None, Some(&record), &mut rgb).unwrap();
            prop_assert!(decoded.way != Way::Whole);
        }
    }
}
