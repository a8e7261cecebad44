//! Why an image cannot be decoded, one sentence each. Which sample it was, the caller adds.

use super::Region;

/// Why an image cannot be decoded or indexed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Bytes that are neither JPEG nor PNG.
    #[error("starts with {start:02x?}; expected a JPEG (ff d8 ff) or a PNG (89 50 4e 47)")]
    Format {
        /// The first bytes, at most eight.
        start: Vec<u8>,
    },

    /// More pixels than can be meant.
    #[error("claims {width}x{height} pixels in {bytes} bytes; expected {expected}")]
    TooLarge {
        /// Pixels a row, as claimed.
        width: u32,
        /// Rows, as claimed.
        height: u32,
        /// Length of the file.
        bytes: usize,
        /// The bound that it breaks.
        expected: &'static str,
    },

    /// A region that is empty or leaves the image.
    #[error(
        "region of {}x{} at ({}, {}) lies not within the image of {width}x{height}; expected at least one pixel, all \
         inside", region.width, region.height, region.left, region.top
    )]
    Region {
        /// As asked for.
        region: Region,
        /// Pixels a row of the image.
        width: u32,
        /// Rows of the image.
        height: u32,
    },

    /// Pixels that make no image which a JPEG can hold.
    #[error(
        "{bytes} bytes of RGB for an image of {width}x{height}; expected 1 to 65500 a side and 3 bytes a pixel"
    )]
    Pixels {
        /// Pixels a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Length of the buffer.
        bytes: usize,
    },

    /// A JPEG whose markers make no sense.
    #[error("JPEG {problem} at byte {offset}")]
    Markers {
        /// What is wrong.
        problem: &'static str,
        /// Where the segment begins.
        offset: usize,
    },

    /// A JPEG that libjpeg-turbo refuses or complains about.
    #[error("JPEG decoder: {message}")]
    Jpeg {
        /// libjpeg-turbo's sentence.
        message: String,
    },

    /// A PNG that does not decode.
    #[error("PNG decoder: {message}")]
    Png {
        /// The decoder's sentence.
        message: String,
    },
}
