//! Format and size of an image file from its first bytes, by content and never by name. Decodes nothing.

use imagesize::ImageType;

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

/// Format, width and height in pixels; none for other files, damaged headers and sides of 0 or above 65,535.
pub(crate) fn of(bytes: &[u8]) -> Option<(ImageFormat, u16, u16)> {
    let format = match imagesize::image_type(bytes).ok()? {
        ImageType::Jpeg => ImageFormat::Jpeg,
        ImageType::Png => ImageFormat::Png,
        _ => return None,
    };
    let size = imagesize::blob_size(bytes).ok()?;
    let side = |pixels: usize| u16::try_from(pixels).ok().filter(|&pixels| pixels > 0);
    Some((format, side(size.width)?, side(size.height)?))
}
