//! Operations on the distribution of values and on sharpness, as Pillow's `ImageOps` and `ImageFilter` do them,
//! to the bit. Images are RGB, `[height, width, 3]`.

use super::color::{blend, map, table};

/// Keeps the upper `bits` bits of each value.
pub(super) fn posterize(pixels: &mut [u8], bits: u32) {
    let mask = !(0xff_u32 >> bits.min(8)) as u8;
    map(pixels, &table(|value| value & mask));
}

/// Inverts values of `threshold` and above.
pub(super) fn solarize(pixels: &mut [u8], threshold: f64) {
    map(pixels, &table(|value| if f64::from(value) < threshold { value } else { 255 - value }));
}

/// Stretches each channel to the full range.
pub(super) fn auto_contrast(pixels: &mut [u8]) {
    map_channels(pixels, |histogram| {
        let first = histogram.iter().position(|&count| count > 0).unwrap_or(0);
        let last = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
        if last <= first {
            return table(|value| value);
        }
        let scale = 255.0 / (last - first) as f64;
        let offset = -(first as f64) * scale;
        table(|value| (f64::from(value) * scale + offset) as u8)
    });
}

/// Makes the values of each channel equally frequent.
pub(super) fn equalize(pixels: &mut [u8]) {
    map_channels(pixels, |histogram| {
        let total: u32 = histogram.iter().sum();
        let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        let step = (total - last) / 255;
        if step == 0 {
            return table(|value| value);
        }
        let mut sum = step / 2;
        histogram.map(|count| {
            let value = (sum / step).min(255) as u8;
            sum += count;
            value
        })
    });
}

fn map_channels(pixels: &mut [u8], make: impl Fn(&[u32; 256]) -> [u8; 256]) {
    let mut histograms = [[0_u32; 256]; 3];
    let pixels = pixels.as_chunks_mut::<3>().0;
    for pixel in &*pixels {
        for (histogram, &value) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(value)] += 1;
        }
    }
    let tables = histograms.each_ref().map(make);
    for pixel in pixels {
        for (value, table) in pixel.iter_mut().zip(&tables) {
            *value = table[usize::from(*value)];
        }
    }
}

/// From smoothed (0) over unchanged (1) to sharpened: a blend with the 3x3 mean that weights the middle 5 of 13.
/// The outermost pixels stay.
pub(super) fn sharpen(width: usize, pixels: &mut [u8], factor: f32, scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(pixels);
    let row_bytes = 3 * width;
    let rows = pixels.len() / row_bytes;
    if width < 3 || rows < 3 {
        return;
    }
    for y in 1..rows - 1 {
        let above = &scratch[(y - 1) * row_bytes..][..row_bytes];
        let middle = &scratch[y * row_bytes..][..row_bytes];
        let below = &scratch[(y + 1) * row_bytes..][..row_bytes];
        let output = &mut pixels[y * row_bytes..][..row_bytes];
        for x in 3..row_bytes - 3 {
            let of = |row: &[u8]| u32::from(row[x - 3]) + u32::from(row[x]) + u32::from(row[x + 3]);
            let sum = of(above) + of(middle) + of(below) + 4 * u32::from(middle[x]);
            // To the nearest; 13 is odd, so there are no ties.
            let smooth = ((2 * sum + 13) / 26) as u8;
            output[x] = blend(smooth, middle[x], factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_thresholds_and_flat_channels() {
        let mut pixels = [0, 129, 255];
        posterize(&mut pixels, 2);
        assert_eq!(pixels, [0, 128, 192]);
        posterize(&mut pixels, 8);
        assert_eq!(pixels, [0, 128, 192]);
        solarize(&mut pixels, 128.0);
        assert_eq!(pixels, [0, 127, 63]);
        let flat = [7_u8; 300];
        for operation in [auto_contrast, equalize] {
            let mut pixels = flat;
            operation(&mut pixels);
            assert_eq!(pixels, flat, "one value has no range to stretch");
        }
    }

    #[test]
    fn ranges_are_stretched_per_channel() {
        let mut pixels = [10, 0, 100, 20, 0, 150, 30, 0, 200];
        auto_contrast(&mut pixels);
        // 200·2.55 - 255 is 254.99…94 in double precision, and fractions are dropped, in Pillow too.
        assert_eq!(pixels, [0, 0, 0, 127, 0, 127, 255, 0, 254]);
    }

    #[test]
    fn images_without_an_inside_are_not_sharpened() {
        let before = [1, 2, 3, 250, 251, 252];
        for (width, mut pixels) in [(1, before), (2, before)] {
            sharpen(width, &mut pixels, 0.0, &mut Vec::new());
            assert_eq!(pixels, before);
        }
    }
}
