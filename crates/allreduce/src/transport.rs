//! Messages between pairs of ranks, and the collective operations that need no more than them. Summation is
//! [`crate::ordered`]'s.

use std::iter;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::CommError;

/// A kind of element that messages carry: plain numbers, so that any bytes are a value.
pub(crate) trait Element: Copy + Default + Send + FromBytes + IntoBytes + Immutable + 'static {}
impl Element for u8 {}
impl Element for f32 {}

/// Messages between this rank and others. Messages from one rank to another arrive in the order in which they
/// were sent.
pub(crate) trait Transport {
    fn rank(&self) -> usize;
    fn world_size(&self) -> usize;

    /// Sends each slice to the rank beside it, receives into each slice from the rank beside it, all at the
    /// same time, and returns when all is done. No slice is empty, no rank is this one.
    fn exchange<'a, E: Element>(
        &mut self,
        outgoing: impl Iterator<Item = (usize, &'a [E])>,
        incoming: impl Iterator<Item = (usize, &'a mut [E])>,
    ) -> Result<(), CommError>;
}

/// Replaces `values` by those of rank `root`, along a binomial tree.
pub(crate) fn broadcast<E: Element>(
    transport: &mut impl Transport,
    values: &mut [E],
    root: usize,
) -> Result<(), CommError> {
    let (rank, world_size) = (transport.rank(), transport.world_size());
    if root >= world_size {
        return Err(CommError::NoSuchRank { root, world_size });
    }
    if values.is_empty() {
        return Ok(());
    }
    // Counted from the root, the parent is this place without its lowest set bit, and the children are this
    // place with one bit set below that.
    let place = (rank + world_size - root) % world_size;
    let at = |place: usize| (place + root) % world_size;
    let below = match place {
        0 => world_size.next_power_of_two().trailing_zeros(),
        _ => place.trailing_zeros(),
    };
    if place != 0 {
        transport.exchange(iter::empty(), iter::once((at(place & (place - 1)), &mut *values)))?;
    }
    let children = (0..below).rev().map(|bit| place | 1 << bit).filter(|&child| child < world_size);
    let values: &[E] = values;
    transport.exchange(children.map(|child| (at(child), values)), iter::empty())
}

/// The bytes of every rank, by rank.
pub(crate) fn all_gather(transport: &mut impl Transport, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
    let (rank, world_size) = (transport.rank(), transport.world_size());
    let others = move || (0..world_size).filter(move |&peer| peer != rank);

    let length = (bytes.len() as u64).to_le_bytes();
    let mut lengths = vec![length; world_size];
    transport.exchange(
        others().map(|peer| (peer, &length[..])),
        lengths
            .iter_mut()
            .enumerate()
            .filter(|&(peer, _)| peer != rank)
            .map(|(peer, length)| (peer, &mut length[..])),
    )?;

    let mut all: Vec<Vec<u8>> =
        lengths.iter().map(|&length| vec![0; u64::from_le_bytes(length) as usize]).collect();
    all[rank].copy_from_slice(bytes);
    transport.exchange(
        others().map(|peer| (peer, bytes)).filter(|_| !bytes.is_empty()),
        all.iter_mut()
            .enumerate()
            .filter(|(peer, bytes)| *peer != rank && !bytes.is_empty())
            .map(|(peer, bytes)| (peer, &mut bytes[..])),
    )?;
    Ok(all)
}

/// Returns when every rank has come here: after round k a rank has heard, directly or not, of 2^(k+1) ranks.
pub(crate) fn barrier(transport: &mut impl Transport) -> Result<(), CommError> {
    let (rank, world_size) = (transport.rank(), transport.world_size());
    let mut distance = 1;
    while distance < world_size {
        let mut received = [0u8];
        transport.exchange(
            iter::once(((rank + distance) % world_size, &[0u8][..])),
            iter::once(((rank + world_size - distance) % world_size, &mut received[..])),
        )?;
        distance *= 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::in_process::on_each_rank;

    const WORLD_SIZES: [usize; 6] = [1, 2, 3, 4, 5, 8];

    #[test]
    fn broadcast_brings_the_values_of_any_root_to_every_rank() {
        for world_size in WORLD_SIZES {
            for root in 0..world_size {
                for len in [0, 1, 100] {
                    let results = on_each_rank(world_size, |transport| {
                        let mut values = vec![transport.rank() as f32; len];
                        broadcast(transport, &mut values, root).map(|()| values)
                    });
                    assert!(
                        results.iter().all(|values| values == &Ok(vec![root as f32; len])),
                        "{len} values from rank {root} of {world_size}"
                    );
                }
            }
        }
    }

    #[test]
    fn broadcast_from_a_rank_that_does_not_exist_is_refused() {
        let results = on_each_rank(2, |transport| broadcast(transport, &mut [0.0f32], 2));
        assert_eq!(results, vec![Err(CommError::NoSuchRank { root: 2, world_size: 2 }); 2]);
    }

    #[test]
    fn all_gather_keeps_lengths_and_order() {
        for world_size in WORLD_SIZES {
            let of = |rank: usize| vec![rank as u8; (rank * 7) % 5];
            let results = on_each_rank(world_size, |transport| all_gather(transport, &of(transport.rank())));
            let expected: Vec<_> = (0..world_size).map(of).collect();
            assert!(results.iter().all(|all| all.as_ref() == Ok(&expected)), "{world_size} ranks");
        }
    }

    #[test]
    fn no_rank_leaves_a_barrier_before_the_last_has_come() {
        for world_size in WORLD_SIZES {
            let come = AtomicUsize::new(0);
            let seen = on_each_rank(world_size, |transport| {
                if transport.rank() == world_size - 1 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                come.fetch_add(1, Ordering::SeqCst);
                barrier(transport).map(|()| come.load(Ordering::SeqCst))
            });
            assert_eq!(seen, vec![Ok(world_size); world_size]);
        }
    }
}
