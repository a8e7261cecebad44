//! The marker segments of a JPEG (ITU-T T.81, Annex B) up to its first scan: frame, tables, scan header. Reads and
//! checks; decodes nothing.

use super::ImageError;

pub(super) const SOI: u8 = 0xd8;
pub(super) const EOI: u8 = 0xd9;
pub(super) const SOS: u8 = 0xda;
pub(super) const DQT: u8 = 0xdb;
pub(super) const DHT: u8 = 0xc4;
pub(super) const DRI: u8 = 0xdd;
pub(super) const APP0: u8 = 0xe0;
pub(super) const APP14: u8 = 0xee;
pub(super) const APP15: u8 = 0xef;
pub(super) const COM: u8 = 0xfe;
/// Baseline and extended sequential Huffman coding, which differ in precision and number of tables only.
pub(super) const SEQUENTIAL: [u8; 2] = [0xc0, 0xc1];
/// Markers without a length: TEM, restarts.
const BARE: [u8; 9] = [0x01, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7];
/// Start-of-frame markers: 0xc0 to 0xcf but for DHT, JPG and DAC.
const FRAMES: [u8; 13] = [0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf];

/// One marker segment.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    /// Second byte of the marker.
    pub(super) marker: u8,
    /// Offset of the marker's first byte in the file.
    pub(super) offset: usize,
    /// What follows the length.
    pub(super) body: &'a [u8],
    /// Offset of the byte behind the segment.
    pub(super) end: usize,
}

/// The segments from the start of a JPEG up to and with its first scan header.
pub(super) struct Segments<'a> {
    bytes: &'a [u8],
    position: usize,
    done: bool,
}

impl<'a> Segments<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Segments { bytes, position: 2, done: !bytes.starts_with(&[0xff, SOI]) }
    }

    /// Like libjpeg: bytes before a marker that belong to no segment are passed over, and so are fill bytes.
    fn advance(&mut self) -> Result<Segment<'a>, ImageError> {
        let broken = |problem, offset| ImageError::Markers { problem, offset };
        loop {
            let rest = self.bytes.get(self.position..).unwrap_or_default();
            let Some(start) =
                rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))
            else {
                return Err(broken("ends before its first scan", self.bytes.len()));
            };
            let offset = self.position + start;
            let marker = self.bytes[offset + 1];
            if BARE.contains(&marker) {
                self.position = offset + 2;
                continue;
            }
            if marker == EOI || marker == SOI {
                return Err(broken("has an end or a second start before its first scan", offset));
            }
            let length = match self.bytes.get(offset + 2..offset + 4) {
                Some(length) => usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return Err(broken("ends inside a marker segment", offset)),
            };
            let end = offset + 2 + length;
            let body = self.bytes.get(offset + 4..end);
            let body = body.ok_or_else(|| broken("has a marker segment of impossible length", offset))?;
            self.position = end;
            self.done = marker == SOS;
            return Ok(Segment { marker, offset, body, end });
        }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<Segment<'a>, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let segment = self.advance();
        self.done |= segment.is_err();
        Some(segment)
    }
}

/// A colour component of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors, 1 to 4.
    pub(super) horizontal: u8,
    pub(super) vertical: u8,
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Second byte of the start-of-frame marker: the coding process.
    pub(super) process: u8,
    /// Bits a sample.
    pub(super) precision: u8,
    /// Pixels a row, at least 1.
    pub(super) width: u16,
    /// Rows, at least 1.
    pub(super) height: u16,
    components: [Component; 4],
    count: u8,
}

impl Frame {
    /// The frame header of a JPEG.
    pub(super) fn find(bytes: &[u8]) -> Result<Frame, ImageError> {
        for segment in Segments::new(bytes) {
            let segment = segment?;
            if let Some(frame) = Frame::parse(&segment)? {
                return Ok(frame);
            }
        }
        Err(ImageError::Markers { problem: "has no frame header before its first scan", offset: 0 })
    }

    /// `None` for segments that are no frame header.
    pub(super) fn parse(segment: &Segment) -> Result<Option<Frame>, ImageError> {
        if !FRAMES.contains(&segment.marker) {
            return Ok(None);
        }
        let broken = |problem| ImageError::Markers { problem, offset: segment.offset };
        let [precision, h1, h0, w1, w0, count, ref rest @ ..] = *segment.body else {
            return Err(broken("has a frame header that is too short"));
        };
        let (height, width) = (u16::from_be_bytes([h1, h0]), u16::from_be_bytes([w1, w0]));
        if !(1..=4).contains(&count) || rest.len() != 3 * usize::from(count) {
            return Err(broken("has a frame header with an impossible number of components"));
        }
        if width == 0 || height == 0 {
            return Err(broken("has a frame header without width or height"));
        }
        let mut components = [Component::default(); 4];
        for (component, body) in components.iter_mut().zip(rest.chunks_exact(3)) {
            *component = Component { id: body[0], horizontal: body[1] >> 4, vertical: body[1] & 15 };
            if !(1..=4).contains(&component.horizontal) || !(1..=4).contains(&component.vertical) {
                return Err(broken("has a frame header with a sampling factor outside 1 to 4"));
            }
        }
        Ok(Some(Frame { process: segment.marker, precision, width, height, components, count }))
    }

    pub(super) fn components(&self) -> &[Component] {
        &self.components[..usize::from(self.count)]
    }

    /// Pixels of an MCU of an interleaved scan, horizontally and vertically. A scan of one component has MCUs of one
    /// block whatever its sampling factors are.
    pub(super) fn mcu_size(&self) -> (u32, u32) {
        let (horizontal, vertical) = self.largest_factors();
        (8 * u32::from(horizontal), 8 * u32::from(vertical))
    }

    /// Sampling factors that are the whole image's: those of the component with most samples.
    fn largest_factors(&self) -> (u8, u8) {
        let components = self.components();
        if components.len() == 1 {
            return (1, 1);
        }
        let largest = |factor: fn(&Component) -> u8| components.iter().map(factor).max().unwrap_or(1);
        (largest(|c| c.horizontal), largest(|c| c.vertical))
    }

    /// Whether a component has fewer samples than pixels: the decoder's interpolation then looks at neighbours.
    pub(super) fn is_subsampled(&self) -> bool {
        let (horizontal, vertical) = self.largest_factors();
        self.count > 1
            && self.components().iter().any(|c| (c.horizontal, c.vertical) != (horizontal, vertical))
    }
}
