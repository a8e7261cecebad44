//! The size of training images as a function of the epoch (progressive resizing).

use crate::error::DataError;

/// Side of the square that training images are scaled to: from `from` pixels in epoch 0 along a straight line
/// to `to` pixels in epoch `until` and later, rounded to a multiple of `step` but for `to` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Pixels in epoch 0.
    pub from: u32,
    /// Pixels from epoch `until` on.
    pub to: u32,
    /// First epoch (from 0) of the final size.
    pub until: u64,
    /// Sizes in between are multiples of this many pixels.
    pub step: u32,
}

/// Larger images are surely a mistake.
const LARGEST: u32 = 8192;

impl ImageSize {
    /// The same in every epoch.
    #[must_use]
    pub fn constant(side: u32) -> Self {
        ImageSize { from: side, to: side, until: 0, step: 1 }
    }

    /// Pixels in an epoch, counted from 0.
    #[must_use]
    pub fn at(&self, epoch: u64) -> u32 {
        if epoch >= self.until {
            return self.to;
        }
        let (from, to) = (f64::from(self.from), f64::from(self.to));
        let exact = from + (to - from) * epoch as f64 / self.until as f64;
        let step = f64::from(self.step);
        let (low, high) = (self.from.min(self.to), self.from.max(self.to));
        (((exact / step).round() * step) as u32).clamp(low, high)
    }

    pub(crate) fn largest(&self) -> u32 {
        self.from.max(self.to)
    }

    pub(crate) fn check(&self) -> Result<(), DataError> {
        for (name, value) in
            [("image size", self.from), ("image size", self.to), ("step of image sizes", self.step)]
        {
            if !(1..=LARGEST).contains(&value) {
                let expected = format!("1 to {LARGEST}");
                return Err(DataError::OutOfRange { name, value: value.into(), expected });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_in_steps_to_the_last_one() {
        let size = ImageSize { from: 128, to: 224, until: 6, step: 32 };
        let sizes: Vec<u32> = (0..8).map(|epoch| size.at(epoch)).collect();
        assert_eq!(sizes, [128, 160, 160, 192, 192, 224, 224, 224]);
        let odd = ImageSize { from: 100, to: 225, until: 2, step: 32 };
        assert_eq!([0, 1, 2].map(|epoch| odd.at(epoch)), [100, 160, 225]);
        let shrinking = ImageSize { from: 64, to: 32, until: 4, step: 8 };
        assert_eq!([0, 1, 2, 3, 4].map(|epoch| shrinking.at(epoch)), [64, 56, 48, 40, 32]);
        assert_eq!([0, 100].map(|epoch| ImageSize::constant(224).at(epoch)), [224, 224]);
        assert_eq!((size.largest(), shrinking.largest()), (224, 64));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [
            ImageSize::constant(0),
            ImageSize::constant(8193),
            ImageSize { step: 0, ..ImageSize::constant(8) },
            ImageSize { from: 0, ..ImageSize::constant(8) },
        ] {
            assert!(size.check().unwrap_err().to_string().contains("expected 1 to 8192"), "{size:?}");
        }
        assert!(ImageSize { from: 128, to: 224, until: 6, step: 32 }.check().is_ok());
    }
}
