//! What is drawn for a sample here and done on the device: the lighting noise, a colour offset before
//! normalisation, and the box of random erasing, blanked after it.

use super::SampleKey;
use crate::source::ImageShape;

/// One sample's share of what the device does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceParameters {
    /// Added to red, green and blue of every pixel, on the scale 0 to 255, before normalisation.
    pub color_offset: [f32; 3],
    /// Left, top, right and bottom edge (the latter two exclusive) of the box that becomes 0 after
    /// normalisation; empty when right is 0.
    pub erase: [i32; 4],
    /// With [`Augmentation::crop_on_device`](super::Augmentation::crop_on_device): 1 where the image is mirrored, and
    /// row and column of the padded, mirrored image at which the crop begins.
    pub placement: [i32; 3],
}

/// As in fb.resnet.torch (datasets/imagenet.lua), on the scale 0 to 1; it multiplies by these themselves, not by
/// their square roots.
const EIGENVALUES: [f64; 3] = [0.2175, 0.0188, 0.0045];
/// Rows are red, green and blue, columns the eigenvectors.
const EIGENVECTORS: [[f64; 3]; 3] =
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];

/// PCA noise of standard deviation `std` along the principal axes of ImageNet's colours (fb.resnet.torch,
/// `Lighting`), as an offset on the scale 0 to 255.
pub(super) fn lighting(std: f64, seed: u64, key: &SampleKey) -> [f32; 3] {
    if std <= 0.0 {
        return [0.0; 3];
    }
    let mut draws = key.draws(seed, "lighting");
    let weights = EIGENVALUES.map(|eigenvalue| std * draws.normal() * eigenvalue);
    EIGENVECTORS.map(|row| {
        let offset: f64 = row.iter().zip(weights).map(|(component, weight)| component * weight).sum();
        (255.0 * offset) as f32
    })
}

/// Blanks a box of random place, area and aspect (Zhong et al., arXiv 1708.04896), as torchvision's
/// `RandomErasing` with value 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomErasing {
    /// Share of the images that it happens to.
    pub probability: f64,
    /// Smallest and largest share of the image's area.
    pub area: (f64, f64),
    /// Smallest and largest height divided by width, log-uniform.
    pub aspect: (f64, f64),
}

const ATTEMPTS: usize = 10;

impl RandomErasing {
    /// Left, top, right, bottom; zeros where nothing is erased, also when 10 boxes in turn did not fit.
    pub(super) fn draw(&self, seed: u64, key: &SampleKey, image: ImageShape) -> [i32; 4] {
        let mut draws = key.draws(seed, "random erasing");
        if draws.uniform(0.0, 1.0) >= self.probability {
            return [0; 4];
        }
        let (width, height) = (image.width, image.height);
        let area = f64::from(width) * f64::from(height);
        for _ in 0..ATTEMPTS {
            let target = area * draws.uniform(self.area.0, self.area.1);
            let aspect = draws.uniform(self.aspect.0.ln(), self.aspect.1.ln()).exp();
            let h = (target * aspect).sqrt().round_ties_even() as u32;
            let w = (target / aspect).sqrt().round_ties_even() as u32;
            if h < height && w < width {
                let top = draws.below(u64::from(height - h) + 1) as i32;
                let left = draws.below(u64::from(width - w) + 1) as i32;
                return [left, top, left + w as i32, top + h as i32];
            }
        }
        [0; 4]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sample: u32) -> SampleKey {
        SampleKey { sample, epoch: 0, repetition: 0 }
    }

    #[test]
    fn lighting_has_the_covariance_of_its_axes() {
        let offsets: Vec<[f32; 3]> = (0..40_000).map(|sample| lighting(0.1, 2, &key(sample))).collect();
        for a in 0..3 {
            let mean = offsets.iter().map(|o| f64::from(o[a])).sum::<f64>() / 40_000.0;
            assert!(mean.abs() < 0.1, "{mean}");
            for b in 0..3 {
                let found = offsets.iter().map(|o| f64::from(o[a]) * f64::from(o[b])).sum::<f64>() / 40_000.0;
                let expected: f64 = (0..3)
                    .map(|axis| {
                        EIGENVECTORS[a][axis] * EIGENVECTORS[b][axis] * (25.5 * EIGENVALUES[axis]).powi(2)
                    })
                    .sum();
                // The largest variance is 10.5; the deviation of an estimate about 0.07.
                assert!((found - expected).abs() < 0.4, "{a} {b}: {found} {expected}");
            }
        }
        assert_eq!(lighting(0.0, 2, &key(1)), [0.0; 3]);
    }

    #[test]
    fn boxes_lie_inside_with_the_moments_of_their_distribution() {
        let erase = RandomErasing { probability: 0.25, area: (0.02, 0.33), aspect: (0.3, 3.3) };
        let image = ImageShape { height: 200, width: 300, channels: 3 };
        let boxes: Vec<[i32; 4]> =
            (0..40_000).map(|sample| erase.draw(2, &key(sample), image)).filter(|b| b[2] > 0).collect();
        let share = boxes.len() as f64 / 40_000.0;
        assert!((share - 0.25).abs() < 0.01, "{share}");
        let mut aspect_sum = 0.0;
        for [left, top, right, bottom] in &boxes {
            assert!(
                0 <= *left && left < right && *right <= 300 && 0 <= *top && top < bottom && *bottom <= 200
            );
            let (w, h) = (f64::from(right - left), f64::from(bottom - top));
            assert!((0.019..0.335).contains(&(w * h / 60_000.0)), "{w}x{h}");
            aspect_sum += (h / w).ln();
        }
        // Tall boxes fit less often into an image that is wider than high.
        let aspect = aspect_sum / boxes.len() as f64;
        assert!((-0.2..0.02).contains(&aspect), "{aspect}");
        let never = RandomErasing { probability: 0.0, ..erase };
        let always = RandomErasing { probability: 1.0, ..erase };
        assert!((0..100).all(|sample| never.draw(2, &key(sample), image) == [0; 4]));
        assert!((0..100).all(|sample| always.draw(2, &key(sample), image) != [0; 4]));
    }
}
