//! Bits of an entropy-coded segment (ITU-T T.81, F.1.2.3): most significant first, and a byte 0xff followed by a
//! stuffed 0x00. Reads them; what they mean is `huffman.rs`'s.

/// A place in an entropy-coded segment: offset of the byte, stuffed ones counted, times eight, plus the bits of that
/// byte that lie before. Never points into a stuffed byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BitPosition(pub(super) usize);

impl BitPosition {
    fn byte(self) -> usize {
        self.0 / 8
    }

    fn bit(self) -> u32 {
        (self.0 % 8) as u32
    }
}

/// Whether one of the eight bytes is 0xff.
fn has_ff(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The byte of !word that is zero borrows into its own highest bit.
    let inverted = !word;
    inverted.wrapping_sub(LOW) & word & HIGH != 0
}

/// Eight bytes as a big-endian number.
fn word_at(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*bytes))
}

/// Reads bits. Behind the end of the segment, which is a marker or the end of `data`, come zeros, whose use
/// [`overrun`](Self::overrun) tells.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    /// Offset of the first byte that is not in `buffer`.
    next: usize,
    /// The next `bits` bits, at the top. Below them may stand bits of the byte at `next`, or zeros.
    buffer: u64,
    bits: u32,
    /// How many of `bits` stand for nothing in `data`.
    invented: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(data: &'a [u8], from: BitPosition) -> Self {
        let mut reader =
            BitReader { data, next: from.byte().min(data.len()), buffer: 0, bits: 0, invented: 0 };
        reader.refill();
        reader.skip(from.bit());
        reader
    }

    /// Makes at least 56 bits available.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if let Some(word) = word_at(self.data, self.next)
            && !has_ff(word)
        {
            self.buffer |= word >> self.bits;
            let bytes = (63 - self.bits) / 8;
            self.next += bytes as usize;
            self.bits += 8 * bytes;
        } else {
            *self = self.refilled_bytewise();
        }
    }

    /// By value, so that the reader of a hot loop can stay in registers.
    #[cold]
    #[inline(never)]
    fn refilled_bytewise(mut self) -> Self {
        // Bits of a byte that will be invented must be zeros.
        self.buffer &= !(u64::MAX >> self.bits);
        while self.bits < 56 {
            let byte = match self.data.get(self.next) {
                Some(0xff) if self.data.get(self.next + 1) == Some(&0) => {
                    self.next += 2;
                    0xff
                }
                Some(0xff) | None => {
                    self.invented += 8;
                    0
                }
                Some(&byte) => {
                    self.next += 1;
                    byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.bits);
            self.bits += 8;
        }
        self
    }

    /// The next `count` bits, 1 to 32, which stay.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> u32 {
        (self.buffer >> (64 - count)) as u32
    }

    /// Passes over `count` bits, which must be available and fewer than 64.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.bits -= count;
    }

    /// Whether bits have been used that `data` does not hold.
    pub(super) fn overrun(&self) -> bool {
        self.invented > self.bits
    }

    /// Where the next bit lies.
    pub(super) fn position(&self) -> BitPosition {
        let mut bits = self.bits.saturating_sub(self.invented);
        let mut byte = self.next;
        loop {
            // Step back over a stuffed byte first: nothing else puts a zero behind 0xff.
            let before = match *self.data.get(..byte).unwrap_or_default() {
                [.., 0xff, 0] => byte - 2,
                [.., _] => byte - 1,
                [] => 0,
            };
            if bits < 8 {
                return if bits == 0 {
                    BitPosition(byte * 8)
                } else {
                    BitPosition(before * 8 + 8 - bits as usize)
                };
            }
            byte = before;
            bits -= 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes with many 0xff among them, stuffed.
    fn segment() -> Vec<u8> {
        let mut state = 1_u32;
        let mut data = Vec::new();
        for _ in 0..400 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = if state >> 29 == 0 { 0xff } else { (state >> 16) as u8 };
            data.push(byte);
            if byte == 0xff {
                data.push(0);
            }
        }
        data
    }

    /// One bit after another, with the position of each.
    fn bits(data: &[u8]) -> Vec<(BitPosition, u32)> {
        let mut reader = BitReader::new(data, BitPosition(0));
        let mut bits = Vec::new();
        loop {
            let (position, bit) = (reader.position(), reader.peek(1));
            reader.skip(1);
            if reader.overrun() {
                return bits;
            }
            bits.push((position, bit));
            reader.refill();
        }
    }

    #[test]
    fn reading_starts_at_every_position_that_reading_reports() {
        let data = segment();
        let all = bits(&data);
        assert_eq!(all.len(), 8 * 400);
        for (index, &(position, _)) in all.iter().enumerate() {
            let mut reader = BitReader::new(&data, position);
            assert_eq!(reader.position(), position);
            reader.refill();
            for &(_, bit) in &all[index..all.len().min(index + 50)] {
                assert_eq!(reader.peek(1), bit, "{position:?}");
                reader.skip(1);
            }
        }
    }
}
