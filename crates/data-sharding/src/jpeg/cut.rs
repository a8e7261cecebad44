//! Cuts a part out of a JPEG in its compressed form: a smaller valid JPEG with the same tables, whose decoded pixels
//! are the original's. Only a few MCUs at both ends of each row are looked at; the rest of the row is copied bit by
//! bit. What may be cut stands in `scan.rs`, where rows begin in the [seek record](super::seek).

use super::bits::{BitPosition, BitWriter};
use super::cover::Cover;
use super::dc_codes::DcCodes;
use super::headers;
use super::markers::{DHT, EOI};
use super::scan::Scan;
use super::seek::Entries;
use super::walk::{FirstBlock, Predictors, Tables, Walk};

/// Replaces `out` by a JPEG of the part of `bytes` that `cover` tells. `None` where the data do not parse; `out` then
/// holds anything.
pub(super) fn cut(
    bytes: &[u8],
    scan: &Scan,
    tables: &Tables,
    entries: &Entries,
    cover: Cover,
    out: &mut Vec<u8>,
) -> Option<()> {
    let mut codes = [const { None }; 3];
    for (codes, component) in codes.iter_mut().zip(scan.components.iter()) {
        *codes = Some(DcCodes::new(component.dc, component.dc_number)?);
    }
    headers::write(scan, cover, out, |index, _, out| {
        headers::segment(out, DHT, &[codes[index].as_ref()?.body()])
    })?;
    let data = &bytes[scan.start..];
    let mut cut = Cut {
        scan,
        data,
        entries,
        codes: &codes,
        walk: Walk::new(scan, tables, data),
        writer: BitWriter::new(out),
        predictors: [0; 3],
    };
    let (columns, rows) = (cover.columns(&scan.frame), cover.rows(&scan.frame));
    for row in rows {
        cut.row(row, columns.start, columns.end)?;
    }
    cut.writer.finish();
    out.extend_from_slice(&[0xff, EOI]);
    Some(())
}

/// A cut whose scan is being written.
struct Cut<'a> {
    scan: &'a Scan<'a>,
    data: &'a [u8],
    entries: &'a Entries,
    codes: &'a [Option<DcCodes>; 3],
    walk: Walk<'a>,
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
        let walk = &mut self.walk;
        let (entry, start) = self.entries.at(row, first, self.scan);
        walk.go(entry.position, entry.predictors);
        (start..first).try_for_each(|_| walk.pass())?;
        let mut blocks = [FirstBlock { dc: 0, behind_dc: BitPosition(0), end: BitPosition(0) }; 3];
        walk.dissect(&mut blocks)?;

        let (entry, start) = self.entries.at(row, end, self.scan);
        if start > first {
            walk.go(entry.position, entry.predictors);
        }
        (start.max(first + 1)..end).try_for_each(|_| walk.pass())?;
        let stop = (walk.position(), walk.predictors);

        let components = self.scan.components.len();
        for (index, block) in blocks.iter().take(components).enumerate() {
            self.codes[index].as_ref()?.write(&mut self.writer, block.dc - self.predictors[index])?;
            let end = if index + 1 == components { stop.0 } else { block.end };
            self.writer.copy(self.data, block.behind_dc, end).then_some(())?;
        }
        self.predictors = stop.1;
        Some(())
    }
}
