//! Augmentation of 32-pixel images as the Wide ResNet code does it: a horizontal flip with probability one
//! half, then a random crop of the image padded by reflection. Works on bytes; nothing is drawn from shared
//! state.

use crate::error::DataError;
use crate::random::{Draws, domain};
use crate::source::ImageShape;

/// Which sample is wanted, and for which time it is augmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleKey {
    /// Index in the source.
    pub sample: u32,
    /// Epoch for which it is drawn.
    pub epoch: u64,
    /// Which of several differently augmented copies within the epoch.
    pub repetition: u32,
}

/// What the margin around an image holds before it is cropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaddingMode {
    /// The image mirrored at its border pixels, which are not repeated: c b | a b c.
    Reflect,
    /// Bytes of 0.
    Zero,
}

/// How samples are augmented: a pure function of seed, epoch, sample and repetition.
///
/// Three numbers are drawn for each sample, in this order, whatever is switched on: flip (`below(2)`, 1
/// flips), row and column of the crop in the padded image (`below(2 * crop_padding + 1)` each). `below` and
/// its stream are those of [`Sampler::epoch`](crate::Sampler::epoch), keyed by seed, epoch, sample and
/// (0x51044a8a00000000, the upper half of XXH3-64 of `augmentation`, plus the repetition).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Of the run.
    pub seed: u64,
    /// Mirror left and right with probability one half.
    pub flip: bool,
    /// Pixels added on each side before a crop of the image's own size; 0 is off.
    pub crop_padding: u32,
    /// What the added pixels hold.
    pub padding_mode: PaddingMode,
}

struct Placement {
    flip: bool,
    row: usize,
    column: usize,
}

impl Transform {
    /// Leaves images as they are.
    #[must_use]
    pub fn none() -> Self {
        Transform { seed: 0, flip: false, crop_padding: 0, padding_mode: PaddingMode::Zero }
    }

    pub(crate) fn changes_pixels(&self) -> bool {
        self.flip || self.crop_padding > 0
    }

    /// Whether images of this shape can be augmented so: a reflection has no more than the image's other
    /// pixels.
    pub(crate) fn check(&self, image: ImageShape) -> Result<(), DataError> {
        let side = image.height.min(image.width);
        if self.crop_padding > 0 && self.crop_padding >= side {
            let expected = format!("less than the image's {side} pixels");
            return Err(DataError::OutOfRange {
                name: "crop_padding",
                value: self.crop_padding.into(),
                expected,
            });
        }
        Ok(())
    }

    fn placement(&self, key: &SampleKey) -> Placement {
        let identity = [self.seed, key.epoch, u64::from(key.sample), domain("augmentation", key.repetition)];
        let mut draws = Draws::new(identity);
        let flip = draws.below(2) == 1;
        let offsets = 2 * u64::from(self.crop_padding) + 1;
        let (row, column) = (draws.below(offsets) as usize, draws.below(offsets) as usize);
        Placement { flip: flip && self.flip, row, column }
    }

    /// Writes the augmented `image` to `output`, both of shape `shape`. `columns` is working memory.
    pub(crate) fn apply(
        &self,
        key: &SampleKey,
        shape: ImageShape,
        image: &[u8],
        columns: &mut Vec<usize>,
        output: &mut [u8],
    ) {
        let placement = self.placement(key);
        let (width, channels) = (shape.width as usize, shape.channels as usize);

        // For each byte of an output row between the margins, where it comes from in the image's row.
        columns.clear();
        let mut left_margin = 0;
        for x in 0..width {
            match self.source(x + placement.column, width) {
                Some(source) => {
                    let source = if placement.flip { width - 1 - source } else { source };
                    columns.extend(source * channels..(source + 1) * channels);
                }
                None if columns.is_empty() => left_margin += channels,
                None => {}
            }
        }
        for (y, row) in output.chunks_exact_mut(shape.row_bytes()).enumerate() {
            let Some(source) = self.source(y + placement.row, shape.height as usize) else {
                row.fill(0);
                continue;
            };
            let source = &image[source * shape.row_bytes()..][..shape.row_bytes()];
            let (left, rest) = row.split_at_mut(left_margin);
            let (inner, right) = rest.split_at_mut(columns.len());
            left.fill(0);
            right.fill(0);
            inner.iter_mut().zip(&*columns).for_each(|(byte, &column)| *byte = source[column]);
        }
    }

    /// Which of `size` rows or columns stands at `position` of the padded image; `None` where zeros do.
    fn source(&self, position: usize, size: usize) -> Option<usize> {
        let padding = self.crop_padding as usize;
        let inside = (padding..padding + size).contains(&position);
        match self.padding_mode {
            _ if inside => Some(position - padding),
            PaddingMode::Zero => None,
            PaddingMode::Reflect if position < padding => Some(padding - position),
            PaddingMode::Reflect => Some(2 * (size - 1) - (position - padding)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [PaddingMode; 2] = [PaddingMode::Reflect, PaddingMode::Zero];

    fn key(sample: u32) -> SampleKey {
        SampleKey { sample, epoch: 3, repetition: 1 }
    }

    fn transform(flip: bool, crop_padding: u32, padding_mode: PaddingMode) -> Transform {
        Transform { seed: 9, flip, crop_padding, padding_mode }
    }

    /// Mirrors, pads row by row and column by column, then crops, each as a step of its own on nested
    /// vectors.
    fn naive(transform: &Transform, placement: &Placement, shape: ImageShape, image: &[u8]) -> Vec<u8> {
        let pixels = image.chunks(shape.channels as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut rows: Vec<Vec<Vec<u8>>> = pixels.chunks(shape.width as usize).map(<[_]>::to_vec).collect();
        if placement.flip {
            rows.iter_mut().for_each(|row| row.reverse());
        }
        let black_pixel = vec![0; shape.channels as usize];
        let rows: Vec<_> = rows.iter().map(|row| pad(row, transform, &black_pixel)).collect();
        let black_row = vec![black_pixel; rows[0].len()];
        pad(&rows, transform, &black_row)
            .into_iter()
            .skip(placement.row)
            .take(shape.height as usize)
            .flat_map(|row| row.into_iter().skip(placement.column).take(shape.width as usize).flatten())
            .collect()
    }

    fn pad<T: Clone>(items: &[T], transform: &Transform, black: &T) -> Vec<T> {
        let count = transform.crop_padding as usize;
        let margin = |inner: Vec<T>| match transform.padding_mode {
            PaddingMode::Reflect => inner,
            PaddingMode::Zero => vec![black.clone(); count],
        };
        let before = items.iter().skip(1).take(count).rev().cloned().collect();
        let after = items.iter().rev().skip(1).take(count).cloned().collect();
        [margin(before), items.to_vec(), margin(after)].concat()
    }

    #[test]
    fn flip_and_crop_agree_with_a_naive_reference() {
        let shapes = [(5, 5, 1), (4, 7, 3), (8, 5, 2), (32, 32, 3)];
        for (height, width, channels) in shapes {
            let shape = ImageShape { height, width, channels };
            let image: Vec<u8> = (0..shape.bytes()).map(|i| (i * 37 % 251) as u8 + 1).collect();
            for (mode, padding, flip) in
                MODES.into_iter().flat_map(|m| [(m, 0, true), (m, 1, false), (m, 3, true)])
            {
                let transform = transform(flip, padding, mode);
                let (mut columns, mut output) = (Vec::new(), vec![0; shape.bytes()]);
                for sample in 0..200 {
                    transform.apply(&key(sample), shape, &image, &mut columns, &mut output);
                    let placement = transform.placement(&key(sample));
                    assert_eq!(
                        output,
                        naive(&transform, &placement, shape, &image),
                        "{transform:?} {sample}"
                    );
                }
            }
        }
    }

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let transform = transform(false, 2, PaddingMode::Reflect);
        let padded: Vec<_> = (0..8).map(|position| transform.source(position, 4)).collect();
        assert_eq!(padded, [2, 1, 0, 1, 2, 3, 2, 1].map(Some));
    }

    #[test]
    fn flips_are_even_and_crops_uniform() {
        let transform = transform(true, 4, PaddingMode::Reflect);
        let (mut flips, mut cells) = (0_i64, [0_i64; 81]);
        for sample in 0..81_000 {
            let placement = transform.placement(&key(sample));
            flips += i64::from(placement.flip);
            cells[placement.row * 9 + placement.column] += 1;
        }
        // Standard deviations: 142 flips, 31 a cell; chi-square with 80 degrees of freedom has mean 80,
        // deviation 12.6.
        assert!((flips - 40_500).abs() < 700, "{flips} flips");
        assert!(cells.iter().all(|count| (count - 1000).abs() < 150), "{cells:?}");
        let chi_square: f64 = cells.iter().map(|&count| (count as f64 - 1000.0).powi(2) / 1000.0).sum();
        assert!((35.0..140.0).contains(&chi_square), "{chi_square}");
    }

    #[test]
    fn draws_are_those_of_an_independent_implementation() {
        // From a second implementation, in another language, of the description at `Transform`.
        for (seed, epoch, sample, repetition, expected) in [
            (7, 0, 0, 0, (false, 0, 4)),
            (7, 2, 59_999, 0, (true, 0, 0)),
            (7, 2, 59_999, 1, (true, 0, 8)),
            ((1 << 63) + 5, 1000, 4, u32::MAX, (true, 7, 5)),
        ] {
            let transform = Transform { seed, ..transform(true, 4, PaddingMode::Zero) };
            let placement = transform.placement(&SampleKey { sample, epoch, repetition });
            assert_eq!((placement.flip, placement.row, placement.column), expected);
        }
    }

    #[test]
    fn switching_the_flip_off_leaves_the_crop_where_it_was() {
        for sample in 0..50 {
            let with = transform(true, 4, PaddingMode::Zero).placement(&key(sample));
            let without = transform(false, 4, PaddingMode::Zero).placement(&key(sample));
            assert!(!without.flip);
            assert_eq!((with.row, with.column), (without.row, without.column));
        }
    }

    #[test]
    fn padding_must_be_smaller_than_the_image() {
        let shape = ImageShape { height: 4, width: 6, channels: 1 };
        for mode in MODES {
            assert!(transform(true, 3, mode).check(shape).is_ok());
            let error = transform(true, 4, mode).check(shape).unwrap_err().to_string();
            assert_eq!(error, "crop_padding is 4; expected less than the image's 4 pixels");
        }
    }
}
