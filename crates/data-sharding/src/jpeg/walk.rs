//! A walk over the MCUs of a scan that keeps the DC values and passes over everything else.

use super::bits::{BitPosition, BitReader};
use super::huffman::{AcTable, DcTable, read_dc, skip_ac};
use super::scan::Scan;

/// The DC values that the next difference of each component adds to.
pub(super) type Predictors = [i32; 3];

/// Tables of a scan's components, for look-ups of `BITS` bits.
pub(super) struct Tables<const BITS: u32> {
    components: Vec<(u32, DcTable<BITS>, AcTable<BITS>)>,
}

impl<const BITS: u32> Tables<BITS> {
    /// `None` where a table is none for eight-bit samples.
    pub(super) fn new(scan: &Scan) -> Option<Self> {
        let tables =
            scan.components.iter().map(|c| Some((c.blocks, DcTable::new(c.dc)?, AcTable::new(c.ac))));
        Some(Tables { components: tables.collect::<Option<_>>()? })
    }
}

/// A place in a scan.
pub(super) struct Walk<'a, const BITS: u32> {
    tables: &'a Tables<BITS>,
    reader: BitReader<'a>,
    pub(super) predictors: Predictors,
}

/// Where one component's first block of an MCU lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstBlock {
    /// Value of its DC coefficient.
    pub(super) dc: i32,
    /// Behind the code of the DC difference.
    pub(super) behind_dc: BitPosition,
    /// Behind the component's last block of the MCU.
    pub(super) end: BitPosition,
}

impl<'a, const BITS: u32> Walk<'a, BITS> {
    /// `data` is the file from the scan's first byte on.
    pub(super) fn new(
        tables: &'a Tables<BITS>,
        data: &'a [u8],
        from: BitPosition,
        predictors: Predictors,
    ) -> Self {
        Walk { tables, reader: BitReader::new(data, from), predictors }
    }

    pub(super) fn position(&self) -> BitPosition {
        self.reader.position()
    }

    /// Passes over one MCU. `None` where its bits make no sense or the data end.
    #[inline(always)]
    pub(super) fn pass(&mut self) -> Option<()> {
        for ((blocks, dc, ac), predictor) in self.tables.components.iter().zip(&mut self.predictors) {
            for _ in 0..*blocks {
                *predictor += read_dc(&mut self.reader, dc)?;
                skip_ac(&mut self.reader, ac)?;
            }
        }
        (!self.reader.overrun()).then_some(())
    }

    /// Passes over one MCU, whose DC values must be in the range of eight-bit samples.
    #[inline(always)]
    pub(super) fn pass_in_range(&mut self) -> Option<()> {
        for ((blocks, dc, ac), predictor) in self.tables.components.iter().zip(&mut self.predictors) {
            for _ in 0..*blocks {
                *predictor += read_dc(&mut self.reader, dc)?;
                if !(-1024..1024).contains(predictor) {
                    return None;
                }
                skip_ac(&mut self.reader, ac)?;
            }
        }
        (!self.reader.overrun()).then_some(())
    }

    /// Passes over one MCU and tells where the components' first blocks lie.
    pub(super) fn dissect(&mut self, first: &mut [FirstBlock; 3]) -> Option<()> {
        let components = self.tables.components.iter().zip(&mut self.predictors);
        for (((blocks, dc, ac), predictor), first) in components.zip(first) {
            *predictor += read_dc(&mut self.reader, dc)?;
            let (value, behind_dc) = (*predictor, self.reader.position());
            skip_ac(&mut self.reader, ac)?;
            for _ in 1..*blocks {
                *predictor += read_dc(&mut self.reader, dc)?;
                skip_ac(&mut self.reader, ac)?;
            }
            *first = FirstBlock { dc: value, behind_dc, end: self.reader.position() };
        }
        (!self.reader.overrun()).then_some(())
    }
}
