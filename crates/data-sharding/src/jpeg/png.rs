//! PNG files, which occur in data sets under the name of JPEGs. Decoded whole, as the format has no random access.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{ImageError, ImageHeader};

pub(super) const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Bytes that the decoder may hold beside the image itself: a row or two, a window of 32 KiB, ancillary chunks.
const MEMORY: usize = 64 << 20;

/// The size that the header states. Anything but a leading IHDR chunk is an error.
pub(super) fn header(bytes: &[u8]) -> Result<ImageHeader, ImageError> {
    let field = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    match (bytes.get(12..16), field(16), field(20)) {
        (Some(b"IHDR"), Some(width @ 1..), Some(height @ 1..)) => Ok(ImageHeader { width, height }),
        _ => Err(ImageError::Png { message: "no header chunk with a size at its beginning".into() }),
    }
}

/// Decodes a whole PNG into `rgb`, whose first width x height x 3 bytes it fills; `scratch` holds the pixels as they
/// come.
///
/// As Pillow's `convert("RGB")`: palettes are looked up, alpha is dropped, grey is repeated. Of 16 bits a sample the
/// upper eight are kept, except of grey without alpha, where Pillow takes values above 255 for 255.
pub(super) fn decode(
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    rgb: &mut Vec<u8>,
) -> Result<ImageHeader, ImageError> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MEMORY });
    let info = decoder.read_header_info().map_err(problem)?;
    let clips = (info.color_type, info.bit_depth) == (ColorType::Grayscale, BitDepth::Sixteen);
    let strip = if clips { Transformations::IDENTITY } else { Transformations::STRIP_16 };
    decoder.set_transformations(Transformations::EXPAND | strip);
    let mut reader = decoder.read_info().map_err(problem)?;
    let (color, depth) = reader.output_color_type();
    let bytes_a_sample = match depth {
        BitDepth::Eight => 1,
        BitDepth::Sixteen => 2,
        _ => {
            return Err(ImageError::Png {
                message: format!("gives samples of {depth:?} bits; expected eight"),
            });
        }
    };
    let pixel = color.samples() * bytes_a_sample;
    let (width, height) = (reader.info().width, reader.info().height);
    let pixels = width as usize * height as usize;
    super::decoder::grow(scratch, pixels * pixel);
    reader.next_frame(&mut scratch[..pixels * pixel]).map_err(problem)?;
    // A broken tail, such as a wrong checksum of the last chunk, is an error as it is for Pillow.
    reader.finish().map_err(problem)?;
    super::decoder::grow(rgb, pixels * 3);
    let source = scratch[..pixels * pixel].chunks_exact(pixel);
    for (rgb, source) in rgb.chunks_exact_mut(3).zip(source) {
        match color {
            ColorType::Grayscale | ColorType::GrayscaleAlpha if clips => {
                rgb.fill(if source[0] > 0 { 255 } else { source[1] });
            }
            ColorType::Grayscale | ColorType::GrayscaleAlpha => rgb.fill(source[0]),
            _ => rgb.copy_from_slice(&source[..3]),
        }
    }
    Ok(ImageHeader { width, height })
}

fn problem(error: DecodingError) -> ImageError {
    ImageError::Png { message: error.to_string() }
}
