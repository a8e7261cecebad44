//! Huffman tables of a JPEG (ITU-T T.81, Annex C and F.2.2): look-up for reading, codes for writing, and the passage
//! over a block's coefficients, of which only the DC difference is decoded.

use super::bits::{BitReader, BitWriter};

/// The largest category of a DC difference with samples of eight bits.
const DC_CATEGORIES: usize = 12;
/// What the end-of-block code adds to the coefficient index: more than any other way can reach.
const END_OF_BLOCK: u16 = 128;

/// The body of one table as it stands in a DHT segment: how many codes there are of each length, then the symbols.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TableSpec<'a> {
    counts: &'a [u8; 16],
    symbols: &'a [u8],
}

impl<'a> TableSpec<'a> {
    /// Splits the first table off a DHT segment's body behind its class and number. `None` where it is too short or
    /// no prefix code; the code of ones only must stay free.
    pub(super) fn split(body: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (counts, rest) = body.split_first_chunk::<16>()?;
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        let (symbols, rest) = rest.split_at_checked(total)?;
        (total <= 256 && Self::prefix_free(counts)).then_some((TableSpec { counts, symbols }, rest))
    }

    fn prefix_free(counts: &[u8; 16]) -> bool {
        let mut code = 0_u32;
        counts.iter().zip(1..).all(|(&count, length)| {
            code = 2 * code + u32::from(count);
            code < 1 << length
        })
    }

    /// As in a DHT segment, without class and number.
    pub(super) fn parts(&self) -> [&'a [u8]; 2] {
        [self.counts, self.symbols]
    }

    /// Each symbol with its code and the code's length, shortest first.
    fn codes(&self) -> impl Iterator<Item = (u8, u32, u32)> {
        let mut code = 0_u32;
        let lengths = self
            .counts
            .iter()
            .zip(1_u32..)
            .flat_map(|(&count, length)| std::iter::repeat_n(length, usize::from(count)));
        let mut last = 0;
        self.symbols.iter().zip(lengths).map(move |(&symbol, length)| {
            code <<= length - last;
            last = length;
            let this = (symbol, code, length);
            code += 1;
            this
        })
    }
}

/// Where codes that the look-up is too short for are found: by length, the first code behind those of that length
/// (left-aligned to 16 bits), and what to add to a code to get its symbol's index.
struct LongCodes {
    ends: [u32; 17],
    offsets: [i32; 17],
    symbols: [u8; 256],
}

impl LongCodes {
    fn new(spec: TableSpec) -> Self {
        let (mut ends, mut offsets, mut symbols) = ([0; 17], [0; 17], [0; 256]);
        symbols[..spec.symbols.len()].copy_from_slice(spec.symbols);
        let (mut code, mut index) = (0_u32, 0_i32);
        for (&count, length) in spec.counts.iter().zip(1..) {
            offsets[length] = index - code as i32;
            code += u32::from(count);
            index += i32::from(count);
            ends[length] = if count > 0 { code << (16 - length) } else { 0 };
            code <<= 1;
        }
        LongCodes { ends, offsets, symbols }
    }

    /// Symbol and length of the code that the next 16 bits begin with.
    #[cold]
    fn find(&self, bits: u32) -> Option<(u8, u32)> {
        let length = (1..=16).find(|&length| bits < self.ends[length])?;
        let index = (bits >> (16 - length)) as i32 + self.offsets[length];
        Some((*self.symbols.get(usize::try_from(index).ok()?)?, length as u32))
    }
}

/// A table for DC differences, with a look-up of `BITS` bits.
pub(super) struct DcTable<const BITS: u32> {
    /// Length of the code, and category above; 0 for codes that are longer than the look-up.
    lookup: Vec<u8>,
    long: LongCodes,
}

impl<const BITS: u32> DcTable<BITS> {
    /// `None` where a category is larger than eight-bit samples need.
    pub(super) fn new(spec: TableSpec) -> Option<Self> {
        let mut lookup = vec![0; 1 << BITS];
        for (category, code, length) in spec.codes() {
            if usize::from(category) >= DC_CATEGORIES {
                return None;
            }
            // A length of up to 16 takes five bits, a category of up to 11 would take four: long codes are looked
            // up elsewhere, so four bits do for the length as well.
            fill(&mut lookup, BITS, code, length, category << 4 | length as u8 & 15);
        }
        Some(DcTable { lookup, long: LongCodes::new(spec) })
    }

    /// Decodes a difference.
    #[inline(always)]
    fn read(&self, reader: &mut BitReader) -> Option<i32> {
        let entry = self.lookup[reader.peek(BITS) as usize];
        let (category, length) = match entry {
            0 => self.long.find(reader.peek(16)).map(|(symbol, length)| (u32::from(symbol), length))?,
            _ => (u32::from(entry >> 4), u32::from(entry & 15)),
        };
        reader.skip(length);
        if category == 0 {
            return Some(0);
        }
        let value = reader.peek(category) as i32;
        reader.skip(category);
        // F.2.2.1: a leading zero stands for a negative number.
        Some(if value >> (category - 1) == 0 { value - (1 << category) + 1 } else { value })
    }
}

/// A table for AC coefficients, with a look-up of `BITS` bits that tells how far a code and its value bits lead.
pub(super) struct AcTable<const BITS: u32> {
    /// Bits of code and value, and coefficients above; 0 for codes that are longer than the look-up.
    lookup: Vec<u16>,
    long: LongCodes,
}

impl<const BITS: u32> AcTable<BITS> {
    pub(super) fn new(spec: TableSpec) -> Self {
        let mut lookup = vec![0; 1 << BITS];
        for (symbol, code, length) in spec.codes() {
            fill(&mut lookup, BITS, code, length, Self::step(symbol, length));
        }
        AcTable { lookup, long: LongCodes::new(spec) }
    }

    /// Symbols are a run of zeros in the upper and the number of value bits in the lower half.
    fn step(symbol: u8, length: u32) -> u16 {
        let (run, size) = (u16::from(symbol >> 4), u16::from(symbol & 15));
        let advance = if size == 0 && run < 15 { END_OF_BLOCK } else { run + 1 };
        advance << 8 | (length as u16 + size)
    }

    #[inline(always)]
    fn next(&self, reader: &BitReader) -> Option<u16> {
        match self.lookup[reader.peek(BITS) as usize] {
            0 => self.long.find(reader.peek(16)).map(|(symbol, length)| Self::step(symbol, length)),
            step => Some(step),
        }
    }
}

/// Writes `value` for each index whose upper bits are `code`.
fn fill<T: Copy>(lookup: &mut [T], bits: u32, code: u32, length: u32, value: T) {
    if length <= bits {
        let step = 1 << (bits - length);
        let start = code as usize * step;
        lookup[start..start + step].fill(value);
    }
}

/// Decodes the DC difference of the next block. `None` where the bits are no code.
#[inline(always)]
pub(super) fn read_dc<const BITS: u32>(reader: &mut BitReader, dc: &DcTable<BITS>) -> Option<i32> {
    reader.refill();
    dc.read(reader)
}

/// Passes over the AC coefficients of a block whose DC difference has just been read. `None` where the bits are no
/// code, or lead out of the block.
#[inline(always)]
pub(super) fn skip_ac<const BITS: u32>(reader: &mut BitReader, ac: &AcTable<BITS>) -> Option<()> {
    let mut index = 1;
    while index < 64 {
        // 16 bits of code and 15 of value.
        if reader.available() < 31 {
            reader.refill();
        }
        let step = ac.next(reader)?;
        reader.skip(u32::from(step & 0xff));
        index += step >> 8;
    }
    (index == 64 || index > END_OF_BLOCK).then_some(())
}

/// A DC table that has a code for every category, made from one that need not.
pub(super) struct FullDcTable {
    /// Class, number, counts and symbols as in a DHT segment.
    body: [u8; 17 + DC_CATEGORIES],
    codes: [(u16, u8); DC_CATEGORIES],
}

impl FullDcTable {
    /// Tables made for one image lack the categories that it has no use for; a cut of it may need them. They are put
    /// behind the longest code, where they change no other code. `None` where a category is too large or there
    /// is no room.
    pub(super) fn new(spec: TableSpec, number: u8) -> Option<Self> {
        let mut codes = [(0, 0); DC_CATEGORIES];
        for (category, code, length) in spec.codes() {
            *codes.get_mut(usize::from(category))? = (code as u16, length as u8);
        }
        let mut body = [0; 17 + DC_CATEGORIES];
        body[0] = number;
        body[1..17].copy_from_slice(spec.counts);
        let mut symbols = spec.symbols.len();
        body.get_mut(17..17 + symbols)?.copy_from_slice(spec.symbols);

        let missing = codes.iter().filter(|(_, length)| *length == 0).count() as u32;
        let (last_code, longest) = spec.codes().last().map_or((0, 1), |(_, code, length)| (code + 1, length));
        // One more than is needed: the code of ones only stays free.
        let length = (longest..=16).find(|&l| (1_u32 << l) - (last_code << (l - longest)) > missing)?;
        let mut code = last_code << (length - longest);
        for (category, entry) in codes.iter_mut().enumerate().filter(|(_, (_, length))| *length == 0) {
            *entry = (code as u16, length as u8);
            code += 1;
            body[length as usize] += 1;
            *body.get_mut(17 + symbols)? = category as u8;
            symbols += 1;
        }
        (symbols == DC_CATEGORIES).then_some(FullDcTable { body, codes })
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
