//! Augmentation of small images as the Wide ResNet code does it: a horizontal flip with probability one half,
//! then a random crop of the image padded by reflection. Works on bytes.

use super::SampleKey;
use crate::source::ImageShape;

/// What the margin around an image holds before it is cropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaddingMode {
    /// The image mirrored at its border pixels, which are not repeated: c b | a b c.
    Reflect,
    /// Bytes of 0.
    Zero,
}

/// Flip and place of the crop of one sample.
///
/// Three numbers are drawn, in this order, whatever is switched on: flip (`below(2)`, 1 flips), row and column
/// of the crop in the padded image (`below(2 * padding + 1)` each). `below` and its stream are those of
/// [`Sampler::epoch`](crate::Sampler::epoch), keyed by seed, epoch, sample and (0x51044a8a00000000, the upper
/// half of XXH3-64 of `augmentation`, plus the repetition).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PaddedCrop {
    pub(crate) flip: bool,
    padding: usize,
    mode: PaddingMode,
    row: usize,
    column: usize,
}

impl PaddedCrop {
    pub(crate) fn draw(seed: u64, key: &SampleKey, may_flip: bool, padding: u32, mode: PaddingMode) -> Self {
        let mut draws = key.draws(seed, "augmentation");
        let flip = draws.below(2) == 1;
        let offsets = 2 * u64::from(padding) + 1;
        let (row, column) = (draws.below(offsets) as usize, draws.below(offsets) as usize);
        PaddedCrop { flip: flip && may_flip, padding: padding as usize, mode, row, column }
    }

    /// For [`DeviceParameters::placement`](super::DeviceParameters::placement).
    pub(crate) fn placement(&self) -> [i32; 3] {
        [self.flip.into(), self.row as i32, self.column as i32]
    }

    /// Writes the flipped and cropped `image` to `output`, both of shape `shape`. `columns` is working memory.
    pub(crate) fn apply(&self, shape: ImageShape, image: &[u8], columns: &mut Vec<usize>, output: &mut [u8]) {
        let (width, channels) = (shape.width as usize, shape.channels as usize);

        // For each byte of an output row between the margins, where it comes from in the image's row.
        columns.clear();
        let mut left_margin = 0;
        for x in 0..width {
            match self.source(x + self.column, width) {
                Some(source) => {
                    let source = if self.flip { width - 1 - source } else { source };
                    columns.extend(source * channels..(source + 1) * channels);
                }
                None if columns.is_empty() => left_margin += channels,
                None => {}
            }
        }
        for (y, row) in output.chunks_exact_mut(shape.row_bytes()).enumerate() {
            let Some(source) = self.source(y + self.row, shape.height as usize) else {
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
        let padding = self.padding;
        let inside = (padding..padding + size).contains(&position);
        match self.mode {
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

    fn crop(sample: u32, flip: bool, padding: u32, mode: PaddingMode) -> PaddedCrop {
        PaddedCrop::draw(9, &SampleKey { sample, epoch: 3, repetition: 1 }, flip, padding, mode)
    }

    /// Mirrors, pads row by row and column by column, then crops, each as a step of its own on nested
    /// vectors.
    fn naive(crop: &PaddedCrop, shape: ImageShape, image: &[u8]) -> Vec<u8> {
        let pixels = image.chunks(shape.channels as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut rows: Vec<Vec<Vec<u8>>> = pixels.chunks(shape.width as usize).map(<[_]>::to_vec).collect();
        if crop.flip {
            rows.iter_mut().for_each(|row| row.reverse());
        }
        let black_pixel = vec![0; shape.channels as usize];
        let rows: Vec<_> = rows.iter().map(|row| pad(row, crop, &black_pixel)).collect();
        let black_row = vec![black_pixel; rows[0].len()];
        pad(&rows, crop, &black_row)
            .into_iter()
            .skip(crop.row)
            .take(shape.height as usize)
            .flat_map(|row| row.into_iter().skip(crop.column).take(shape.width as usize).flatten())
            .collect()
    }

    fn pad<T: Clone>(items: &[T], crop: &PaddedCrop, black: &T) -> Vec<T> {
        let margin = |inner: Vec<T>| match crop.mode {
            PaddingMode::Reflect => inner,
            PaddingMode::Zero => vec![black.clone(); crop.padding],
        };
        let before = items.iter().skip(1).take(crop.padding).rev().cloned().collect();
        let after = items.iter().rev().skip(1).take(crop.padding).cloned().collect();
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
                let (mut columns, mut output) = (Vec::new(), vec![0; shape.bytes()]);
                for sample in 0..200 {
                    let crop = crop(sample, flip, padding, mode);
                    crop.apply(shape, &image, &mut columns, &mut output);
                    assert_eq!(output, naive(&crop, shape, &image), "{crop:?} {sample}");
                }
            }
        }
    }

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let crop = crop(0, false, 2, PaddingMode::Reflect);
        let padded: Vec<_> = (0..8).map(|position| crop.source(position, 4)).collect();
        assert_eq!(padded, [2, 1, 0, 1, 2, 3, 2, 1].map(Some));
    }

    #[test]
    fn flips_are_even_and_crops_uniform() {
        let (mut flips, mut cells) = (0_i64, [0_i64; 81]);
        for sample in 0..81_000 {
            let crop = crop(sample, true, 4, PaddingMode::Reflect);
            flips += i64::from(crop.flip);
            cells[crop.row * 9 + crop.column] += 1;
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
        // From a second implementation, in another language, of the description at `PaddedCrop`.
        for (seed, epoch, sample, repetition, expected) in [
            (7, 0, 0, 0, (false, 0, 4)),
            (7, 2, 59_999, 0, (true, 0, 0)),
            (7, 2, 59_999, 1, (true, 0, 8)),
            ((1 << 63) + 5, 1000, 4, u32::MAX, (true, 7, 5)),
        ] {
            let key = SampleKey { sample, epoch, repetition };
            let crop = PaddedCrop::draw(seed, &key, true, 4, PaddingMode::Zero);
            assert_eq!((crop.flip, crop.row, crop.column), expected);
        }
    }

    #[test]
    fn switching_the_flip_off_leaves_the_crop_where_it_was() {
        for sample in 0..50 {
            let with = crop(sample, true, 4, PaddingMode::Zero);
            let without = crop(sample, false, 4, PaddingMode::Zero);
            assert!(!without.flip);
            assert_eq!((with.row, with.column), (without.row, without.column));
        }
    }
}
