//! Which JPEGs our own entropy decoder takes, and what has to be known of them: sequential Huffman coding, eight bits, one
//! or three components, all in one scan, no restart markers. That is nearly every photo; the others take the plain
//! way.

use super::bits::BitPosition;
use super::huffman::TableSpec;
use super::markers::{APP0, APP14, APP15, COM, DHT, DQT, DRI, EOI, Frame, SEQUENTIAL, SOS, Segments};

/// Blocks of an MCU of an interleaved scan (ITU-T T.81, B.2.3).
pub(super) const MAX_BLOCKS: usize = 10;

/// A component's part in the scan.
#[derive(Clone, Copy)]
pub(super) struct ScanComponent<'a> {
    /// Blocks in an MCU.
    pub(super) blocks: u32,
    /// Number of its DC table.
    pub(super) dc_number: u8,
    /// Number of its AC table.
    pub(super) ac_number: u8,
    pub(super) dc: TableSpec<'a>,
    pub(super) ac: TableSpec<'a>,
}

/// The one scan of such a JPEG, and all that its decoding depends on.
pub(super) struct Scan<'a> {
    pub(super) frame: Frame,
    /// One or three, in the order of the frame.
    pub(super) components: Components<'a>,
    pub(super) mcus_across: u32,
    pub(super) mcus_down: u32,
    /// Offset of the entropy-coded data in the file.
    pub(super) start: usize,
    /// Bodies of the quantisation table segments, in order.
    pub(super) quantization: Few<&'a [u8], 8>,
    /// Bodies of the frame and the scan header.
    pub(super) frame_header: &'a [u8],
    pub(super) scan_header: &'a [u8],
    /// What decides on the colour space: the JFIF header's fixed part, and Adobe's.
    pub(super) jfif: Option<&'a [u8]>,
    pub(super) adobe: Option<&'a [u8]>,
}

pub(super) type Components<'a> = Few<ScanComponent<'a>, 3>;

/// A list of at most `N`.
pub(super) struct Few<T, const N: usize> {
    items: [Option<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    fn new() -> Self {
        Few { items: [None; N], len: 0 }
    }

    fn push(&mut self, item: T) -> Option<()> {
        *self.items.get_mut(self.len)? = Some(item);
        self.len += 1;
        Some(())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> {
        self.items.iter().flatten().copied()
    }
}

impl<'a> Scan<'a> {
    /// `None` for JPEGs of another kind, and for those that break a rule.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Scan<'a>> {
        let mut tables = [[None; 4]; 2];
        let mut quantization = Few::new();
        let mut frame = None;
        let (mut jfif, mut adobe) = (None, None);
        let mut end = 2;
        for segment in Segments::new(bytes) {
            let segment = segment.ok()?;
            let body = segment.body;
            // Bytes between segments are damage that the plain way complains of.
            if segment.offset != std::mem::replace(&mut end, segment.end) {
                return None;
            }
            match segment.marker {
                DQT => quantization.push(body)?,
                DHT => huffman_tables(body, &mut tables)?,
                DRI if body != [0, 0] => return None,
                APP0 if body.starts_with(b"JFIF\0") && body.len() >= 14 => jfif = Some(&body[..12]),
                APP14 if body.starts_with(b"Adobe") && body.len() >= 12 => adobe = Some(&body[..12]),
                SOS => {
                    let (frame, frame_header) = frame?;
                    let components = components(&frame, body, &tables)?;
                    let (mcu_width, mcu_height) = frame.mcu_size();
                    return Some(Scan {
                        frame,
                        components,
                        mcus_across: u32::from(frame.width).div_ceil(mcu_width),
                        mcus_down: u32::from(frame.height).div_ceil(mcu_height),
                        start: segment.end,
                        quantization,
                        frame_header,
                        scan_header: body,
                        jfif,
                        adobe,
                    });
                }
                marker if SEQUENTIAL.contains(&marker) => {
                    let found = Frame::parse(&segment).ok()??;
                    if found.precision != 8 || frame.replace((found, body)).is_some() {
                        return None;
                    }
                }
                APP0..=APP15 | COM | DRI => {}
                _ => return None,
            }
        }
        None
    }
}

/// Takes over the tables of a DHT segment, as `[class][number]`.
fn huffman_tables<'a>(mut body: &'a [u8], tables: &mut [[Option<TableSpec<'a>>; 4]; 2]) -> Option<()> {
    while let [place, rest @ ..] = body {
        let (spec, rest) = TableSpec::split(rest)?;
        *tables.get_mut(usize::from(place >> 4))?.get_mut(usize::from(place & 15))? = Some(spec);
        body = rest;
    }
    Some(())
}

/// The scan's components, if they are all of the frame's, in its order, with all of their coefficients.
fn components<'a>(
    frame: &Frame,
    header: &[u8],
    tables: &[[Option<TableSpec<'a>>; 4]; 2],
) -> Option<Components<'a>> {
    let of_frame = frame.components();
    let [count, rest @ ..] = header else { return None };
    let (list, parameters) = rest.split_at_checked(2 * of_frame.len())?;
    if usize::from(*count) != of_frame.len() || parameters != [0, 63, 0] || !matches!(of_frame.len(), 1 | 3) {
        return None;
    }
    let mut components = Few::new();
    for (of_frame, of_scan) in of_frame.iter().zip(list.chunks_exact(2)) {
        let (dc_number, ac_number) = (of_scan[1] >> 4, of_scan[1] & 15);
        let [dc, ac] = [(0, dc_number), (1, ac_number)]
            .map(|(class, number): (usize, u8)| tables[class].get(usize::from(number)).copied().flatten());
        // A scan of one component is not interleaved: its MCUs are single blocks.
        let blocks = match count {
            1 => 1,
            _ => u32::from(of_frame.horizontal) * u32::from(of_frame.vertical),
        };
        if of_scan[0] != of_frame.id {
            return None;
        }
        components.push(ScanComponent { blocks, dc_number, ac_number, dc: dc?, ac: ac? })?;
    }
    let blocks: u32 = components.iter().map(|component| component.blocks).sum();
    (blocks as usize <= MAX_BLOCKS).then_some(components)
}

/// Whether the image ends where its scan does. `data` begins at the scan, `end` is behind its last bit; the rest of
/// that byte is padding.
pub(super) fn ends_image(data: &[u8], end: BitPosition) -> bool {
    let rest = match data.get(end.0 / 8..) {
        Some([0xff, 0, rest @ ..] | [_, rest @ ..]) if !end.0.is_multiple_of(8) => rest,
        Some(rest) => rest,
        None => return false,
    };
    rest.starts_with(&[0xff, EOI])
}
