//! What is done to a training or test image between its file and the network, as pure functions of what was
//! drawn, and the drawing as a pure function of seed, epoch, sample and repetition. Touches no files and no
//! tensors: what the device does is described here ([`DeviceParameters`], [`Mix`]) and done by the caller.
//!
//! Each operation draws from a stream of its own, so that switching one on or off changes no other.

mod affine;
mod auto;
mod color;
mod crop;
mod device;
mod mix;
mod padded;
#[cfg(test)]
mod parity;
mod resize;
mod size;
mod tone;

pub use auto::AutoAugment;
pub use color::ColorJitter;
pub use crop::{CropVariant, RandomResizedCrop};
pub use device::{DeviceParameters, RandomErasing};
pub use mix::{Mix, MixDraw, PasteBox};
pub use padded::PaddingMode;
pub use resize::Filter;
pub use size::ImageSize;

pub(crate) use crop::{Framing, whole};
pub(crate) use padded::PaddedCrop;
pub(crate) use resize::{Pixels, Resizer, mirror};

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

impl SampleKey {
    /// The numbers drawn for one operation on this sample.
    pub(crate) fn draws(&self, seed: u64, operation: &str) -> Draws {
        Draws::new([seed, self.epoch, u64::from(self.sample), domain(operation, self.repetition)])
    }
}

/// How the part of an image that the network sees is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crop {
    /// For images that all have one size: padded by `padding` pixels on each side and cropped back to their own
    /// size at a random place; 0 leaves them as they are.
    Padded {
        /// Pixels added on each side.
        padding: u32,
        /// What the added pixels hold.
        mode: PaddingMode,
    },
    /// A random part, scaled to the size of the epoch.
    RandomResized {
        /// How the part is drawn.
        crop: RandomResizedCrop,
        /// Side of the square that it is scaled to.
        size: ImageSize,
        /// How it is scaled.
        filter: Filter,
    },
    /// The shorter side scaled to `shorter` pixels and the middle taken, as torchvision's `Resize` and
    /// `CenterCrop`.
    Center {
        /// Pixels of the shorter side after scaling.
        shorter: u32,
        /// Side of the square taken, at most `shorter`.
        size: u32,
        /// How it is scaled.
        filter: Filter,
    },
    /// As `Center`, but by repetition 0 to 4 the upper left, upper right, lower left, lower right and middle
    /// square, 5 to 9 the same mirrored.
    Ten {
        /// Pixels of the shorter side after scaling.
        shorter: u32,
        /// Side of the squares taken, at most `shorter`.
        size: u32,
        /// How it is scaled.
        filter: Filter,
    },
}

/// Everything that is done to images, in this order: crop (and scaling), flip, automatic augmentation, colour
/// jitter; then, on the device, normalisation, lighting and erasing.
#[derive(Clone, Debug, PartialEq)]
pub struct Augmentation {
    /// Of the run.
    pub seed: u64,
    /// Which part of the image is seen.
    pub crop: Crop,
    /// Mirror left and right with probability one half.
    pub flip: bool,
    /// Leave flip and padded crop to the device ([`DeviceParameters::placement`]), which has to do something with the
    /// whole image first.
    pub crop_on_device: bool,
    /// TrivialAugment or RandAugment.
    pub auto: Option<AutoAugment>,
    /// Brightness, contrast and saturation.
    pub color_jitter: Option<ColorJitter>,
    /// Standard deviation of the lighting noise (Krizhevsky et al. 2012; fb.resnet.torch: 0.1); 0 is off.
    pub lighting: f64,
    /// A box that the device blanks.
    pub erase: Option<RandomErasing>,
}

impl Augmentation {
    /// Leaves images of one size as they are.
    #[must_use]
    pub fn none() -> Self {
        Augmentation::of_test(Crop::Padded { padding: 0, mode: PaddingMode::Zero })
    }

    /// Takes that part of the image and draws nothing.
    #[must_use]
    pub fn of_test(crop: Crop) -> Self {
        Augmentation {
            seed: 0,
            crop,
            flip: false,
            crop_on_device: false,
            auto: None,
            color_jitter: None,
            lighting: 0.0,
            erase: None,
        }
    }

    /// Whether sources of this kind can be augmented so; `image` is the one size of all images, if they have
    /// one.
    pub(crate) fn check(&self, image: Option<ImageShape>) -> Result<(), DataError> {
        let out_of_range =
            |name, value: u64, expected: String| Err(DataError::OutOfRange { name, value, expected });
        match (self.crop, image) {
            (Crop::Padded { padding, .. }, Some(image)) => {
                // A reflection has no more than the image's other pixels.
                let side = image.height.min(image.width);
                if padding > 0 && padding >= side {
                    return out_of_range(
                        "crop_padding",
                        padding.into(),
                        format!("less than the image's {side} pixels"),
                    );
                }
            }
            (Crop::Padded { .. }, None) => {
                return Err(DataError::Augmentation(
                    "images of different sizes must be scaled: expected a random-resized or centre crop",
                ));
            }
            (Crop::RandomResized { size, .. }, _) => size.check()?,
            (Crop::Center { shorter, size, .. } | Crop::Ten { shorter, size, .. }, _) => {
                ImageSize::constant(size).check()?;
                if size > shorter {
                    return out_of_range(
                        "size of the centre crop",
                        size.into(),
                        format!("at most the {shorter} pixels that the shorter side is scaled to"),
                    );
                }
                ImageSize::constant(shorter).check()?;
            }
        }
        let colored = self.auto.is_some() || self.color_jitter.is_some() || self.lighting > 0.0;
        if colored && image.is_some_and(|image| image.channels != 3) {
            return Err(DataError::Augmentation(
                "colour operations need images with 3 channels; grey ones can be repeated to 3",
            ));
        }
        Ok(())
    }

    /// Size of the images of an epoch, given that of the stored ones if they have one size.
    pub(crate) fn output(&self, image: Option<ImageShape>, epoch: u64) -> ImageShape {
        let channels = image.map_or(3, |image| image.channels);
        let square = |side| ImageShape { height: side, width: side, channels };
        match self.crop {
            Crop::Padded { .. } => image.unwrap_or_else(|| square(1)),
            Crop::RandomResized { size, .. } => square(size.at(epoch)),
            Crop::Center { size, .. } | Crop::Ten { size, .. } => square(size),
        }
    }

    /// The largest size of any epoch.
    pub(crate) fn largest_output(&self, image: Option<ImageShape>) -> ImageShape {
        match self.crop {
            Crop::RandomResized { size, .. } => {
                let side = size.largest();
                ImageShape { height: side, width: side, ..self.output(image, 0) }
            }
            _ => self.output(image, 0),
        }
    }

    /// Whether the flip or the padded crop moves pixels of images that are not scaled.
    pub(crate) fn moves_pixels(&self) -> bool {
        !self.crop_on_device && (self.flip || matches!(self.crop, Crop::Padded { padding: 1.., .. }))
    }

    /// Flip and place of the padded crop of a sample.
    pub(crate) fn padded_crop(&self, key: &SampleKey) -> PaddedCrop {
        let (padding, mode) = match self.crop {
            Crop::Padded { padding, mode } => (padding, mode),
            _ => (0, PaddingMode::Zero),
        };
        PaddedCrop::draw(self.seed, key, self.flip, padding, mode)
    }

    /// Which part of an image of `width` x `height` pixels is seen, and how it is scaled; `None` where nothing
    /// is scaled.
    pub(crate) fn framing(&self, key: &SampleKey, width: u32, height: u32) -> Option<Framing> {
        match self.crop {
            Crop::Padded { .. } => None,
            Crop::RandomResized { crop, size, filter } => Some(Framing {
                flip: self.padded_crop(key).flip,
                ..Framing::cut(crop.draw(self.seed, key, width, height), size.at(key.epoch), filter)
            }),
            Crop::Center { shorter, size, filter } => {
                Some(Framing::scaled(width, height, shorter, size, crop::CENTER, filter))
            }
            Crop::Ten { shorter, size, filter } => {
                let place = crop::PLACES[key.repetition as usize % crop::PLACES.len()];
                let mirrored = key.repetition as usize / crop::PLACES.len() % 2 == 1;
                Some(Framing {
                    flip: mirrored,
                    ..Framing::scaled(width, height, shorter, size, place, filter)
                })
            }
        }
    }

    /// Automatic augmentation and colour jitter of a finished image `[height, width, 3]`, in place. `scratch`
    /// is working memory.
    pub(crate) fn recolor(&self, key: &SampleKey, width: u32, pixels: &mut [u8], scratch: &mut Vec<u8>) {
        if let Some(auto) = &self.auto {
            for operation in auto.draw(self.seed, key, width) {
                operation.apply(width as usize, pixels, scratch);
            }
        }
        if let Some(jitter) = &self.color_jitter {
            for step in jitter.draw(self.seed, key) {
                step.apply(pixels);
            }
        }
    }

    /// What the device adds and blanks.
    pub(crate) fn device_parameters(&self, key: &SampleKey, image: ImageShape) -> DeviceParameters {
        DeviceParameters {
            color_offset: device::lighting(self.lighting, self.seed, key),
            erase: self.erase.map_or([0; 4], |erase| erase.draw(self.seed, key, image)),
            placement: if self.crop_on_device { self.padded_crop(key).placement() } else { [0; 3] },
        }
    }
}
