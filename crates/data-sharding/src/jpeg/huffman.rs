//! Huffman tables of a JPEG (ITU-T T.81, Annex C and F.2.2) for reading: DC differences, and the AC coefficients of a
//! block, of which one look-up decodes two at a time where their bits are few.

use super::bits::BitReader;

/// Bits of the look-up tables. Larger ones hold more pairs of coefficients, and push each other out of the cache.
const LOOKUP_BITS: u32 = 11;
const LOOKUP_LEN: usize = 1 << LOOKUP_BITS;
/// The largest category of a DC difference with samples of eight bits.
const DC_CATEGORIES: usize = 12;
/// What the end-of-block code adds to the coefficient index: more than any other way can reach.
const END_OF_BLOCK: u32 = 128;

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
    counts: [u8; 16],
    ends: [u32; 17],
    offsets: [i32; 17],
    symbols: [u8; 256],
}

impl LongCodes {
    fn new() -> Self {
        LongCodes { counts: [0; 16], ends: [0; 17], offsets: [0; 17], symbols: [0; 256] }
    }

    /// Takes another table; false where it is the same one.
    fn load(&mut self, spec: TableSpec) -> bool {
        if self.counts == *spec.counts && self.symbols[..spec.symbols.len()] == *spec.symbols {
            return false;
        }
        self.counts = *spec.counts;
        self.symbols[..spec.symbols.len()].copy_from_slice(spec.symbols);
        let (mut code, mut index) = (0_u32, 0_i32);
        for (&count, length) in spec.counts.iter().zip(1..) {
            self.offsets[length] = index - code as i32;
            code += u32::from(count);
            index += i32::from(count);
            self.ends[length] = if count > 0 { code << (16 - length) } else { 0 };
            code <<= 1;
        }
        true
    }

    /// Symbol and length of the code that the next 16 bits begin with.
    #[cold]
    fn find(&self, bits: u32) -> Option<(u8, u32)> {
        let length = (1..=16).find(|&length| bits < self.ends[length])?;
        let index = (bits >> (16 - length)) as i32 + self.offsets[length];
        Some((*self.symbols.get(usize::try_from(index).ok()?)?, length as u32))
    }
}

/// The value of `size` bits (F.2.2.1): a leading zero stands for a negative number.
#[inline(always)]
fn extend(bits: u32, size: u32) -> i32 {
    if size == 0 {
        return 0;
    }
    let negative = bits >> (size - 1) == 0;
    bits as i32 - if negative { (1 << size) - 1 } else { 0 }
}

/// Reads the value of `size` bits.
#[inline(always)]
fn read_value(reader: &mut BitReader, size: u32) -> i32 {
    if size == 0 {
        return 0;
    }
    let bits = reader.peek(size);
    reader.skip(size);
    extend(bits, size)
}

/// What a code's look-up begins with: one code and, where it fits in, its value.
#[derive(Clone, Copy, Default)]
struct First {
    /// Bits of the code; 0 where it is longer than the look-up.
    code_bits: u8,
    /// Bits of code and value; 0 where they are more than the look-up's.
    bits: u8,
    symbol: u8,
    value: i16,
}

/// For each index of a look-up, what its bits begin with. `size` tells a symbol's number of value bits.
fn firsts(spec: TableSpec, size: fn(u8) -> u32, firsts: &mut [First; LOOKUP_LEN]) {
    firsts.fill(First::default());
    for (symbol, code, code_bits) in spec.codes() {
        let Some(rest) = LOOKUP_BITS.checked_sub(code_bits) else { continue };
        let of_code = &mut firsts[(code as usize) << rest..][..1 << rest];
        let first = First { code_bits: code_bits as u8, symbol, ..First::default() };
        match rest.checked_sub(size(symbol)) {
            None => of_code.fill(first),
            Some(free) => {
                let bits = (code_bits + size(symbol)) as u8;
                for (value, of_value) in of_code.chunks_exact_mut(1 << free).enumerate() {
                    of_value.fill(First { bits, value: extend(value as u32, size(symbol)) as i16, ..first });
                }
            }
        }
    }
}

/// A table for DC differences.
pub(super) struct DcTable {
    lookup: Box<[First; LOOKUP_LEN]>,
    long: LongCodes,
}

impl DcTable {
    pub(super) fn new() -> Self {
        DcTable { lookup: Box::new([First::default(); LOOKUP_LEN]), long: LongCodes::new() }
    }

    /// Takes another table. `None` where a category is larger than eight-bit samples need.
    pub(super) fn load(&mut self, spec: TableSpec) -> Option<()> {
        if spec.symbols.iter().any(|&category| usize::from(category) >= DC_CATEGORIES) {
            return None;
        }
        if self.long.load(spec) {
            firsts(spec, u32::from, &mut self.lookup);
        }
        Some(())
    }

    /// Decodes the DC difference of the next block. `None` where the bits are no code.
    #[inline(always)]
    pub(super) fn read(&self, reader: &mut BitReader) -> Option<i32> {
        reader.refill();
        let first = self.lookup[reader.peek(LOOKUP_BITS) as usize];
        if first.bits > 0 {
            reader.skip(u32::from(first.bits));
            return Some(i32::from(first.value));
        }
        let (category, length) = match first.code_bits {
            0 => self.long.find(reader.peek(16))?,
            length => (first.symbol, u32::from(length)),
        };
        reader.skip(length);
        Some(read_value(reader, u32::from(category)))
    }
}

/// What the bits of an AC look-up say, packed: up to two codes with their values. One alone stands in both places.
///
/// | bits | |
/// |---|---|
/// | 0 to 7 | bits of both; 0 where the first code's value does not fit in |
/// | 8 to 15 | bits of the first; of its code alone where its value does not fit in; 0 where not even that does |
/// | 16 to 23 | coefficients to advance over the first: its run of zeros and one |
/// | 24 to 31 | coefficients to advance over both |
/// | 32 to 47, 48 to 63 | the values; the first's symbol where its value does not fit in |
#[derive(Clone, Copy)]
struct Steps(u64);

impl Steps {
    fn new(index: usize, firsts: &[First; LOOKUP_LEN]) -> Self {
        let first = firsts[index];
        if first.bits == 0 {
            return Steps(u64::from(first.code_bits) << 8 | u64::from(first.symbol) << 32);
        }
        let second = firsts[index << first.bits & (LOOKUP_LEN - 1)];
        let advance = advance(first.symbol);
        let pair =
            second.bits > 0 && u32::from(first.bits + second.bits) <= LOOKUP_BITS && advance != END_OF_BLOCK;
        let (bits, both, last) = if pair {
            (first.bits + second.bits, advance + self::advance(second.symbol), second.value)
        } else {
            (first.bits, advance, first.value)
        };
        Steps(
            u64::from(bits)
                | u64::from(first.bits) << 8
                | u64::from(advance) << 16
                | u64::from(both) << 24
                | u64::from(first.value as u16) << 32
                | u64::from(last as u16) << 48,
        )
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.0 as u8 as u32
    }

    #[inline(always)]
    fn first_bits(self) -> u32 {
        (self.0 >> 8) as u8 as u32
    }

    #[inline(always)]
    fn first_advance(self) -> u32 {
        (self.0 >> 16) as u8 as u32
    }

    #[inline(always)]
    fn advance(self) -> u32 {
        (self.0 >> 24) as u8 as u32
    }

    #[inline(always)]
    fn values(self) -> (i16, i16) {
        ((self.0 >> 32) as i16, (self.0 >> 48) as i16)
    }

    fn symbol(self) -> u8 {
        (self.0 >> 32) as u8
    }
}

/// How many coefficients a symbol stands for. Its upper half is a run of zeros, its lower the size of the coefficient
/// behind them.
fn advance(symbol: u8) -> u32 {
    if symbol & 15 == 0 && symbol < 0xf0 { END_OF_BLOCK } else { u32::from(symbol >> 4) + 1 }
}

/// A table for AC coefficients.
pub(super) struct AcTable {
    lookup: Box<[Steps; LOOKUP_LEN]>,
    firsts: Box<[First; LOOKUP_LEN]>,
    long: LongCodes,
}

impl AcTable {
    pub(super) fn new() -> Self {
        AcTable {
            lookup: Box::new([Steps(0); LOOKUP_LEN]),
            firsts: Box::new([First::default(); LOOKUP_LEN]),
            long: LongCodes::new(),
        }
    }

    /// Takes another table.
    pub(super) fn load(&mut self, spec: TableSpec) {
        if self.long.load(spec) {
            firsts(spec, |symbol| u32::from(symbol & 15), &mut self.firsts);
            for (index, steps) in self.lookup.iter_mut().enumerate() {
                *steps = Steps::new(index, &self.firsts);
            }
        }
    }

    /// Decodes the AC coefficients of a block whose DC difference has just been read, and hands each to `store` with
    /// its index in the order of coding; indices of 64 and more mean nothing. `None` where the bits are no code, or
    /// lead out of the block.
    ///
    /// An index goes from 1 to 64, or past [`END_OF_BLOCK`]. The bit of 64 is set in it only where the coefficients
    /// end without that code: then a second code may belong to the next block.
    #[inline(always)]
    pub(super) fn read(&self, reader: &mut BitReader, mut store: impl FnMut(u8, i16)) -> Option<()> {
        let mut index = 1;
        while index < 64 {
            // Enough for two look-ups and a code of 16 bits with a value of 15.
            reader.refill();
            for _ in 0..3 {
                let steps = self.lookup[reader.peek(LOOKUP_BITS) as usize];
                let first = index + steps.first_advance();
                if steps.bits() == 0 || first & 64 != 0 {
                    index = self.read_one(reader, steps, index, &mut store)?;
                    break;
                }
                index += steps.advance();
                let (value, last) = steps.values();
                store((first - 1) as u8, value);
                store((index - 1) as u8, last);
                reader.skip(steps.bits());
                if index >= 64 {
                    break;
                }
            }
        }
        (index == 64 || index > END_OF_BLOCK).then_some(())
    }

    /// Decodes the next code only, and tells the index behind its coefficient.
    #[inline(always)]
    fn read_one(
        &self,
        reader: &mut BitReader,
        steps: Steps,
        index: u32,
        store: &mut impl FnMut(u8, i16),
    ) -> Option<u32> {
        if steps.bits() > 0 {
            reader.skip(steps.first_bits());
            store((index + steps.first_advance() - 1) as u8, steps.values().0);
            return Some(index + steps.first_advance());
        }
        let (symbol, length) = match steps.first_bits() {
            0 => self.long.find(reader.peek(16))?,
            length => (steps.symbol(), length),
        };
        reader.skip(length);
        let index = index + advance(symbol);
        store((index - 1) as u8, read_value(reader, u32::from(symbol & 15)) as i16);
        Some(index)
    }
}

/// Where coefficients lie in a block, by the order in which they are coded (Figure A.6). Whatever lies outside goes
/// to the place of the DC value.
pub(super) const ZIGZAG: [u8; 256] = {
    #[rustfmt::skip]
    let inside = [
         0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
        12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
        35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
        58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    ];
    let mut places = [0; 256];
    let mut index = 0;
    while index < 64 {
        places[index] = inside[index];
        index += 1;
    }
    places
};
