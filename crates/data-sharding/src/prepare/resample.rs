//! Images made smaller: decoded, scaled and encoded again where a side is longer than wanted.

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions};

use super::options::{Cap, Side};
use crate::error::DataError;
use crate::image_size;
use crate::jpeg::{ImageDecoder, ImageEncoder, Region};

/// Scales images, one after another.
pub(crate) struct Resampler {
    cap: Cap,
    decoder: ImageDecoder,
    encoder: ImageEncoder,
    resizer: fir::Resizer,
    pixels: Vec<u8>,
    scaled: Vec<u8>,
    encoded: Vec<u8>,
}

impl Resampler {
    pub(crate) fn new(cap: Cap) -> Result<Self, DataError> {
        let no_memory = |error: crate::jpeg::ImageError| DataError::Decoder { reason: error.to_string() };
        Ok(Resampler {
            cap,
            decoder: image_size::decoder()?,
            encoder: ImageEncoder::new(cap.quality).map_err(no_memory)?,
            resizer: fir::Resizer::new(),
            pixels: Vec::new(),
            scaled: Vec::new(),
            encoded: Vec::new(),
        })
    }

    /// The JPEG of an image brought down to the cap, antialiased with Pillow's bicubic filter; none where it is small
    /// enough and is best left alone. Errors are the decoder's, in words.
    pub(crate) fn scale(&mut self, image: &[u8], width: u16, height: u16) -> Result<Option<&[u8]>, String> {
        let (width, height) = (u32::from(width), u32::from(height));
        let Some((new_width, new_height)) = self.cap.size(width, height) else { return Ok(None) };
        let whole = Region::whole(width, height);
        let decoded = self
            .decoder
            .decode(image, whole, None, None, &mut self.pixels)
            .map_err(|error| error.to_string())?;
        let pixels = &self.pixels[..3 * decoded.width as usize * decoded.height as usize];
        let source = TypedImageRef::<U8x3>::from_buffer(decoded.width, decoded.height, pixels)
            .map_err(|error| error.to_string())?;
        self.scaled.resize(3 * new_width as usize * new_height as usize, 0);
        let mut target = TypedImage::<U8x3>::from_buffer(new_width, new_height, &mut self.scaled)
            .map_err(|error| error.to_string())?;
        let view = decoded.view;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).crop(
            view.left,
            view.top,
            view.width,
            view.height,
        );
        self.resizer.resize_typed(&source, &mut target, &options).map_err(|error| error.to_string())?;
        self.encoder
            .encode(&self.scaled, new_width, new_height, &mut self.encoded)
            .map_err(|error| error.to_string())?;
        Ok(Some(&self.encoded))
    }
}

impl Cap {
    /// What an image of this size becomes; none where it stays.
    fn size(&self, width: u32, height: u32) -> Option<(u32, u32)> {
        let (shorter, longer) = (width.min(height), width.max(height));
        let side = match self.side {
            Side::Shorter => shorter,
            Side::Longer => longer,
        };
        let scaled = |pixels: u32| {
            let exact = u64::from(pixels) * u64::from(self.pixels);
            u32::try_from((exact + u64::from(side) / 2) / u64::from(side)).unwrap_or(u32::MAX).max(1)
        };
        (side > self.pixels).then(|| (scaled(width), scaled(height)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capped_side_is_exact_and_the_other_in_proportion() {
        let cases = [
            (Side::Shorter, 256, (500, 375), Some((341, 256))),
            (Side::Shorter, 256, (375, 500), Some((256, 341))),
            (Side::Shorter, 256, (256, 4000), None),
            (Side::Longer, 256, (500, 375), Some((256, 192))),
            (Side::Longer, 500, (500, 375), None),
            (Side::Longer, 10, (65_535, 1), Some((10, 1))),
        ];
        for (side, pixels, (width, height), expected) in cases {
            let cap = Cap { side, pixels, quality: 90 };
            assert_eq!(cap.size(width, height), expected, "{cap:?} {width}x{height}");
        }
    }
}
