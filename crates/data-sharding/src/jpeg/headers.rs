//! The headers of a JPEG that is a part of another: the same tables and components, another size.

use super::cover::Cover;
use super::markers::{APP0, APP14, DHT, DQT, SOI, SOS};
use super::scan::Scan;

/// Replaces `out` by everything up to the first bit of the scan. `None` where a segment would be too long.
pub(super) fn write(scan: &Scan, cover: Cover, out: &mut Vec<u8>) -> Option<()> {
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
    for component in scan.components.iter() {
        for (place, table) in
            [(component.dc_number, component.dc), (0x10 | component.ac_number, component.ac)]
        {
            let [counts, symbols] = table.parts();
            segment(out, DHT, &[&[place], counts, symbols])?;
        }
    }
    let [width, height] =
        [cover.right - cover.left, cover.bottom - cover.top].map(|side| (side as u16).to_be_bytes());
    let [precision, _, _, _, _, rest @ ..] = scan.frame_header else { return None };
    segment(out, scan.frame.process, &[&[*precision], &height, &width, rest])?;
    segment(out, SOS, &[scan.scan_header])
}

/// Writes a marker segment whose body is put together from parts.
fn segment(out: &mut Vec<u8>, marker: u8, parts: &[&[u8]]) -> Option<()> {
    let length = 2 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.extend_from_slice(&[0xff, marker]);
    out.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(())
}
