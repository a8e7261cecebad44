//! From pixels back to a JPEG, for shards whose images are made smaller. One fixed kind of file, so that one quality
//! gives the same bytes everywhere.

use super::ImageError;
use super::library::Compressor;

/// The longest side that the format can state.
const MAX_SIDE: u32 = 65_500;

/// Writes JPEGs one after another: baseline, 4:2:0, Huffman tables made for each image.
pub struct ImageEncoder(Compressor);

impl ImageEncoder {
    /// `quality` is libjpeg's scale, 1 to 100; values outside are taken for the nearest.
    ///
    /// # Errors
    /// Where libjpeg-turbo gets no memory.
    pub fn new(quality: u8) -> Result<Self, ImageError> {
        Compressor::new(quality.clamp(1, 100)).map(ImageEncoder)
    }

    /// Replaces `out` by the JPEG of an image, RGB `[height, width, 3]`.
    ///
    /// # Errors
    /// Sides of 0 or more than 65,500 pixels, and buffers of another length than the sides ask for.
    pub fn encode(
        &mut self,
        rgb: &[u8],
        width: u32,
        height: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let sides = 1..=MAX_SIDE;
        if !sides.contains(&width)
            || !sides.contains(&height)
            || rgb.len() as u64 != 3 * u64::from(width) * u64::from(height)
        {
            return Err(ImageError::Pixels { width, height, bytes: rgb.len() });
        }
        self.0.encode(rgb, width, height, out)
    }
}
