//! Decodes a part of a baseline JPEG. Our own entropy decoder reads the MCUs of the part and passes over those before
//! it: all of them, or with a [seek record](super::seek) the few since the last entry in each row. libjpeg-turbo makes
//! pixels of the coefficients. Which JPEGs this is for stands in `scan.rs`.

use std::ops::Range;

use super::cover::Cover;
use super::markers::{DHT, EOI};
use super::reconstruct::{Block, CoefficientSource, Reconstructor};
use super::scan::Scan;
use super::seek::Entries;
use super::walk::{Tables, Walk};
use super::{ImageError, Region, Way, cut, headers};

/// Decodes parts of one image after another, keeping its memory.
pub(super) struct PartDecoder {
    entries: Entries,
    tables: Tables,
    /// The headers of a part, or a whole cut.
    jpeg: Vec<u8>,
    reconstructor: Reconstructor,
}

impl PartDecoder {
    pub(super) fn new() -> Result<Self, ImageError> {
        Ok(PartDecoder {
            entries: Entries::default(),
            tables: Tables::new(),
            jpeg: Vec::new(),
            reconstructor: Reconstructor::new()?,
        })
    }

    /// Decodes the least part of an image that `region` can be taken from, scaled down by `denominator`, to `rgb`,
    /// and tells which part that is. A record that is damaged or another image's is not used.
    ///
    /// `None` for images that this is not for, and for those whose data do not parse; `rgb` then holds anything.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        record: Option<&[u8]>,
        region: Region,
        denominator: u32,
        rgb: &mut Vec<u8>,
    ) -> Option<(Cover, Way)> {
        let scan = Scan::of(bytes)?;
        let cover = Cover::new(&scan.frame, region, denominator, true);
        let rows = cover.rows(&scan.frame);
        self.tables.load(&scan)?;
        let indexed = record.is_some_and(|record| self.entries.read(record, bytes, &scan, rows.end - 1));
        headers::write(&scan, cover, &mut self.jpeg, |_, component, out| {
            let [counts, symbols] = component.dc.parts();
            headers::segment(out, DHT, &[&[component.dc_number], counts, symbols])
        })?;
        self.jpeg.extend_from_slice(&[0xff, EOI]);

        let scaled = cover.scaled();
        let len = 3 * scaled.width as usize * scaled.height as usize;
        super::decoder::grow(rgb, len);
        let columns = cover.columns(&scan.frame);
        let mut part = Part {
            scan: &scan,
            entries: indexed.then_some(&self.entries),
            walk: Walk::new(&scan, &self.tables, &bytes[scan.start..]),
            gap: rows.start * scan.mcus_across + columns.start,
            row: rows.start,
            column: columns.start,
            columns,
            failed: false,
        };
        let size = (scaled.width, scaled.height);
        let done = self.reconstructor.reconstruct(&self.jpeg, denominator, size, &mut part, &mut rgb[..len]);
        (done && !part.failed).then_some((cover, if indexed { Way::Indexed } else { Way::Sequential }))
    }

    /// Cuts the same part out as a JPEG of its own. `None` also where the record cannot be used.
    pub(super) fn cut(&mut self, bytes: &[u8], record: &[u8], region: Region) -> Option<(&[u8], Cover)> {
        let scan = Scan::of(bytes)?;
        let cover = Cover::new(&scan.frame, region, 1, true);
        self.tables.load(&scan)?;
        if !self.entries.read(record, bytes, &scan, cover.rows(&scan.frame).end - 1) {
            return None;
        }
        cut::cut(bytes, &scan, &self.tables, &self.entries, cover, &mut self.jpeg)?;
        Some((&self.jpeg, cover))
    }
}

/// The coefficients of a part, MCU after MCU.
struct Part<'a> {
    scan: &'a Scan<'a>,
    /// Where rows can be entered; none to read from the beginning.
    entries: Option<&'a Entries>,
    walk: Walk<'a>,
    /// MCUs to pass over before the part's next row, where there are no entries.
    gap: u32,
    columns: Range<u32>,
    /// The next MCU.
    row: u32,
    column: u32,
    failed: bool,
}

impl Part<'_> {
    fn enter_row(&mut self) -> Option<()> {
        let passed = match self.entries {
            Some(entries) => {
                let (entry, column) = entries.at(self.row, self.column, self.scan);
                self.walk.go(entry.position, entry.predictors);
                self.column - column
            }
            None => std::mem::replace(
                &mut self.gap,
                self.scan.mcus_across - self.columns.end + self.columns.start,
            ),
        };
        (0..passed).try_for_each(|_| self.walk.pass())
    }

    #[inline(always)]
    fn next(&mut self, blocks: &mut [Block]) -> Option<()> {
        if self.column == self.columns.start {
            self.enter_row()?;
        }
        self.walk.read(blocks)?;
        self.column += 1;
        if self.column == self.columns.end {
            self.column = self.columns.start;
            self.row += 1;
        }
        Some(())
    }
}

impl CoefficientSource for Part<'_> {
    fn fill(&mut self, blocks: &mut [Block]) {
        if !self.failed && self.next(blocks).is_none() {
            self.failed = true;
        }
    }
}
