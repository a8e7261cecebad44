//! The headers of a JPEG that is a part of another: the same tables and components, another size.

use super::cover::Cover;
use super::markers::{APP0, APP14, DHT, DQT, SOI, SOS};
use super::scan::{Scan, ScanComponent};

/// Replaces `out` by everything up to the first bit of the scan. `dc_table` writes the DC table of a component, which
/// it gets with its index. `None` where it cannot, or a segment would be too long.
pub(super) fn write<'a>(
    scan: &Scan<'a>,
    cover: Cover,
    out: &mut Vec<u8>,
    mut dc_table: impl FnMut(usize, &ScanComponent<'a>, &mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    out.clear();
    out.extend_from_slice(&[0xff, SOI]);
    if let Some(jfif) = scan.jfif {
        // Its last two bytes would be the size of a thumbnail, which is left behind.
        segment(out, APP0, &[jfif, &[0, 0]])?;
    }
    if let Some(adobe) = scan.adobe {
        segment(out, APP14, &[adobe])?;
    }
    for tables in scan.quantization.iter() {
        segment(out, DQT, &[tables])?;
    }
    for (index, component) in scan.components.iter().enumerate() {
        dc_table(index, &component, out)?;
        let [counts, symbols] = component.ac.parts();
        segment(out, DHT, &[&[0x10 | component.ac_number], counts, symbols])?;
    }
    let [width, height] =
        [cover.right - cover.left, cover.bottom - cover.top].map(|side| (side as u16).to_be_bytes());
    let [precision, _, _, _, _, rest @ ..] = scan.frame_header else { return None };
    segment(out, scan.frame.process, &[&[*precision], &height, &width, rest])?;
    segment(out, SOS, &[scan.scan_header])
}

/// Writes a marker segment whose body is put together from parts.
pub(super) fn segment(out: &mut Vec<u8>, marker: u8, parts: &[&[u8]]) -> Option<()> {
    let length = 2 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.extend_from_slice(&[0xff, marker]);
    out.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(())
}
