//! Which elements of the flat parameters a rank updates, and where what it remembers of them lies. Pure arithmetic.

use std::ops::Range;

/// Ascending ranges of the flat parameters. The optimizer's buffers hold these, one behind the other.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    ranges: Vec<Range<usize>>,
}

impl Share {
    /// All `len` elements.
    pub(crate) fn whole(len: usize) -> Self {
        Share { ranges: std::iter::once(0..len).collect() }
    }

    /// Ascending disjoint `ranges`.
    pub(crate) fn new(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        Share { ranges: ranges.into_iter().filter(|range| !range.is_empty()).collect() }
    }

    /// Length of each of the optimizer's buffers.
    pub(crate) fn len(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// What lies within `range`: ranges of the flat parameters, each with its offset in the optimizer's buffers.
    pub(crate) fn within(&self, range: &Range<usize>) -> Vec<(Range<usize>, usize)> {
        let mut offset = 0;
        let mut found = Vec::new();
        for own in &self.ranges {
            let both = own.start.max(range.start)..own.end.min(range.end);
            if !both.is_empty() {
                found.push((both.clone(), offset + both.start - own.start));
            }
            offset += own.len();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_with_their_offset() {
        let share = Share::new([0..16, 32..32, 64..96, 100..110]);
        assert_eq!(share.len(), 16 + 32 + 10);
        assert_eq!(share.within(&(0..110)), [(0..16, 0), (64..96, 16), (100..110, 48)]);
        assert_eq!(share.within(&(8..70)), [(8..16, 8), (64..70, 16)]);
        assert_eq!(share.within(&(90..105)), [(90..96, 42), (100..105, 48)]);
        assert!(share.within(&(16..64)).is_empty());
        assert_eq!(Share::whole(64).within(&(10..20)), [(10..20, 10)]);
    }
}
