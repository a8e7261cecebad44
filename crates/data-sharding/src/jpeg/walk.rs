//! A walk over the MCUs of a scan: decodes them, or keeps the DC values and passes over everything else.

use std::ops::Range;

use super::bits::{BitPosition, BitReader};
use super::huffman::{AcTable, DcTable, ZIGZAG};
use super::reconstruct::Block;
use super::scan::Scan;

/// The DC values that the next difference of each component adds to.
pub(super) type Predictors = [i32; 3];

/// DC values of eight-bit samples, undivided. Differences between them fit the categories that there are.
pub(super) const DC_VALUES: Range<i32> = -1024..1024;

/// The tables of a scan. Made once: loading those of another image takes no memory, and no time where they are the
/// same.
pub(super) struct Tables {
    dc: [DcTable; 4],
    ac: [AcTable; 4],
}

impl Tables {
    pub(super) fn new() -> Self {
        Tables { dc: std::array::from_fn(|_| DcTable::new()), ac: std::array::from_fn(|_| AcTable::new()) }
    }

    /// Takes the tables of a scan. `None` where one is none for eight-bit samples.
    pub(super) fn load(&mut self, scan: &Scan) -> Option<()> {
        for component in scan.components.iter() {
            self.dc.get_mut(usize::from(component.dc_number))?.load(component.dc)?;
            self.ac.get_mut(usize::from(component.ac_number))?.load(component.ac);
        }
        Some(())
    }
}

/// A component's blocks in an MCU, and its tables.
#[derive(Clone, Copy)]
struct ComponentTables<'a> {
    blocks: usize,
    dc: &'a DcTable,
    ac: &'a AcTable,
}

/// A place in a scan.
pub(super) struct Walk<'a> {
    components: [Option<ComponentTables<'a>>; 3],
    data: &'a [u8],
    reader: BitReader<'a>,
    pub(super) predictors: Predictors,
}

impl<'a> Walk<'a> {
    /// A walk that begins with the scan. `data` is the file from there on; `tables` are the scan's.
    pub(super) fn new(scan: &Scan, tables: &'a Tables, data: &'a [u8]) -> Self {
        let mut components = [None; 3];
        for (tables_of, component) in components.iter_mut().zip(scan.components.iter()) {
            *tables_of = Some(ComponentTables {
                blocks: component.blocks as usize,
                dc: &tables.dc[usize::from(component.dc_number)],
                ac: &tables.ac[usize::from(component.ac_number)],
            });
        }
        Walk { components, data, reader: BitReader::new(data, BitPosition(0)), predictors: [0; 3] }
    }

    /// Goes to another MCU, where the differences add to `predictors`.
    pub(super) fn go(&mut self, position: BitPosition, predictors: Predictors) {
        self.reader = BitReader::new(self.data, position);
        self.predictors = predictors;
    }

    pub(super) fn position(&self) -> BitPosition {
        self.reader.position()
    }

    /// Passes over one MCU. `None` where its bits make no sense or the data end, or where a DC value is none of
    /// eight-bit samples.
    #[inline(always)]
    pub(super) fn pass(&mut self) -> Option<()> {
        let mut reader = self.reader;
        for (tables, predictor) in self.components.iter().flatten().zip(&mut self.predictors) {
            for _ in 0..tables.blocks {
                *predictor += tables.dc.read(&mut reader)?;
                if !DC_VALUES.contains(predictor) {
                    return None;
                }
                tables.ac.read(&mut reader, |_, _| ())?;
            }
        }
        self.reader = reader;
        (!reader.overrun()).then_some(())
    }

    /// Decodes one MCU into `blocks`, which are zero. `None` where its bits make no sense or the data end.
    #[inline(always)]
    pub(super) fn read(&mut self, blocks: &mut [Block]) -> Option<()> {
        let mut reader = self.reader;
        let mut blocks = blocks.iter_mut();
        for (tables, predictor) in self.components.iter().flatten().zip(&mut self.predictors) {
            for block in blocks.by_ref().take(tables.blocks) {
                *predictor = predictor.wrapping_add(tables.dc.read(&mut reader)?);
                tables.ac.read(&mut reader, |index, value| {
                    block[usize::from(ZIGZAG[usize::from(index)] & 63)] = value
                })?;
                block[0] = *predictor as i16;
            }
        }
        self.reader = reader;
        (!reader.overrun()).then_some(())
    }
}
