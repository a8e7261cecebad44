//! Format and size of an image file from its header, by content and never by name. Decodes no pixel.

use crate::error::DataError;
use crate::jpeg::ImageDecoder;

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

/// Reads headers as the decoder does.
pub(crate) struct HeaderReader(ImageDecoder);

impl HeaderReader {
    pub(crate) fn new() -> Result<Self, DataError> {
        decoder().map(HeaderReader)
    }

    /// Format, width and height in pixels; none for other files, headers that make no sense, and sides above 65,535.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Option<(ImageFormat, u16, u16)> {
        let header = self.0.header(bytes).ok()?;
        let format = if bytes.starts_with(&[0xff, 0xd8]) { ImageFormat::Jpeg } else { ImageFormat::Png };
        Some((format, u16::try_from(header.width).ok()?, u16::try_from(header.height).ok()?))
    }
}

/// A decoder, whose only failure is one of the system's memory.
pub(crate) fn decoder() -> Result<ImageDecoder, DataError> {
    ImageDecoder::new().map_err(|error| DataError::Decoder { reason: error.to_string() })
}
