//! Bits of an entropy-coded segment (ITU-T T.81, F.1.2.3): most significant first, and a byte 0xff followed by a
//! stuffed 0x00. Reading, writing and copying from one to the other; what the bits mean is `huffman.rs`'s.

/// A place in an entropy-coded segment: offset of the byte, stuffed ones counted, times eight, plus the bits of that
/// byte that lie before. Never points into a stuffed byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// Appends bits to a buffer, stuffing as it goes.
pub(super) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    /// The last `bits` bits written, at the top; fewer than 64. Zeros below.
    buffer: u64,
    bits: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        BitWriter { out, buffer: 0, bits: 0 }
    }

    /// Writes the lower `count` bits of `value`, at most 32; those above must be zero.
    #[inline(always)]
    pub(super) fn put(&mut self, value: u32, count: u32) {
        if count == 0 {
            return;
        }
        self.put_top(u64::from(value) << (64 - count), count);
    }

    /// Writes the upper `count` bits of `value`, 1 to 64; those below must be zero.
    #[inline(always)]
    fn put_top(&mut self, value: u64, count: u32) {
        self.buffer |= value >> self.bits;
        if self.bits + count < 64 {
            self.bits += count;
            return;
        }
        self.flush_word();
        let written = 64 - self.bits;
        self.buffer = if written < 64 { value << written } else { 0 };
        self.bits = count - written;
    }

    #[inline(always)]
    fn flush_word(&mut self) {
        if has_ff(self.buffer) {
            self.flush_stuffed();
        } else {
            self.out.extend_from_slice(&self.buffer.to_be_bytes());
        }
    }

    #[cold]
    fn flush_stuffed(&mut self) {
        for byte in self.buffer.to_be_bytes() {
            self.out.push(byte);
            if byte == 0xff {
                self.out.push(0);
            }
        }
    }

    /// Copies the bits from `from` up to `to` of an entropy-coded segment. False where `to` does not lie behind
    /// `from`, or a marker lies between them.
    #[must_use]
    pub(super) fn copy(&mut self, data: &[u8], from: BitPosition, to: BitPosition) -> bool {
        if to < from || to.0.div_ceil(8) > data.len() {
            return false;
        }
        let (mut at, end) = (from.byte(), to.byte());
        if from.bit() > 0 {
            let last = if at == end { to.bit() } else { 8 };
            if at == end && to.bit() == from.bit() {
                return true;
            }
            let byte = u32::from(data[at]) & (0xff >> from.bit());
            self.put(byte >> (8 - last), last - from.bit());
            if at == end {
                return true;
            }
            match Self::behind(data, at) {
                Some(next) => at = next,
                None => return false,
            }
        }
        while at < end {
            match word_at(data, at) {
                Some(word) if at + 8 <= end && !has_ff(word) => {
                    self.put_top(word, 64);
                    at += 8;
                }
                _ => {
                    self.put(u32::from(data[at]), 8);
                    match Self::behind(data, at) {
                        Some(next) => at = next,
                        None => return false,
                    }
                }
            }
        }
        if at == end && to.bit() > 0 {
            self.put(u32::from(data[end]) >> (8 - to.bit()), to.bit());
        }
        at == end
    }

    /// Offset of the byte that follows the one at `at`; none where that is the first of a marker.
    fn behind(data: &[u8], at: usize) -> Option<usize> {
        match data[at] {
            0xff if data.get(at + 1) != Some(&0) => None,
            0xff => Some(at + 2),
            _ => Some(at + 1),
        }
    }

    /// Ends the segment: fills the last byte with ones.
    pub(super) fn finish(mut self) {
        let padding = (8 - self.bits % 8) % 8;
        self.put((1 << padding) - 1, padding);
        for &byte in &self.buffer.to_be_bytes()[..(self.bits / 8) as usize] {
            self.out.push(byte);
            if byte == 0xff {
                self.out.push(0);
            }
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

    #[test]
    fn a_copy_has_the_same_bits_at_any_shift() {
        let data = segment();
        let all = bits(&data);
        for shift in 0..9 {
            for (from, to) in
                [(0, 3200), (3, 4), (5, 5), (8, 16), (100, 101), (17, 2999), (1000, 1500), (64, 128)]
            {
                let mut out = Vec::new();
                let mut writer = BitWriter::new(&mut out);
                writer.put(0, shift);
                let end = all.get(to).map_or(BitPosition(8 * data.len()), |&(position, _)| position);
                assert!(writer.copy(&data, all[from].0, end), "{from} to {to}");
                writer.finish();
                let copied: Vec<u32> = bits(&out).into_iter().map(|(_, bit)| bit).collect();
                let expected: Vec<u32> = all[from..to].iter().map(|&(_, bit)| bit).collect();
                assert_eq!(copied[shift as usize..][..to - from], expected, "{from} to {to}, shift {shift}");
                assert!(copied[shift as usize + to - from..].iter().all(|&bit| bit == 1));
            }
        }
    }

    #[test]
    fn a_copy_stops_at_markers_and_ends() {
        let data = [1, 2, 0xff, 0xd9, 3, 4, 5, 6, 7, 8, 9, 10];
        let copy = |from, to| BitWriter::new(&mut Vec::new()).copy(&data, BitPosition(from), BitPosition(to));
        assert!(copy(0, 16));
        for (from, to) in [(0, 40), (0, 25), (17, 33), (9, 8), (0, 97), (200, 300)] {
            assert!(!copy(from, to), "{from} to {to}");
        }
    }
}
