//! TrivialAugment (wide) and RandAugment as torchvision 0.28 defines them: the same table of operations, bins and
//! signs. The numbers are drawn here by our own rule.

use super::SampleKey;
use super::affine::Affine;
use super::color::Enhance;
use super::tone;

/// Which automatic augmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoAugment {
    /// One operation of any strength (Müller & Hutter 2021, arXiv 2103.10158).
    TrivialWide,
    /// Some operations of one strength (Cubuk et al. 2019, arXiv 1909.13719).
    Rand {
        /// How many operations, 1 to [`MOST_OPERATIONS`](AutoAugment::MOST_OPERATIONS).
        operations: usize,
        /// Which of the 31 strengths, 0 to 30.
        magnitude: u32,
    },
}

/// Strengths of each operation.
const BINS: u32 = 31;

impl AutoAugment {
    /// Most operations of [`AutoAugment::Rand`].
    pub const MOST_OPERATIONS: usize = 16;
    /// Strongest magnitude.
    pub const STRONGEST: u32 = BINS - 1;

    /// The operations on a sample, in order, for square images of `side` pixels.
    pub(crate) fn draw(
        self,
        seed: u64,
        key: &SampleKey,
        side: u32,
    ) -> impl Iterator<Item = Operation> + use<> {
        let mut draws = key.draws(seed, "automatic augmentation");
        let (count, ranges) = match self {
            AutoAugment::TrivialWide => (1, &WIDE),
            AutoAugment::Rand { operations, .. } => (operations, &NARROW),
        };
        (0..count).map(move |_| {
            let kind = KINDS[draws.below(KINDS.len() as u64) as usize];
            let bin = draws.below(BINS.into()) as u32;
            let negative = draws.below(2) == 1;
            let bin = match self {
                AutoAugment::TrivialWide => bin,
                AutoAugment::Rand { magnitude, .. } => magnitude.min(Self::STRONGEST),
            };
            Operation::new(kind, ranges, bin, negative, side)
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

/// In torchvision's order; all equally likely.
pub(crate) const KINDS: [Kind; 14] = [
    Kind::Identity,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Brightness,
    Kind::Color,
    Kind::Contrast,
    Kind::Sharpness,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
];

/// The largest magnitude of each kind of operation.
pub(crate) struct Ranges {
    shear: f32,
    translate: Translate,
    /// Degrees.
    rotate: f32,
    /// Brightness, colour, contrast and sharpness, as a difference from factor 1.
    enhance: f32,
    /// Bits that are dropped.
    posterize: f32,
}

enum Translate {
    Pixels(f32),
    /// Of the image's side.
    Share(f64),
}

pub(crate) const WIDE: Ranges =
    Ranges { shear: 0.99, translate: Translate::Pixels(32.0), rotate: 135.0, enhance: 0.99, posterize: 6.0 };
pub(crate) const NARROW: Ranges = Ranges {
    shear: 0.3,
    translate: Translate::Share(150.0 / 331.0),
    rotate: 30.0,
    enhance: 0.9,
    posterize: 4.0,
};

/// An operation with everything drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operation {
    Identity,
    Affine(Affine),
    Enhance(Enhance),
    Sharpness(f32),
    Posterize(u32),
    Solarize(f64),
    AutoContrast,
    Equalize,
}

impl Operation {
    pub(crate) fn new(kind: Kind, ranges: &Ranges, bin: u32, negative: bool, side: u32) -> Self {
        let signed = |largest: f32| {
            let magnitude = f64::from(linspace(0.0, largest, bin));
            if negative { -magnitude } else { magnitude }
        };
        let translate = match ranges.translate {
            Translate::Pixels(pixels) => pixels,
            Translate::Share(share) => (share * f64::from(side)) as f32,
        };
        let factor = || (1.0 + signed(ranges.enhance)) as f32;
        match kind {
            Kind::Identity => Operation::Identity,
            Kind::ShearX => Operation::Affine(Affine::ShearX(signed(ranges.shear))),
            Kind::ShearY => Operation::Affine(Affine::ShearY(signed(ranges.shear))),
            Kind::TranslateX => Operation::Affine(Affine::TranslateX(signed(translate))),
            Kind::TranslateY => Operation::Affine(Affine::TranslateY(signed(translate))),
            Kind::Rotate => Operation::Affine(Affine::Rotate(signed(ranges.rotate))),
            Kind::Brightness => Operation::Enhance(Enhance::Brightness(factor())),
            Kind::Color => Operation::Enhance(Enhance::Saturation(factor())),
            Kind::Contrast => Operation::Enhance(Enhance::Contrast(factor())),
            Kind::Sharpness => Operation::Sharpness(factor()),
            Kind::Posterize => {
                let dropped = bin as f32 / ((BINS - 1) as f32 / ranges.posterize);
                Operation::Posterize(8 - dropped.round_ties_even() as u32)
            }
            Kind::Solarize => Operation::Solarize(linspace(255.0, 0.0, bin).into()),
            Kind::AutoContrast => Operation::AutoContrast,
            Kind::Equalize => Operation::Equalize,
        }
    }

    /// Changes an RGB image in place.
    pub(crate) fn apply(self, width: usize, pixels: &mut [u8], scratch: &mut Vec<u8>) {
        match self {
            Operation::Identity => {}
            Operation::Affine(affine) => affine.apply(width, pixels, scratch),
            Operation::Enhance(enhance) => enhance.apply(pixels),
            Operation::Sharpness(factor) => tone::sharpen(width, pixels, factor, scratch),
            Operation::Posterize(bits) => tone::posterize(pixels, bits),
            Operation::Solarize(threshold) => tone::solarize(pixels, threshold),
            Operation::AutoContrast => tone::auto_contrast(pixels),
            Operation::Equalize => tone::equalize(pixels),
        }
    }
}

/// torch.linspace over the bins in single precision: from both ends towards the middle, each with one rounding.
/// Its last bits decide how many whole pixels an image moves.
fn linspace(first: f32, last: f32, bin: u32) -> f32 {
    let step = (last - first) / (BINS - 1) as f32;
    if bin < BINS / 2 {
        step.mul_add(bin as f32, first)
    } else {
        (-step).mul_add((BINS - 1 - bin) as f32, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sample: u32) -> SampleKey {
        SampleKey { sample, epoch: 0, repetition: 0 }
    }

    #[test]
    fn operations_bins_and_signs_are_equally_likely() {
        let (mut identity, mut shears, mut negative) = (0_i32, [0_i32; BINS as usize], 0_i32);
        let total = 14 * 31 * 200;
        for sample in 0..total {
            match AutoAugment::TrivialWide.draw(1, &key(sample), 224).next().unwrap() {
                Operation::Identity => identity += 1,
                Operation::Affine(Affine::ShearX(slope)) => {
                    shears[(slope.abs() / 0.99 * 30.0).round() as usize] += 1;
                    negative += i32::from(slope < 0.0);
                }
                _ => {}
            }
        }
        let expected = total as i32 / 14;
        assert!((identity - expected).abs() < 450, "{identity} of {expected}");
        assert!(shears.iter().all(|n| (n - 200).abs() < 75), "{shears:?}");
        // The bin 0 has no sign.
        assert!((negative - expected * 30 / 62).abs() < 300, "{negative} of {expected}");
    }

    #[test]
    fn rand_augment_draws_as_many_as_asked_at_one_strength() {
        let policy = AutoAugment::Rand { operations: 3, magnitude: 30 };
        for sample in 0..500 {
            let drawn: Vec<Operation> = policy.draw(1, &key(sample), 331).collect();
            assert_eq!(drawn.len(), 3);
            for operation in drawn {
                match operation {
                    Operation::Affine(Affine::TranslateX(pixels)) => assert_eq!(pixels.abs(), 150.0),
                    Operation::Affine(Affine::Rotate(degrees)) => assert_eq!(degrees.abs(), 30.0),
                    Operation::Posterize(bits) => assert_eq!(bits, 4),
                    Operation::Solarize(threshold) => assert_eq!(threshold, 0.0),
                    _ => {}
                }
            }
        }
    }
}
