//! Decodes a part of a baseline JPEG. Our own entropy decoder reads the MCUs of the part and passes over those before
//! it: all of them, or with a [seek record](super::seek) the few since the last entry in each row. libjpeg-turbo makes
//! pixels of the coefficients. Which JPEGs this is for stands in `scan.rs`.

use std::ops::Range;

use super::cover::Cover;
use super::markers::EOI;
use super::reconstruct::{Block, CoefficientSource, Reconstructor};
use super::scan::{MAX_BLOCKS, Scan};
use super::seek::Entries;
use super::walk::{Tables, Walk};
use super::{ImageError, Region, Way, headers};

/// Decodes parts of one image after another, keeping its memory.
pub(super) struct PartDecoder {
    entries: Entries,
    tables: Tables,
    /// The headers of a part.
    jpeg: Vec<u8>,
    reconstructor: Reconstructor,
}

/// A part of an image, and how its coefficients are come by.
pub(super) struct Opened<'a> {
    scan: Scan<'a>,
    cover: Cover,
    way: Way,
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
        let opened = self.open(bytes, record, region, denominator)?;
        let scaled = opened.cover.scaled();
        let len = 3 * scaled.width as usize * scaled.height as usize;
        super::decoder::grow(rgb, len);
        let mut part = Part::new(&opened, &self.tables, &self.entries, bytes);
        let size = (scaled.width, scaled.height);
        let done = self.reconstructor.reconstruct(&self.jpeg, denominator, size, &mut part, &mut rgb[..len]);
        (done && !part.failed).then_some((opened.cover, opened.way))
    }

    /// Calls `mcu` with the row, the column and the coefficients of each MCU that [`decode`](Self::decode) reads.
    pub(super) fn coefficients(
        &mut self,
        bytes: &[u8],
        record: Option<&[u8]>,
        region: Region,
        denominator: u32,
        mut mcu: impl FnMut(u32, u32, &[Block]),
    ) -> Option<Way> {
        let opened = self.open(bytes, record, region, denominator)?;
        let count: usize = opened.scan.components.iter().map(|component| component.blocks as usize).sum();
        let mut blocks = [[0; 64]; MAX_BLOCKS];
        let blocks = blocks.get_mut(..count)?;
        let mut part = Part::new(&opened, &self.tables, &self.entries, bytes);
        for row in opened.cover.rows(&opened.scan.frame) {
            for column in opened.cover.columns(&opened.scan.frame) {
                blocks.fill([0; 64]);
                part.next(blocks)?;
                mcu(row, column, blocks);
            }
        }
        Some(opened.way)
    }

    /// Reads what comes before the entropy-coded data: headers, tables and the record.
    pub(super) fn open<'a>(
        &mut self,
        bytes: &'a [u8],
        record: Option<&[u8]>,
        region: Region,
        denominator: u32,
    ) -> Option<Opened<'a>> {
        let scan = Scan::of(bytes)?;
        let cover = Cover::new(&scan.frame, region, denominator, true);
        self.tables.load(&scan)?;
        let last_row = cover.rows(&scan.frame).end - 1;
        let indexed = record.is_some_and(|record| self.entries.read(record, bytes, &scan, last_row));
        headers::write(&scan, cover, &mut self.jpeg)?;
        self.jpeg.extend_from_slice(&[0xff, EOI]);
        Some(Opened { scan, cover, way: if indexed { Way::Indexed } else { Way::Sequential } })
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

impl<'a> Part<'a> {
    fn new(opened: &'a Opened<'a>, tables: &'a Tables, entries: &'a Entries, bytes: &'a [u8]) -> Self {
        let Opened { scan, cover, way } = opened;
        let (columns, row) = (cover.columns(&scan.frame), cover.rows(&scan.frame).start);
        Part {
            scan,
            entries: (*way == Way::Indexed).then_some(entries),
            walk: Walk::new(scan, tables, &bytes[scan.start..]),
            gap: row * scan.mcus_across + columns.start,
            row,
            column: columns.start,
            columns,
            failed: false,
        }
    }

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
