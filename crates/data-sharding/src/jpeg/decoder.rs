//! The decoder of one thread: tells formats apart, refuses what cannot be meant, and picks the cheapest way to the
//! region's pixels. How each way works stands in the other files.

use super::cover::{self, Cover};
use super::library::{Decompressor, Opened, PixelFormat};
use super::markers::Frame;
use super::part::PartDecoder;
use super::{Decoded, ImageError, ImageHeader, Region, View, Way, color, png};

/// Pixels above which an image is taken for a decompression bomb; Pillow's limit.
const MAX_PIXELS: u64 = 178_956_970;
/// Pixels that a byte of a JPEG can stand for at most: Huffman codes take a bit for each block of 64. Arithmetic coding
/// could do with less, and photos take a hundred times as much.
const MAX_PIXELS_A_BYTE: u64 = 512;
/// What libjpeg-turbo may allocate for one image, in MiB: all coefficients of the largest progressive image allowed.
const MAX_MEMORY: u16 = 2048;

/// Decodes JPEG and PNG images one after another, keeping its memory. One a thread.
pub struct ImageDecoder {
    library: Decompressor,
    part: PartDecoder,
    /// Pixels on their way to RGB.
    scratch: Vec<u8>,
}

impl ImageDecoder {
    /// A decoder without memory of any image.
    ///
    /// # Errors
    /// Where libjpeg-turbo gets no memory.
    pub fn new() -> Result<Self, ImageError> {
        Ok(ImageDecoder {
            library: Decompressor::new(MAX_MEMORY)?,
            part: PartDecoder::new()?,
            scratch: Vec::new(),
        })
    }

    /// The size of an image, JPEG or PNG as its first bytes say.
    ///
    /// # Errors
    /// Other formats, headers that make no sense, sizes beyond reason.
    pub fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        match Format::of(bytes)? {
            Format::Png => {
                let header = png::header(bytes)?;
                refuse_bombs(header, bytes, u64::MAX)?;
                Ok(header)
            }
            Format::Jpeg => Ok(jpeg_frame(bytes)?.1),
        }
    }

    /// Decodes at least `region` of an image into `rgb` as `[height, width, 3]`, where height and width are those of
    /// the result. `rgb` grows as needed and never shrinks: what lies behind the pixels means nothing.
    ///
    /// With a `target` size (width, height), a JPEG may be scaled down by 2, 4 or 8 while it is decoded, where the
    /// region still has at least the target's pixels in both directions. Without, the pixels are a full decode's.
    ///
    /// `seek` is the image's seek record, if it has one. A record that is damaged or belongs to another image
    /// costs time, and changes no pixel.
    ///
    /// Rows below the region are not looked at: damage there goes unnoticed.
    ///
    /// # Errors
    /// As for [`header`](Self::header); a region that is empty or leaves the image; truncated and corrupt files,
    /// also those where libjpeg would fill up with grey or noise and merely warn (Pillow refuses truncated ones
    /// too). `rgb` then holds anything.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        region: Region,
        target: Option<(u32, u32)>,
        seek: Option<&[u8]>,
        rgb: &mut Vec<u8>,
    ) -> Result<Decoded, ImageError> {
        match Format::of(bytes)? {
            Format::Png => self.decode_png(bytes, region, rgb),
            Format::Jpeg => self.decode_jpeg(bytes, region, target, seek, rgb),
        }
    }

    /// Entropy-decodes what [`decode`](Self::decode) would make pixels of, and does no more: calls `mcu` with the row and
    /// the column of each MCU, counted from the image's corner, and the quantised coefficients of its blocks, each
    /// `[8, 8]`, in the order of the scan. `None`, and no calls, where libjpeg-turbo decodes such an image by itself.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode), but for what only comes to light behind the entropy decoding.
    pub fn coefficients(
        &mut self,
        bytes: &[u8],
        region: Region,
        target: Option<(u32, u32)>,
        seek: Option<&[u8]>,
        mcu: impl FnMut(u32, u32, &[[i16; 64]]),
    ) -> Result<Option<Way>, ImageError> {
        let denominator = match Format::of(bytes)? {
            Format::Png => return Ok(None),
            Format::Jpeg => wanted(bytes, region, target)?.2,
        };
        Ok(self.part.coefficients(bytes, seek, region, denominator, mcu))
    }

    /// Does what comes before the entropy decoding, for measuring it. Tells whether there is any of our own.
    pub(crate) fn open(
        &mut self,
        bytes: &[u8],
        region: Region,
        target: Option<(u32, u32)>,
        seek: Option<&[u8]>,
    ) -> Result<bool, ImageError> {
        let denominator = match Format::of(bytes)? {
            Format::Png => return Ok(false),
            Format::Jpeg => wanted(bytes, region, target)?.2,
        };
        Ok(self.part.open(bytes, seek, region, denominator).is_some())
    }

    fn decode_png(&mut self, bytes: &[u8], region: Region, rgb: &mut Vec<u8>) -> Result<Decoded, ImageError> {
        let header = png::header(bytes)?;
        refuse_bombs(header, bytes, u64::MAX)?;
        check(region, header)?;
        let ImageHeader { width, height } = png::decode(bytes, &mut self.scratch, rgb)?;
        let [left, top, view_width, view_height] =
            [region.left, region.top, region.width, region.height].map(f64::from);
        Ok(Decoded {
            width,
            height,
            view: View { left, top, width: view_width, height: view_height },
            way: Way::Whole,
        })
    }

    fn decode_jpeg(
        &mut self,
        bytes: &[u8],
        region: Region,
        target: Option<(u32, u32)>,
        seek: Option<&[u8]>,
        rgb: &mut Vec<u8>,
    ) -> Result<Decoded, ImageError> {
        let (frame, header, denominator) = wanted(bytes, region, target)?;
        if let Some((cover, way)) = self.part.decode(bytes, seek, region, denominator, rgb) {
            let scaled = cover.scaled();
            return Ok(Decoded { width: scaled.width, height: scaled.height, view: cover.view(region), way });
        }
        let opened = self.library.open(bytes)?;
        if (opened.width, opened.height) != (header.width, header.height) {
            return Err(ImageError::Markers { problem: "has more than one frame header", offset: 0 });
        }
        let (cover, way) = if opened.can_crop && opened.mcu_width == frame.mcu_size().0 {
            (Cover::new(&frame, region, denominator, false), Way::Cropped)
        } else {
            (
                Cover { left: 0, top: 0, right: header.width, bottom: header.height, denominator: 1 },
                Way::Whole,
            )
        };
        let scaled = cover.scaled();
        pixels(opened, cover.denominator, scaled, &mut self.scratch, rgb)?;
        Ok(Decoded { width: scaled.width, height: scaled.height, view: cover.view(region), way })
    }
}

/// Decodes a part of a JPEG, in its scaled pixels, to RGB.
fn pixels(
    opened: Opened,
    denominator: u32,
    part: Region,
    scratch: &mut Vec<u8>,
    rgb: &mut Vec<u8>,
) -> Result<(), ImageError> {
    let pixels = part.width as usize * part.height as usize;
    grow(rgb, pixels * 3);
    match opened.format {
        PixelFormat::Rgb => opened.decode(denominator, part, &mut rgb[..pixels * 3]),
        PixelFormat::Cmyk => {
            grow(scratch, pixels * 4);
            opened.decode(denominator, part, &mut scratch[..pixels * 4])?;
            color::cmyk_to_rgb(&scratch[..pixels * 4], &mut rgb[..pixels * 3]);
            Ok(())
        }
    }
}

/// Whether an image is of a format that seek records are made for. Errors as [`ImageDecoder::header`].
pub(super) fn may_have_record(bytes: &[u8]) -> Result<bool, ImageError> {
    match Format::of(bytes)? {
        Format::Png => Ok(false),
        Format::Jpeg => jpeg_frame(bytes).map(|_| true),
    }
}

/// What a file is, by content: names lie.
enum Format {
    Jpeg,
    Png,
}

impl Format {
    fn of(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            Ok(Format::Jpeg)
        } else if bytes.starts_with(&png::SIGNATURE) {
            Ok(Format::Png)
        } else {
            Err(ImageError::Format { start: bytes[..bytes.len().min(8)].to_vec() })
        }
    }
}

fn jpeg_frame(bytes: &[u8]) -> Result<(Frame, ImageHeader), ImageError> {
    let frame = Frame::find(bytes)?;
    let header = ImageHeader { width: frame.width.into(), height: frame.height.into() };
    refuse_bombs(header, bytes, MAX_PIXELS_A_BYTE)?;
    Ok((frame, header))
}

/// Frame and size of a JPEG that `region` lies within, and by how much it may be scaled down meanwhile.
fn wanted(
    bytes: &[u8],
    region: Region,
    target: Option<(u32, u32)>,
) -> Result<(Frame, ImageHeader, u32), ImageError> {
    let (frame, header) = jpeg_frame(bytes)?;
    check(region, header)?;
    Ok((frame, header, target.map_or(1, |target| cover::denominator(region, target))))
}

fn refuse_bombs(header: ImageHeader, bytes: &[u8], pixels_a_byte: u64) -> Result<(), ImageError> {
    let ImageHeader { width, height } = header;
    let pixels = u64::from(width) * u64::from(height);
    let expected = if pixels > MAX_PIXELS {
        "at most 178956970 pixels"
    } else if pixels / pixels_a_byte > bytes.len() as u64 {
        "at most 512 pixels a byte"
    } else {
        return Ok(());
    };
    Err(ImageError::TooLarge { width, height, bytes: bytes.len(), expected })
}

fn check(region: Region, header: ImageHeader) -> Result<(), ImageError> {
    let ImageHeader { width, height } = header;
    if region.lies_within(width, height) { Ok(()) } else { Err(ImageError::Region { region, width, height }) }
}

/// Makes room for `len` bytes, without touching those that are there.
pub(super) fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}
