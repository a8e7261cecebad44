//! Format and size of an image file from its header, by content and never by name, and whether it can be decoded. Gives
//! no pixels.

use crate::error::DataError;
use crate::jpeg::{ImageDecoder, ImageError, Region};

/// A format that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageFormat {
    Jpeg,
    Png,
}

impl ImageFormat {
    pub(crate) fn extension(self) -> &'static str {
        match self {
            ImageFormat::Jpeg => "jpg",
            ImageFormat::Png => "png",
        }
    }
}

/// Looks at image files as the decoder does.
pub(crate) struct ImageProbe {
    decoder: ImageDecoder,
    pixels: Vec<u8>,
}

impl ImageProbe {
    pub(crate) fn new() -> Result<Self, DataError> {
        Ok(ImageProbe { decoder: decoder()?, pixels: Vec::new() })
    }

    /// Format, width and height in pixels, from the header. Errors, the rest of a sentence, for other files, headers
    /// that make no sense, sizes beyond reason and sides above 65,535.
    pub(crate) fn header(&mut self, bytes: &[u8]) -> Result<(ImageFormat, u16, u16), String> {
        let header = self.decoder.header(bytes).map_err(|error| match error {
            ImageError::Format { .. } => "is no image".to_owned(),
            other => cannot_be_decoded(other),
        })?;
        let format = if bytes.starts_with(&[0xff, 0xd8]) { ImageFormat::Jpeg } else { ImageFormat::Png };
        match (u16::try_from(header.width), u16::try_from(header.height)) {
            (Ok(width), Ok(height)) => Ok((format, width, height)),
            _ => Err(format!(
                "has {}x{} pixels, and no side may be longer than {}",
                header.width,
                header.height,
                u16::MAX
            )),
        }
    }

    /// Decodes an image of this size to its last row, a JPEG at an eighth of its size: all entropy-coded data are read.
    /// Errors as of [`header`](Self::header).
    pub(crate) fn decode(&mut self, bytes: &[u8], width: u16, height: u16) -> Result<(), String> {
        let whole = Region::whole(width.into(), height.into());
        let decoded = self.decoder.decode(bytes, whole, Some((1, 1)), None, &mut self.pixels);
        decoded.map(drop).map_err(cannot_be_decoded)
    }
}

fn cannot_be_decoded(error: ImageError) -> String {
    format!("cannot be decoded: {error}")
}

/// A decoder, whose only failure is one of the system's memory.
pub(crate) fn decoder() -> Result<ImageDecoder, DataError> {
    ImageDecoder::new().map_err(|error| DataError::Decoder { reason: error.to_string() })
}
