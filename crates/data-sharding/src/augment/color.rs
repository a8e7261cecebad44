//! Colour operations as Pillow's `ImageEnhance` does them, to the bit, and the colour jitter of torchvision and
//! fb.resnet.torch. Images are RGB, `[height, width, 3]`.

use super::SampleKey;

/// Random brightness, contrast and saturation, in random order: each factor is uniform in
/// `max(0, 1 - strength)` to `1 + strength`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorJitter {
    /// Strength of the brightness; 0 is off.
    pub brightness: f64,
    /// Strength of the contrast; 0 is off.
    pub contrast: f64,
    /// Strength of the saturation; 0 is off.
    pub saturation: f64,
}

/// One colour operation with its factor; 1 changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Enhance {
    /// Blend with black.
    Brightness(f32),
    /// Blend with the image's mean grey.
    Contrast(f32),
    /// Blend with the grey image.
    Saturation(f32),
}

impl ColorJitter {
    /// All three operations, in the order in which they are applied.
    pub(crate) fn draw(&self, seed: u64, key: &SampleKey) -> [Enhance; 3] {
        let mut draws = key.draws(seed, "color jitter");
        let mut factor = |strength: f64| draws.uniform((1.0 - strength).max(0.0), 1.0 + strength) as f32;
        let mut steps = [
            Enhance::Brightness(factor(self.brightness)),
            Enhance::Contrast(factor(self.contrast)),
            Enhance::Saturation(factor(self.saturation)),
        ];
        draws.shuffle(&mut steps);
        steps
    }
}

impl Enhance {
    pub(crate) fn apply(self, pixels: &mut [u8]) {
        match self {
            Enhance::Brightness(factor) | Enhance::Contrast(factor) | Enhance::Saturation(factor)
                if factor == 1.0 => {}
            Enhance::Brightness(factor) => map(pixels, &table(|value| blend(0, value, factor))),
            Enhance::Contrast(factor) => {
                let mean = mean_grey(pixels);
                map(pixels, &table(|value| blend(mean, value, factor)));
            }
            Enhance::Saturation(factor) => {
                for pixel in pixels.as_chunks_mut::<3>().0 {
                    let grey = grey(*pixel);
                    *pixel = pixel.map(|value| blend(grey, value, factor));
                }
            }
        }
    }
}

/// Pillow's `Image.blend`: from `from` (0) to `to` (1) and beyond, cut off at 0 and 255, fractions dropped.
pub(crate) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // The conversion saturates.
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

/// Pillow's conversion to grey: ITU-R 601 (.299, .587, .114) in 16-bit fixed point.
fn grey([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

fn mean_grey(pixels: &[u8]) -> u8 {
    let pixels = pixels.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(grey(pixel))).sum();
    (sum as f64 / pixels.len() as f64 + 0.5) as u8
}

pub(crate) fn table(value: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|index| value(index as u8))
}

/// Replaces every value by its entry in the table.
pub(crate) fn map(pixels: &mut [u8], table: &[u8; 256]) {
    pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sample: u32) -> SampleKey {
        SampleKey { sample, epoch: 0, repetition: 0 }
    }

    #[test]
    fn factors_are_uniform_and_orders_equally_likely() {
        let jitter = ColorJitter { brightness: 0.4, contrast: 0.2, saturation: 1.5 };
        let (mut sums, mut orders) = ([0.0; 3], std::collections::BTreeMap::<String, usize>::new());
        for sample in 0..24_000 {
            let mut order = String::new();
            for step in jitter.draw(3, &key(sample)) {
                let (name, index, factor, low, high) = match step {
                    Enhance::Brightness(f) => ('b', 0, f, 0.6, 1.4),
                    Enhance::Contrast(f) => ('c', 1, f, 0.8, 1.2),
                    Enhance::Saturation(f) => ('s', 2, f, 0.0, 2.5),
                };
                assert!((low..=high).contains(&factor), "{step:?}");
                order.push(name);
                sums[index] += (f64::from(factor) - f64::from(low)) / f64::from(high - low);
            }
            *orders.entry(order).or_default() += 1;
        }
        for sum in sums {
            // Standard deviation of the mean: 0.0019.
            assert!((sum / 24_000.0 - 0.5).abs() < 0.01, "{sums:?}");
        }
        assert!(orders.len() == 6 && orders.values().all(|&n| (3700..4300).contains(&n)), "{orders:?}");
    }

    #[test]
    fn a_strength_of_zero_changes_nothing() {
        let before: Vec<u8> = (0..=254).collect();
        for sample in 0..20 {
            let mut after = before.clone();
            for step in
                (ColorJitter { brightness: 0.0, contrast: 0.0, saturation: 0.0 }).draw(3, &key(sample))
            {
                step.apply(&mut after);
            }
            assert_eq!(before, after);
        }
    }

    #[test]
    fn extreme_factors_reach_black_grey_and_full_range() {
        let before = [10, 200, 30, 90, 90, 90];
        let applied = |step: Enhance| {
            let mut pixels = before;
            step.apply(&mut pixels);
            pixels
        };
        assert_eq!(applied(Enhance::Brightness(0.0)), [0; 6]);
        assert_eq!(applied(Enhance::Brightness(2.0)), [20, 255, 60, 180, 180, 180]);
        // Greys 124 and 90.
        assert_eq!(applied(Enhance::Saturation(0.0)), [124, 124, 124, 90, 90, 90]);
        assert_eq!(applied(Enhance::Contrast(0.0)), [107; 6]);
    }
}
