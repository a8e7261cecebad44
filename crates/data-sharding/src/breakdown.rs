//! Where the time of decoding files goes. Measured beside the pool and not in it: clocks in the innermost loops would
//! cost as much as what they measure.

use std::time::{Duration, Instant};

use crate::augment::{Augmentation, SampleKey};
use crate::error::DataError;
use crate::image_size;
use crate::jpeg::{ImageDecoder, Region};
use crate::source::DataSet;

/// Each part is measured so often on each image, of which the shortest time counts.
const ROUNDS: usize = 5;

/// Time of the parts of decoding, means over the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeBreakdown {
    /// Headers, tables, and the way to the region: the seek record where there is one.
    pub open: Duration,
    /// Entropy decoding of the region, and of what lies before it where there is no record.
    pub entropy: Duration,
    /// Inverse transform, upsampling and colours.
    pub reconstruct: Duration,
    /// All of it for images that are decoded by libraries as they are: progressive JPEGs, PNGs and the like.
    pub undivided: Duration,
}

impl DecodeBreakdown {
    /// All parts together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.open + self.entropy + self.reconstruct + self.undivided
    }
}

/// An image, and what is decoded of it.
struct Case<'a> {
    file: Vec<u8>,
    seek: Option<&'a [u8]>,
    region: Region,
    target: (u32, u32),
    /// Shortest time up to each part's end.
    shortest: [Duration; PARTS.len()],
    /// Whether it has all parts.
    divided: bool,
}

/// What is done of the decoding, from its beginning up to the end of a part. Tells whether the image has such a part.
type UpTo = fn(&mut ImageDecoder, &Case, &mut Vec<u8>) -> bool;

const PARTS: [UpTo; 3] = [
    |decoder, case, _| {
        decoder.open(&case.file, case.region, Some(case.target), case.seek).is_ok_and(|opened| opened)
    },
    |decoder, case, _| {
        let read = |_, _, blocks: &[[i16; 64]]| {
            std::hint::black_box(blocks[0][0]);
        };
        let way = decoder.coefficients(&case.file, case.region, Some(case.target), case.seek, read);
        way.is_ok_and(|way| way.is_some())
    },
    |decoder, case, rgb| decoder.decode(&case.file, case.region, Some(case.target), case.seek, rgb).is_ok(),
];

/// Decodes the samples of `keys` one after the other as a decoder thread of the pool would, up to the end of each part,
/// and takes the differences. Samples that cannot be decoded are left out. `None` where nothing is decoded: of a data
/// set of pixels, or if no sample is left.
///
/// # Errors
/// If a file cannot be read.
pub fn decode_breakdown(
    data: &DataSet,
    augmentation: &Augmentation,
    keys: &[SampleKey],
) -> Result<Option<DecodeBreakdown>, DataError> {
    let DataSet::Encoded(source) = data else { return Ok(None) };
    let mut decoder = image_size::decoder()?;
    let mut cases = Vec::with_capacity(keys.len());
    let mut rgb = Vec::new();
    for key in keys {
        let sample = key.sample as usize;
        let mut buffer = Vec::new();
        let file = source.read(sample, &mut buffer)?.to_vec();
        let Ok(header) = decoder.header(&file) else { continue };
        let Some(framing) = augmentation.framing(key, header.width, header.height) else { continue };
        let case = Case {
            file,
            seek: source.seek_record(sample),
            region: framing.region,
            target: framing.target(),
            shortest: [Duration::MAX; PARTS.len()],
            divided: true,
        };
        if decoder.decode(&case.file, case.region, Some(case.target), case.seek, &mut rgb).is_ok() {
            cases.push(case);
        }
    }
    // Each part over all images before the next, in an order that rotates: on one image back to back, the later ones
    // would profit from warm caches.
    for round in 0..ROUNDS {
        for turn in 0..PARTS.len() {
            let part = (round + turn) % PARTS.len();
            for case in &mut cases {
                let clock = Instant::now();
                let there = PARTS[part](&mut decoder, case, &mut rgb);
                case.shortest[part] = case.shortest[part].min(clock.elapsed());
                case.divided &= there;
            }
        }
    }
    let Ok(count @ 1..) = u32::try_from(cases.len()) else { return Ok(None) };
    let mut sum = DecodeBreakdown::default();
    for Case { shortest: [open, entropy, whole], divided, .. } in cases {
        if divided {
            sum.open += open;
            sum.entropy += entropy.saturating_sub(open);
            sum.reconstruct += whole.saturating_sub(entropy);
        } else {
            sum.undivided += whole;
        }
    }
    Ok(Some(DecodeBreakdown {
        open: sum.open / count,
        entropy: sum.entropy / count,
        reconstruct: sum.reconstruct / count,
        undivided: sum.undivided / count,
    }))
}
