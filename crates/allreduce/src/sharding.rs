//! Which part of any values a rank owns when their sum is left scattered over the ranks. Arithmetic on ranges, and
//! the exchange of shards for communicators that know only how to gather bytes.

use std::ops::Range;

use crate::CommError;
use crate::communicator::Communicator;
use crate::ordered::Slices;

/// A rank's part of any values: those that begin at multiples of 64 bytes within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharding {
    outer: Place,
    /// Within the outer part.
    inner: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: usize,
    count: usize,
}

impl Sharding {
    /// One shard a rank, in the order of ranks.
    pub(crate) fn flat(rank: usize, world_size: usize) -> Self {
        Self::nested((rank, world_size), (0, 1))
    }

    /// Shards of shards; each an index and a count.
    pub(crate) fn nested(outer: (usize, usize), inner: (usize, usize)) -> Self {
        let place = |(index, count)| Place { index, count };
        Sharding { outer: place(outer), inner: place(inner) }
    }

    /// This rank's shard of `len` values. With few values some ranks own nothing.
    #[must_use]
    pub fn of(&self, len: usize) -> Range<usize> {
        let outer = Slices::new(len, self.outer.count).of(self.outer.index);
        let inner = Slices::new(outer.len(), self.inner.count).of(self.inner.index);
        outer.start + inner.start..outer.start + inner.end
    }
}

/// Gathers shards that stand in the order of ranks.
pub(crate) fn gather_by_bytes<C: Communicator + ?Sized>(
    communicator: &mut C,
    values: &mut [f32],
) -> Result<(), CommError> {
    let own = communicator.sharding().of(values.len());
    let bytes: Vec<u8> = values[own].iter().flat_map(|value| value.to_le_bytes()).collect();
    let shards = communicator.all_gather(&bytes)?;
    let all = shards.iter().flat_map(|shard| shard.chunks_exact(size_of::<f32>()));
    for (value, bytes) in values.iter_mut().zip(all) {
        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_everything_once_and_are_aligned() {
        for (hosts, ranks_each) in [(1, 1), (1, 3), (1, 4), (2, 2), (3, 4)] {
            for len in [0, 1, 16, 17, 64, 1000, 4096] {
                let mut shards: Vec<Range<usize>> = (0..hosts)
                    .flat_map(|host| {
                        (0..ranks_each)
                            .map(move |rank| Sharding::nested((rank, ranks_each), (host, hosts)).of(len))
                    })
                    .filter(|shard| !shard.is_empty())
                    .collect();
                shards.sort_by_key(|shard| shard.start);
                let ends = shards.iter().map(|shard| shard.end);
                let starts = std::iter::once(0).chain(ends).take(shards.len());
                assert!(shards.iter().map(|shard| shard.start).eq(starts), "{len}: {shards:?}");
                assert_eq!(shards.last().map_or(0, |shard| shard.end), len);
                assert!(shards.iter().all(|shard| shard.start % 16 == 0), "{len}: {shards:?}");
            }
        }
    }
}
