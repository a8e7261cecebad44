//! Which part of an image is seen: random resized crops, and the scaled image's middle and corners. Decides
//! places only; `resize` scales.

use super::{Filter, SampleKey};
use crate::jpeg::{Region, View};

/// How the part of a [`Crop::RandomResized`](super::Crop::RandomResized) is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Smallest and largest share of the image's area.
    pub area: (f64, f64),
    /// Smallest and largest width divided by height.
    pub aspect: (f64, f64),
    /// Whose distribution.
    pub variant: CropVariant,
}

/// The two distributions in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CropVariant {
    /// torchvision's `RandomResizedCrop`: aspect log-uniform; after 10 misses the middle with the nearest
    /// allowed aspect.
    Torchvision,
    /// fb.resnet.torch's `RandomSizedCrop` (datasets/transforms.lua): aspect uniform, width and height swapped
    /// with probability one half; after 10 misses the middle square of the shorter side.
    FbResnet,
}

impl Default for RandomResizedCrop {
    fn default() -> Self {
        RandomResizedCrop {
            area: (0.08, 1.0),
            aspect: (3.0 / 4.0, 4.0 / 3.0),
            variant: CropVariant::Torchvision,
        }
    }
}

const ATTEMPTS: usize = 10;

impl RandomResizedCrop {
    /// The part of an image of `width` x `height` pixels.
    pub(crate) fn draw(&self, seed: u64, key: &SampleKey, width: u32, height: u32) -> Region {
        let mut draws = key.draws(seed, "random resized crop");
        let area = f64::from(width) * f64::from(height);
        for _ in 0..ATTEMPTS {
            let target = area * draws.uniform(self.area.0, self.area.1);
            let (w, h) = match self.variant {
                CropVariant::Torchvision => {
                    let aspect = draws.uniform(self.aspect.0.ln(), self.aspect.1.ln()).exp();
                    ((target * aspect).sqrt(), (target / aspect).sqrt())
                }
                CropVariant::FbResnet => {
                    let aspect = draws.uniform(self.aspect.0, self.aspect.1);
                    let (w, h) = ((target * aspect).sqrt(), (target / aspect).sqrt());
                    if draws.below(2) == 1 { (h, w) } else { (w, h) }
                }
            };
            let (w, h) = (w.round_ties_even() as u32, h.round_ties_even() as u32);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = draws.below(u64::from(height - h) + 1) as u32;
                let left = draws.below(u64::from(width - w) + 1) as u32;
                return Region { left, top, width: w, height: h };
            }
        }
        let (w, h) = self.fallback(width, height);
        Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }

    fn fallback(&self, width: u32, height: u32) -> (u32, u32) {
        let (w, h) = (f64::from(width), f64::from(height));
        match self.variant {
            CropVariant::FbResnet => (width.min(height), width.min(height)),
            CropVariant::Torchvision if w / h < self.aspect.0 => {
                (width, ((w / self.aspect.0).round_ties_even() as u32).clamp(1, height))
            }
            CropVariant::Torchvision if w / h > self.aspect.1 => {
                (((h * self.aspect.1).round_ties_even() as u32).clamp(1, width), height)
            }
            CropVariant::Torchvision => (width, height),
        }
    }
}

/// Where a square stands in the scaled image: share of the free columns on its left and of the free rows above.
pub(crate) type Place = (f64, f64);

pub(crate) const CENTER: Place = (0.5, 0.5);
/// In torchvision's order of `FiveCrop`.
pub(crate) const PLACES: [Place; 5] = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), CENTER];

/// From a stored image to the network's square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Framing {
    /// The only pixels of the stored image that are read.
    pub(crate) region: Region,
    /// What is scaled to the square, in pixels of the stored image. Scaling reads the region's pixels around
    /// it too.
    pub(crate) view: View,
    /// Side of the square.
    pub(crate) size: u32,
    pub(crate) filter: Filter,
    /// Mirrored afterwards.
    pub(crate) flip: bool,
}

impl Framing {
    /// Pixels (width, height) that the region may be scaled down to beforehand without a loss.
    pub(crate) fn target(&self) -> (u32, u32) {
        let pixels = |region: u32, view: f64| (f64::from(self.size) * f64::from(region) / view).ceil() as u32;
        (pixels(self.region.width, self.view.width), pixels(self.region.height, self.view.height))
    }

    /// The view in a buffer where the region lies at `region`.
    pub(crate) fn view_within(&self, region: View) -> View {
        let scale_x = region.width / f64::from(self.region.width);
        let scale_y = region.height / f64::from(self.region.height);
        View {
            left: region.left + (self.view.left - f64::from(self.region.left)) * scale_x,
            top: region.top + (self.view.top - f64::from(self.region.top)) * scale_y,
            width: self.view.width * scale_x,
            height: self.view.height * scale_y,
        }
    }

    /// The region alone is scaled, as if nothing were around it.
    pub(crate) fn cut(region: Region, size: u32, filter: Filter) -> Self {
        Framing { region, view: whole(region), size, filter, flip: false }
    }

    /// The whole image is scaled so that its shorter side has `shorter` pixels, and a square of it taken; but
    /// only what that square depends on is read.
    pub(crate) fn scaled(
        width: u32,
        height: u32,
        shorter: u32,
        size: u32,
        place: Place,
        filter: Filter,
    ) -> Self {
        // As torchvision's Resize (the longer side is rounded down) and CenterCrop (ties to even).
        let longer = |long: u32, short: u32| (u64::from(shorter) * u64::from(long) / u64::from(short)) as u32;
        let (scaled_width, scaled_height) = match width <= height {
            true => (shorter, longer(height, width)),
            false => (longer(width, height), shorter),
        };
        let axis = |stored: u32, scaled: u32, share: f64| {
            let scale = f64::from(stored) / f64::from(scaled);
            let first = (f64::from(scaled.saturating_sub(size)) * share).round_ties_even() * scale;
            let extent = f64::from(size.min(scaled)) * scale;
            let reach = filter.support() * scale.max(1.0) + 1.0;
            let begin = (first - reach).floor().max(0.0) as u32;
            let end = ((first + extent + reach).ceil() as u32).min(stored);
            (first, extent, begin, end - begin)
        };
        let (left, view_width, region_left, region_width) = axis(width, scaled_width, place.0);
        let (top, view_height, region_top, region_height) = axis(height, scaled_height, place.1);
        Framing {
            region: Region { left: region_left, top: region_top, width: region_width, height: region_height },
            view: View { left, top, width: view_width, height: view_height },
            size,
            filter,
            flip: false,
        }
    }
}

/// A region as a view.
pub(crate) fn whole(region: Region) -> View {
    let [left, top, width, height] = [region.left, region.top, region.width, region.height].map(f64::from);
    View { left, top, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FB: RandomResizedCrop = RandomResizedCrop {
        area: (0.08, 1.0),
        aspect: (3.0 / 4.0, 4.0 / 3.0),
        variant: CropVariant::FbResnet,
    };

    fn boxes(crop: RandomResizedCrop, width: u32, height: u32) -> Vec<Region> {
        let key = |sample| SampleKey { sample, epoch: 1, repetition: 0 };
        (0..40_000).map(|sample| crop.draw(5, &key(sample), width, height)).collect()
    }

    fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
        let count = values.len() as f64;
        values.sum::<f64>() / count
    }

    #[test]
    fn parts_lie_inside_and_have_the_moments_of_their_distribution() {
        for crop in [RandomResizedCrop::default(), FB] {
            let boxes = boxes(crop, 1000, 1000);
            for part in &boxes {
                assert!(part.left + part.width <= 1000 && part.top + part.height <= 1000);
                let aspect = f64::from(part.width) / f64::from(part.height);
                assert!((0.745..1.345).contains(&aspect), "{part:?}");
                let area = f64::from(part.width) * f64::from(part.height) / 1e6;
                assert!((0.079..=1.0).contains(&area), "{part:?}");
            }
            // Misses are the large parts with an unusual aspect, so that the mean area lies below that of
            // U(0.08, 1), 0.54, at 0.479 in torchvision's own code too; the log of the aspect is symmetric.
            let area = mean(boxes.iter().map(|b| f64::from(b.width) * f64::from(b.height) / 1e6));
            let aspect = mean(boxes.iter().map(|b| (f64::from(b.width) / f64::from(b.height)).ln()));
            let free = boxes.iter().filter(|b| b.width < 900);
            let place = mean(
                free.map(|b| f64::from(b.left) / f64::from(1000 - b.width)).collect::<Vec<_>>().into_iter(),
            );
            assert!((0.46..0.50).contains(&area), "{crop:?}: {area}");
            assert!(aspect.abs() < 0.004, "{crop:?}: {aspect}");
            assert!((place - 0.5).abs() < 0.01, "{crop:?}: {place}");
        }
    }

    #[test]
    fn the_aspect_is_log_uniform_or_uniform() {
        // Small parts never miss, so that the aspect keeps its distribution: P(|ln aspect| < ln(4/3)/2) is one
        // half if log-uniform. If uniform on (3/4, 4/3) it is (sqrt(4/3) - sqrt(3/4)) / (4/3 - 3/4) = 0.495, and
        // swapping changes nothing; so the means of the aspect tell them apart: 1.0138 and, by swapping,
        // (1.0417 + ln((4/3)/(3/4)) / (7/12)) / 2 = 1.0140. What differs is the mean of w/h before the swap.
        let small =
            |variant| RandomResizedCrop { area: (0.05, 0.06), variant, ..RandomResizedCrop::default() };
        for variant in [CropVariant::Torchvision, CropVariant::FbResnet] {
            let aspects: Vec<f64> = boxes(small(variant), 4000, 4000)
                .iter()
                .map(|b| (f64::from(b.width) / f64::from(b.height)).ln().abs())
                .collect();
            let inner = aspects.iter().filter(|&&a| a < (4.0_f64 / 3.0).ln() / 2.0).count() as f64 / 40_000.0;
            let expected = if variant == CropVariant::Torchvision { 0.5 } else { 0.495 };
            assert!((inner - expected).abs() < 0.01, "{variant:?}: {inner}");
        }
    }

    #[test]
    fn long_images_fall_back_to_their_middle() {
        let whole = |crop: RandomResizedCrop| RandomResizedCrop { area: (1.0, 1.0), ..crop };
        let cases = [
            (RandomResizedCrop::default(), 100, 1000, Region { left: 0, top: 433, width: 100, height: 133 }),
            (RandomResizedCrop::default(), 1000, 100, Region { left: 433, top: 0, width: 133, height: 100 }),
            (FB, 100, 1001, Region { left: 0, top: 450, width: 100, height: 100 }),
            (FB, 7, 1, Region { left: 3, top: 0, width: 1, height: 1 }),
        ];
        for (crop, width, height, expected) in cases {
            let key = SampleKey { sample: 0, epoch: 0, repetition: 0 };
            assert_eq!(whole(crop).draw(1, &key, width, height), expected, "{width}x{height}");
        }
    }

    #[test]
    fn tiny_images_never_give_an_empty_part() {
        for (width, height) in [(1, 1), (1, 9), (9, 1), (2, 3)] {
            for crop in [RandomResizedCrop::default(), FB] {
                for sample in 0..500 {
                    let part = crop.draw(1, &SampleKey { sample, epoch: 0, repetition: 0 }, width, height);
                    assert!(part.width >= 1 && part.height >= 1);
                    assert!(part.left + part.width <= width && part.top + part.height <= height);
                }
            }
        }
    }

    #[test]
    fn the_scaled_middle_is_torchvisions() {
        // 500x375 scaled to 341x256: 500·256/375 = 341.3; columns (341-224)/2 = 58.5 -> 58, rows 16.
        let framing = Framing::scaled(500, 375, 256, 224, CENTER, Filter::Bilinear);
        let (sx, sy) = (500.0 / 341.0, 375.0 / 256.0);
        assert_eq!(
            framing.view,
            View { left: 58.0 * sx, top: 16.0 * sy, width: 224.0 * sx, height: 224.0 * sy }
        );
        let region = framing.region;
        assert!(f64::from(region.left) <= framing.view.left - sx && region.left > 80);
        assert!(f64::from(region.left + region.width) >= framing.view.left + framing.view.width + sx);
        let corner = Framing::scaled(375, 500, 256, 224, PLACES[3], Filter::Bicubic);
        assert_eq!(
            (corner.region.left + corner.region.width, corner.region.top + corner.region.height),
            (375, 500)
        );
        assert!((corner.view.left + corner.view.width - 375.0).abs() < 1e-9);
        let whole = Framing::scaled(64, 64, 64, 64, CENTER, Filter::Bilinear);
        assert_eq!(whole.region, Region { left: 0, top: 0, width: 64, height: 64 });
    }
}
