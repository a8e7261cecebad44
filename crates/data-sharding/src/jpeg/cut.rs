//! Cuts a region out of a JPEG in its compressed form: a smaller valid JPEG with the same tables, whose decoded
//! pixels are the original's. Only a few MCUs at both ends of each row are looked at; the rest of the row is copied
//! bit by bit. What may be cut stands in `scan.rs`, where rows begin in the [seek record](super::seek).

use super::Region;
use super::bits::{BitPosition, BitWriter};
use super::cover::Cover;
use super::huffman::FullDcTable;
use super::markers::{APP0, APP14, DHT, DQT, EOI, SOI, SOS};
use super::scan::Scan;
use super::seek::Entries;
use super::walk::{FirstBlock, Predictors, Tables, Walk};

/// Bits of the look-up tables: those for more take longer to fill than the few MCUs of a cut win back.
const LOOKUP_BITS: u32 = 10;

/// Cuts one image after another, keeping its memory.
#[derive(Default)]
pub(super) struct Cutter {
    entries: Entries,
}

impl Cutter {
    /// Replaces `out` by a JPEG of the least part of `bytes` that `region` can be decoded from, scaled down by
    /// `denominator`, and tells which part that is.
    ///
    /// `None` where the record is damaged or another image's, or the image is none that can be cut; `out` then
    /// holds anything.
    pub(super) fn cut(
        &mut self,
        bytes: &[u8],
        record: &[u8],
        region: Region,
        denominator: u32,
        out: &mut Vec<u8>,
    ) -> Option<Cover> {
        let scan = Scan::of(bytes)?;
        let cover = Cover::new(&scan.frame, region, denominator, true);
        let (mcu_width, mcu_height) = scan.frame.mcu_size();
        let columns = (cover.left / mcu_width, cover.right.div_ceil(mcu_width));
        let rows = (cover.top / mcu_height, cover.bottom.div_ceil(mcu_height));
        if !self.entries.read(record, bytes, &scan, rows.1 - 1) {
            return None;
        }
        let tables = Tables::new(&scan)?;
        let mut codes = [const { None }; 3];
        for (codes, component) in codes.iter_mut().zip(scan.components.iter()) {
            *codes = Some(FullDcTable::new(component.dc, component.dc_number)?);
        }
        out.clear();
        write_headers(&scan, &codes, cover, out)?;
        let mut cut = Cut {
            scan: &scan,
            tables: &tables,
            data: &bytes[scan.start..],
            entries: &self.entries,
            codes: &codes,
            writer: BitWriter::new(out),
            predictors: [0; 3],
        };
        for row in rows.0..rows.1 {
            cut.row(row, columns.0, columns.1)?;
        }
        cut.writer.finish();
        out.extend_from_slice(&[0xff, EOI]);
        Some(cover)
    }
}

/// A cut whose scan is being written.
struct Cut<'a> {
    scan: &'a Scan<'a>,
    tables: &'a Tables<LOOKUP_BITS>,
    data: &'a [u8],
    entries: &'a Entries,
    codes: &'a [Option<FullDcTable>; 3],
    writer: BitWriter<'a>,
    /// DC values that the cut's next differences add to.
    predictors: Predictors,
}

impl Cut<'_> {
    /// Writes the MCUs of a row from column `first` up to `end`.
    ///
    /// DC values are differences to the block before, which for the first block of each component is another one in
    /// the cut: these are coded anew. All other bits stay what they are.
    fn row(&mut self, row: u32, first: u32, end: u32) -> Option<()> {
        let mut walk = self.walk_to(row, first)?;
        let mut blocks = [FirstBlock { dc: 0, behind_dc: BitPosition(0), end: BitPosition(0) }; 3];
        walk.dissect(&mut blocks)?;

        let (stop, last) = self.entries.at(row, end, self.scan);
        let stop = if last > first {
            let mut walk = Walk::new(self.tables, self.data, stop.position, stop.predictors);
            (last..end).try_for_each(|_| walk.pass())?;
            (walk.position(), walk.predictors)
        } else {
            (first + 1..end).try_for_each(|_| walk.pass())?;
            (walk.position(), walk.predictors)
        };

        let components = self.scan.components.len();
        for (index, block) in blocks.iter().take(components).enumerate() {
            self.codes[index].as_ref()?.write(&mut self.writer, block.dc - self.predictors[index])?;
            let end = if index + 1 == components { stop.0 } else { block.end };
            self.writer.copy(self.data, block.behind_dc, end).then_some(())?;
        }
        self.predictors = stop.1;
        Some(())
    }

    /// A walk that stands before an MCU.
    fn walk_to(&self, row: u32, column: u32) -> Option<Walk<'_, LOOKUP_BITS>> {
        let (entry, start) = self.entries.at(row, column, self.scan);
        let mut walk = Walk::new(self.tables, self.data, entry.position, entry.predictors);
        (start..column).try_for_each(|_| walk.pass())?;
        Some(walk)
    }
}

/// Writes everything up to the first bit of the scan.
fn write_headers(
    scan: &Scan,
    codes: &[Option<FullDcTable>; 3],
    cover: Cover,
    out: &mut Vec<u8>,
) -> Option<()> {
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
    for (codes, component) in codes.iter().zip(scan.components.iter()) {
        segment(out, DHT, &[codes.as_ref()?.body()])?;
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
fn segment(out: &mut Vec<u8>, marker: u8, parts: &[&[u8]]) -> Option<()> {
    let length = 2 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.extend_from_slice(&[0xff, marker]);
    out.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(())
}
