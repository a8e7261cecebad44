//! Scaling of 8-bit images by `fast_image_resize`, antialiased, with Pillow's filters.

use fast_image_resize as fir;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{InnerPixel, U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions};

use crate::jpeg::View;

/// How pixels are weighted when an image is scaled; both filters widen with the scale where the image shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle over the two nearest pixels.
    Bilinear,
    /// Cubic over the four nearest pixels, a = -0.5 (Catmull-Rom), as Pillow's.
    Bicubic,
}

impl Filter {
    /// Pixels on each side that count when the size does not change.
    pub(crate) fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn algorithm(self) -> ResizeAlg {
        ResizeAlg::Convolution(match self {
            Filter::Bilinear => FilterType::Bilinear,
            Filter::Bicubic => FilterType::CatmullRom,
        })
    }
}

/// An image `[height, width, channels]` with 1 or 3 channels.
#[derive(Clone, Copy)]
pub(crate) struct Pixels<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) channels: u32,
}

/// Scales images; keeps its working memory.
#[derive(Default)]
pub(crate) struct Resizer(fir::Resizer);

impl Resizer {
    /// Scales what lies under `view` to a square of side `size`, written to `output`. The filter reads pixels
    /// around the view, but none outside `region`.
    pub(crate) fn resize(
        &mut self,
        image: Pixels,
        region: View,
        view: View,
        filter: Filter,
        size: u32,
        output: &mut [u8],
    ) -> Result<(), String> {
        let resize = match image.channels {
            1 => Self::resize_typed::<U8>,
            _ => Self::resize_typed::<U8x3>,
        };
        resize(&mut self.0, image, region, view, filter, size, output).map_err(|problem| {
            format!(
                "{view:?} of an image of {}x{} pixels cannot be scaled: {problem}",
                image.width, image.height
            )
        })
    }

    fn resize_typed<P: PixelTrait + InnerPixel>(
        resizer: &mut fir::Resizer,
        image: Pixels,
        region: View,
        view: View,
        filter: Filter,
        size: u32,
        output: &mut [u8],
    ) -> Result<(), String> {
        let (left, width, view_left, view_width) =
            axis(image.width, (region.left, region.width), (view.left, view.width));
        let (top, height, view_top, view_height) =
            axis(image.height, (region.top, region.height), (view.top, view.height));
        let source = TypedImageRef::<P>::from_buffer(image.width, image.height, image.bytes)
            .map_err(|error| error.to_string())?;
        let source = TypedCroppedImage::from_ref(&source, left, top, width, height)
            .map_err(|error| error.to_string())?;
        let mut target =
            TypedImage::<P>::from_buffer(size, size, output).map_err(|error| error.to_string())?;
        let options = ResizeOptions::new().resize_alg(filter.algorithm()).crop(
            view_left,
            view_top,
            view_width,
            view_height,
        );
        resizer.resize_typed(&source, &mut target, &options).map_err(|error| error.to_string())
    }
}

/// One axis: the whole pixels around the region, first and count, and the view within them, first and extent.
fn axis(pixels: u32, region: (f64, f64), view: (f64, f64)) -> (u32, u32, f64, f64) {
    let begin = (region.0.floor().max(0.0) as u32).min(pixels);
    let end = ((region.0 + region.1).ceil() as u32).clamp(begin, pixels);
    let first = (view.0 - f64::from(begin)).max(0.0);
    // Rounding must not push the view over the edge.
    (begin, end - begin, first, view.1.min(f64::from(end - begin) - first))
}

/// Mirrors the rows of an image left and right, in place.
pub(crate) fn mirror(width: u32, channels: u32, pixels: &mut [u8]) {
    let (width, channels) = (width as usize, channels as usize);
    for row in pixels.chunks_exact_mut(width * channels) {
        match channels {
            3 => row.as_chunks_mut::<3>().0.reverse(),
            1 => row.reverse(),
            _ => {
                for x in 0..width / 2 {
                    let (left, right) = row.split_at_mut((width - 1 - x) * channels);
                    left[x * channels..][..channels].swap_with_slice(&mut right[..channels]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, channels: u32) -> Vec<u8> {
        (0..width * height * channels).map(|i| (i * 37 % 251) as u8).collect()
    }

    #[test]
    fn mirrored_twice_is_unchanged_and_once_is_reversed() {
        for channels in [1, 2, 3] {
            for width in [1, 2, 5, 8] {
                let before = image(width, 3, channels);
                let mut after = before.clone();
                mirror(width, channels, &mut after);
                for (row, mirrored) in
                    before.chunks((width * channels) as usize).zip(after.chunks((width * channels) as usize))
                {
                    let pixels: Vec<_> = row.chunks(channels as usize).rev().flatten().copied().collect();
                    assert_eq!(pixels, mirrored);
                }
                mirror(width, channels, &mut after);
                assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn pixels_outside_the_region_do_not_count() {
        let whole = View { left: 8.0, top: 4.0, width: 16.0, height: 12.0 };
        for channels in [1, 3] {
            let mut bytes = image(40, 30, channels);
            let mut resizer = Resizer::default();
            let mut resized = |bytes: &[u8], region| {
                let mut output = vec![0; (7 * 7 * channels) as usize];
                let pixels = Pixels { bytes, width: 40, height: 30, channels };
                resizer.resize(pixels, region, whole, Filter::Bicubic, 7, &mut output).unwrap();
                output
            };
            let everything = View { left: 0.0, top: 0.0, width: 40.0, height: 30.0 };
            let (cut, around) = (resized(&bytes, whole), resized(&bytes, everything));
            assert_ne!(cut, around);
            for (index, byte) in bytes.iter_mut().enumerate() {
                let (x, y) = (index as u32 / channels % 40, index as u32 / channels / 40);
                if !((8..24).contains(&x) && (4..16).contains(&y)) {
                    *byte = 255 - *byte;
                }
            }
            assert_eq!(resized(&bytes, whole), cut);
            assert_ne!(resized(&bytes, everything), around);
        }
    }

    #[test]
    fn a_buffer_that_is_too_small_is_an_error_in_words() {
        let pixels = Pixels { bytes: &[0; 10], width: 4, height: 4, channels: 3 };
        let view = View { left: 0.0, top: 0.0, width: 4.0, height: 4.0 };
        let error =
            Resizer::default().resize(pixels, view, view, Filter::Bilinear, 2, &mut [0; 12]).unwrap_err();
        assert!(error.contains("image of 4x4 pixels cannot be scaled"), "{error}");
    }
}
