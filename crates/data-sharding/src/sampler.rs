//! The order of an epoch's samples: one for all ranks. How it is cut into batches is in `layout`.

use std::sync::Arc;

use crate::random::{Draws, domain};

/// In which order an epoch visits the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Another permutation each epoch.
    Shuffled,
    /// As stored, every epoch.
    Sequential,
}

/// Gives every epoch its order.
#[derive(Clone, Debug)]
pub struct Sampler {
    samples: u32,
    seed: u64,
    order: Order,
}

impl Sampler {
    /// For a source of `samples` samples.
    ///
    /// # Panics
    /// If there are more than `u32::MAX` samples, which no [`Source`](crate::Source) of [`open`](crate::open)
    /// has.
    #[must_use]
    pub fn new(samples: usize, seed: u64, order: Order) -> Self {
        let samples = u32::try_from(samples).expect("sample indices are 32 bits wide");
        Sampler { samples, seed, order }
    }

    /// Indices of all samples in the order of epoch `epoch`: a pure function of seed, epoch and number of
    /// samples.
    ///
    /// [`Order::Shuffled`] can be reproduced by other tools. Numbers come from ChaCha8 (64-bit counter and
    /// stream 0) whose 32-byte key is four little-endian `u64`: seed, epoch, number of samples, and XXH3-64
    /// of `sample order` with its lower 32 bits cleared (0x0beaecc700000000). `below(n)` takes the next 64
    /// bits x of the key stream (little endian) again and again until (x·n mod 2^64) ≥ (2^64 mod n), and
    /// gives x·n div 2^64. The order is the identity, in which for i = samples-1 down to 1 the entries i and
    /// `below(i + 1)` are swapped.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Arc<[u32]> {
        let mut order: Arc<[u32]> = (0..self.samples).collect();
        if self.order == Order::Shuffled {
            let mut draws =
                Draws::new([self.seed, epoch, u64::from(self.samples), domain("sample order", 0)]);
            let entries = Arc::make_mut(&mut order);
            for last in (1..entries.len()).rev() {
                entries.swap(last, draws.below(last as u64 + 1) as usize);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_of_its_own() {
        let sampler = Sampler::new(1000, 5, Order::Shuffled);
        let first = sampler.epoch(0);
        for order in [&first, &sampler.epoch(1), &Sampler::new(1000, 6, Order::Shuffled).epoch(0)] {
            let mut sorted = order.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        }
        assert_ne!(first, sampler.epoch(1), "epochs differ");
        assert_ne!(first, Sampler::new(1000, 6, Order::Shuffled).epoch(0), "seeds differ");
        assert_eq!(first, Sampler::new(1000, 5, Order::Shuffled).epoch(0), "equal identities agree");
    }

    #[test]
    fn orders_are_those_of_an_independent_implementation() {
        // From a second implementation, in another language, of the description at `epoch`.
        assert_eq!(*Sampler::new(12, 42, Order::Shuffled).epoch(3), [6, 2, 11, 8, 5, 1, 7, 10, 4, 0, 9, 3]);
        let order = Sampler::new(60_000, 1, Order::Shuffled).epoch(0);
        assert_eq!(order[..6], [18914, 13431, 33388, 57685, 23449, 45409]);
        assert_eq!(order[59_997..], [36016, 26526, 17927]);
    }

    #[test]
    fn sequential_order_is_that_of_the_files() {
        let sampler = Sampler::new(5, 9, Order::Sequential);
        assert_eq!(*sampler.epoch(3), [0, 1, 2, 3, 4]);
        assert!(Sampler::new(0, 9, Order::Shuffled).epoch(0).is_empty());
    }

    #[test]
    fn first_places_are_uniform_over_epochs() {
        let sampler = Sampler::new(8, 11, Order::Shuffled);
        let mut counts = [0_i64; 8];
        for epoch in 0..8000 {
            counts[sampler.epoch(epoch)[0] as usize] += 1;
        }
        // Standard deviation of each count is about 30.
        assert!(counts.iter().all(|count| (count - 1000).abs() < 150), "{counts:?}");
    }
}
