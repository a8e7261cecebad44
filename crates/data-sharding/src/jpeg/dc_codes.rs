//! Huffman codes for writing DC differences, which a cut has to code anew.

use super::bits::BitWriter;
use super::huffman::{DC_CATEGORIES, TableSpec};

/// A DC table that has a code for every category, made from one that need not.
pub(super) struct DcCodes {
    /// Class, number, counts and symbols as in a DHT segment.
    body: [u8; 17 + DC_CATEGORIES],
    codes: [(u16, u8); DC_CATEGORIES],
}

impl DcCodes {
    /// Tables made for one image lack the categories that it has no use for; a cut of it may need them. They are put
    /// behind the longest code, where they change no other code. `None` where a category is too large or there
    /// is no room.
    pub(super) fn new(spec: TableSpec, number: u8) -> Option<Self> {
        let mut codes = [(0, 0); DC_CATEGORIES];
        for (category, code, length) in spec.codes() {
            *codes.get_mut(usize::from(category))? = (code as u16, length as u8);
        }
        let [counts, symbols_of] = spec.parts();
        let mut body = [0; 17 + DC_CATEGORIES];
        body[0] = number;
        body[1..17].copy_from_slice(counts);
        let mut symbols = symbols_of.len();
        body.get_mut(17..17 + symbols)?.copy_from_slice(symbols_of);

        let missing = codes.iter().filter(|(_, length)| *length == 0).count() as u32;
        let (last_code, longest) = spec.codes().last().map_or((0, 1), |(_, code, length)| (code + 1, length));
        // One more than is needed: the code of ones only stays free.
        let length = (longest..=16).find(|&l| (1_u32 << l) - (last_code << (l - longest)) > missing)?;
        let absent = codes.iter_mut().zip(0..).filter(|((_, length), _)| *length == 0);
        for ((entry, category), code) in absent.zip(last_code << (length - longest)..) {
            *entry = (code as u16, length as u8);
            body[length as usize] += 1;
            *body.get_mut(17 + symbols)? = category;
            symbols += 1;
        }
        (symbols == DC_CATEGORIES).then_some(DcCodes { body, codes })
    }

    /// The table as it stands in a DHT segment.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Writes a difference. `None` where it is larger than any category.
    pub(super) fn write(&self, writer: &mut BitWriter, difference: i32) -> Option<()> {
        let category = 32 - difference.unsigned_abs().leading_zeros();
        let &(code, length) = self.codes.get(category as usize)?;
        writer.put(u32::from(code), u32::from(length));
        let value = if difference < 0 { difference - 1 } else { difference };
        writer.put(value as u32 & ((1 << category) - 1), category);
        Some(())
    }
}
