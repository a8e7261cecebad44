//! From the bytes of one JPEG or PNG file to the pixels of the part that is wanted, with as little work outside
//! that part as the format allows. Knows nothing of data sets, of random crops or of resizing.
//!
//! [`ImageDecoder`] takes one of four ways, cheapest first:
//! - of a baseline JPEG with a [seek record](seek) nothing but the region is entropy-decoded, and libjpeg-turbo makes
//!   pixels of the coefficients (`part.rs`);
//! - of one without, everything above and beside the region is passed over;
//! - any other JPEG is decoded by libjpeg-turbo's own cropping, which skips the inverse transform outside the region;
//! - a PNG, and a JPEG with odd sampling factors, is decoded whole.
//!
//! All give the pixels of a full decode to the bit. Pixels are 8-bit RGB and are those that Pillow gives after
//! `convert("RGB")`. EXIF orientation is ignored, as it is by Pillow, torchvision's `ImageFolder` and DALI's default.

mod bits;
mod color;
mod cover;
mod decoder;
mod encoder;
mod error;
mod headers;
mod huffman;
mod library;
mod markers;
mod part;
mod png;
mod reconstruct;
mod scan;
pub mod seek;
mod walk;

pub use decoder::ImageDecoder;
pub use encoder::ImageEncoder;
pub use error::ImageError;

/// A rectangle of pixels of an image as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Region {
    /// All of an image.
    pub fn whole(width: u32, height: u32) -> Self {
        Region { left: 0, top: 0, width, height }
    }

    /// Column behind the last.
    fn right(&self) -> u32 {
        self.left.saturating_add(self.width)
    }

    /// Row behind the last.
    fn bottom(&self) -> u32 {
        self.top.saturating_add(self.height)
    }

    /// Whether it is a part, with at least one pixel, of an image of this size.
    fn lies_within(&self, width: u32, height: u32) -> bool {
        self.width > 0 && self.height > 0 && self.right() <= width && self.bottom() <= height
    }
}

/// What can be known of an image without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// A buffer of decoded pixels, and what part of it was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decoded {
    /// Pixels a row of the buffer.
    pub width: u32,
    /// Rows of the buffer.
    pub height: u32,
    /// Where the wanted region lies in the buffer.
    pub view: View,
    /// How the pixels were come by.
    pub way: Way,
}

/// The ways to the pixels of a region, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Entered in the middle by the seek record.
    Indexed,
    /// Read from the beginning up to the region's last row.
    Sequential,
    /// Decoded by libjpeg-turbo's cropping.
    Cropped,
    /// Decoded whole.
    Whole,
}

/// A rectangle in the pixels of a buffer. Fractions occur where the image was scaled down while it was decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Distance from the buffer's left edge.
    pub left: f64,
    /// Distance from the buffer's top edge.
    pub top: f64,
    /// Width, more than 0.
    pub width: f64,
    /// Height, more than 0.
    pub height: f64,
}
