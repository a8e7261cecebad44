//! Cuts a flat gradient buffer into buckets, the units of exchange. Pure arithmetic on ranges.

use std::ops::Range;

/// A parameter's place in the flat gradient buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Name of the parameter.
    pub name: String,
    /// Elements of the flat buffer. Ranges of successive segments ascend; gaps between them are padding.
    pub range: Range<usize>,
}

/// A contiguous part of the flat gradient buffer that is exchanged in one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Elements of the flat buffer.
    pub range: Range<usize>,
    /// Indices of the segments within.
    pub segments: Range<usize>,
}

/// Cuts the flat buffer `0..total` into contiguous buckets that cover it.
///
/// Segments are taken in order, that of readiness. A bucket closes with the segment that brings it to its
/// cap, `first_bytes` for the first bucket and `bytes` for the others (the rule of PyTorch's `reducer.hpp`;
/// its caps are 1 MiB and 25 MiB). Padding belongs to the bucket before it, and what follows the last segment
/// belongs to the last bucket.
#[must_use]
pub fn plan_buckets(segments: &[Segment], total: usize, first_bytes: usize, bytes: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut open = Bucket { range: 0..total, segments: 0..0 };
    for (index, segment) in segments.iter().enumerate() {
        open.segments.end = index + 1;
        let cap = if buckets.is_empty() { first_bytes } else { bytes };
        let full = (segment.range.end - open.range.start) * size_of::<f32>() >= cap;
        if let (true, Some(next)) = (full, segments.get(index + 1)) {
            let (start, first) = (next.range.start, open.segments.end);
            buckets.push(Bucket { range: open.range.start..start, segments: open.segments });
            open = Bucket { range: start..total, segments: first..first };
        }
    }
    if !open.range.is_empty() {
        buckets.push(open);
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of these lengths at multiples of 64 elements.
    fn segments(lens: &[usize]) -> Vec<Segment> {
        let mut start = 0;
        lens.iter()
            .enumerate()
            .map(|(index, &len)| {
                let range = start..start + len;
                start = range.end.next_multiple_of(64);
                Segment { name: format!("parameter {index}"), range }
            })
            .collect()
    }

    #[test]
    fn buckets_close_at_their_cap() {
        // Caps in bytes, and where the buckets end: element of the buffer, segment.
        type Case<'a> = (&'a str, &'a [usize], usize, usize, usize, &'a [(usize, usize)]);
        let cases: [Case<'_>; 7] = [
            ("nothing", &[], 0, 100, 100, &[]),
            ("only a tail", &[], 10, 100, 100, &[(10, 0)]),
            ("one bucket with the tail", &[64, 64], 140, 4096, 4096, &[(140, 2)]),
            ("a smaller first bucket", &[64, 64, 64, 64], 256, 256, 512, &[(64, 1), (192, 3), (256, 4)]),
            ("no bucket for the tail alone", &[64, 64], 140, 256, 256, &[(64, 1), (140, 2)]),
            ("padding goes with what precedes it", &[10, 65, 1], 193, 4, 4, &[(64, 1), (192, 2), (193, 3)]),
            ("a cap of zero is one segment a bucket", &[64, 64], 128, 0, 0, &[(64, 1), (128, 2)]),
        ];
        for (name, lens, total, first_bytes, bytes, ends) in cases {
            let buckets = plan_buckets(&segments(lens), total, first_bytes, bytes);
            let found: Vec<_> =
                buckets.iter().map(|bucket| (bucket.range.end, bucket.segments.end)).collect();
            assert_eq!(found, ends, "{name}");
            let starts = [(0, 0)].into_iter().chain(found.iter().copied());
            for (bucket, start) in buckets.iter().zip(starts) {
                assert_eq!((bucket.range.start, bucket.segments.start), start, "{name}");
            }
        }
    }
}
