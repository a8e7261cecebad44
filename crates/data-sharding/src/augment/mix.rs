//! Mixup and cutmix: what is drawn for a micro batch. The device mixes.

use rand_distr::Beta;

use crate::random::{Draws, domain};

/// Mixup (Zhang et al., arXiv 1710.09412) and cutmix (Yun et al., arXiv 1905.04899); where both are on, each micro
/// batch takes one of them with probability one half, as torchvision's recipe does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Parameter of mixup's Beta(α, α); 0 is off.
    pub mixup: f64,
    /// Parameter of cutmix's Beta(α, α); 0 is off.
    pub cutmix: f64,
}

/// How a micro batch is mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct MixDraw {
    /// Weight of each sample itself; its partner has the rest.
    pub weight: f64,
    /// Index of each sample's partner in the micro batch: a permutation.
    pub partners: Vec<i64>,
    /// Cutmix: the box that the partner fills. Mixup: none, all pixels are averaged.
    pub paste: Option<PasteBox>,
}

/// A box in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasteBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Column behind the last.
    pub right: u32,
    /// Row behind the last.
    pub bottom: u32,
}

impl Mix {
    /// What happens to micro batch `micro_batch` of the global batch of step `step`: `len` images of
    /// `width` x `height` pixels. `None` when both are off.
    #[must_use]
    pub fn draw(
        &self,
        seed: u64,
        step: u64,
        micro_batch: usize,
        len: usize,
        (width, height): (u32, u32),
    ) -> Option<MixDraw> {
        let mut draws = Draws::new([seed, step, micro_batch as u64, domain("mix", 0)]);
        let second = draws.below(2) == 1;
        let cut = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (false, false) => return None,
            (true, true) => second,
            (_, cutmix) => cutmix,
        };
        let alpha = if cut { self.cutmix } else { self.mixup };
        let weight = draws.sample(&Beta::new(alpha, alpha).ok()?);
        let mut partners: Vec<i64> = (0..len as i64).collect();
        draws.shuffle(&mut partners);
        if !cut {
            return Some(MixDraw { weight, partners, paste: None });
        }
        let (x, y) = (draws.below(width.into()) as u32, draws.below(height.into()) as u32);
        let half = 0.5 * (1.0 - weight).sqrt();
        let (half_width, half_height) = ((half * f64::from(width)) as u32, (half * f64::from(height)) as u32);
        let paste = PasteBox {
            left: x.saturating_sub(half_width),
            top: y.saturating_sub(half_height),
            right: (x + half_width).min(width),
            bottom: (y + half_height).min(height),
        };
        let pasted = f64::from(paste.right - paste.left) * f64::from(paste.bottom - paste.top);
        let weight = 1.0 - pasted / (f64::from(width) * f64::from(height));
        Some(MixDraw { weight, partners, paste: Some(paste) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (u32, u32) = (32, 24);

    fn draws(mix: Mix) -> Vec<MixDraw> {
        (0..4000).map(|step| mix.draw(3, step, 1, 16, SIZE).unwrap()).collect()
    }

    #[test]
    fn partners_are_a_permutation_and_weights_follow_beta() {
        // Beta(0.2, 0.2): mean 1/2, variance 1/(4·(2·0.2+1)) = 0.1786.
        let draws = draws(Mix { mixup: 0.2, cutmix: 0.0 });
        let mean = draws.iter().map(|d| d.weight).sum::<f64>() / 4000.0;
        let variance = draws.iter().map(|d| (d.weight - 0.5).powi(2)).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
        assert!((variance - 0.1786).abs() < 0.01, "{variance}");
        for draw in &draws {
            let mut sorted = draw.partners.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..16).collect::<Vec<i64>>());
            assert!(draw.paste.is_none());
        }
        assert_ne!(draws[0].partners, draws[1].partners);
    }

    #[test]
    fn the_pasted_box_has_the_share_that_the_weight_leaves() {
        for draw in draws(Mix { mixup: 0.0, cutmix: 1.0 }) {
            let paste = draw.paste.unwrap();
            assert!(
                paste.left <= paste.right
                    && paste.right <= 32
                    && paste.top <= paste.bottom
                    && paste.bottom <= 24
            );
            let pasted = f64::from((paste.right - paste.left) * (paste.bottom - paste.top)) / (32.0 * 24.0);
            assert!((draw.weight + pasted - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn both_take_turns_and_none_is_none() {
        let cut = draws(Mix { mixup: 0.2, cutmix: 1.0 }).iter().filter(|d| d.paste.is_some()).count();
        assert!((1850..2150).contains(&cut), "{cut}");
        assert_eq!(Mix { mixup: 0.0, cutmix: 0.0 }.draw(3, 0, 0, 4, SIZE), None);
    }

    #[test]
    fn what_is_drawn_depends_on_step_and_micro_batch_alone() {
        let mix = Mix { mixup: 0.2, cutmix: 1.0 };
        assert_eq!(mix.draw(3, 5, 2, 8, SIZE), mix.draw(3, 5, 2, 8, SIZE));
        for (seed, step, micro_batch) in [(4, 5, 2), (3, 6, 2), (3, 5, 3)] {
            assert_ne!(mix.draw(3, 5, 2, 8, SIZE), mix.draw(seed, step, micro_batch, 8, SIZE));
        }
    }
}
