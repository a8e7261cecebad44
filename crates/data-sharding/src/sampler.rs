//! The order of an epoch's samples: one for all ranks. How it is cut into batches is in `layout`.

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::augment::SampleKey;
use crate::random::{Draws, domain};

/// In which order an epoch visits the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Another permutation of everything each epoch.
    Shuffled,
    /// As stored, every epoch.
    Sequential,
    /// For disks that read in sequence: the samples are cut into blocks of `block` neighbours, the blocks are
    /// permuted, and each run of `buffer` blocks is permuted sample by sample. At any time no more than
    /// `buffer` places of the files are read, each of them forwards.
    Block {
        /// Samples in a block, 1 or more.
        block: u32,
        /// Blocks that are mixed with each other, 1 or more.
        buffer: u32,
    },
}

/// Gives every epoch its order.
#[derive(Clone, Debug)]
pub struct Sampler {
    samples: Samples,
    seed: u64,
    order: Order,
    repetitions: u32,
}

/// Which samples of the source are visited.
#[derive(Clone, Debug)]
enum Samples {
    All(u32),
    Some(Arc<[u32]>),
}

impl Sampler {
    /// For a source of `samples` samples.
    ///
    /// # Panics
    /// If there are more than `u32::MAX` samples, which no source has.
    #[must_use]
    pub fn new(samples: usize, seed: u64, order: Order) -> Self {
        let samples = u32::try_from(samples).expect("sample indices are 32 bits wide");
        Sampler { samples: Samples::All(samples), seed, order, repetitions: 1 }
    }

    /// Visits only these samples of the source, given in ascending order.
    #[must_use]
    pub fn within(mut self, subset: Arc<[u32]>) -> Self {
        self.samples = Samples::Some(subset);
        self
    }

    /// Visits every sample so many times in a row, each time augmented differently (batch augmentation, Hoffer
    /// et al., arXiv 1901.09335).
    #[must_use]
    pub fn repeated(mut self, repetitions: u32) -> Self {
        self.repetitions = repetitions.max(1);
        self
    }

    /// Visits in an epoch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.distinct() as usize * self.repetitions as usize
    }

    /// Whether there is nothing to visit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Different samples in an epoch.
    fn distinct(&self) -> u32 {
        match &self.samples {
            Samples::All(samples) => *samples,
            Samples::Some(subset) => subset.len() as u32,
        }
    }

    /// The visits of epoch `epoch`: a pure function of seed, epoch, the samples and the order.
    ///
    /// [`Order::Shuffled`] can be reproduced by other tools. Numbers come from ChaCha8 (64-bit counter and
    /// stream 0) whose 32-byte key is four little-endian `u64`: seed, epoch, number of samples, and XXH3-64
    /// of `sample order` with its lower 32 bits cleared (0x0beaecc700000000). `below(n)` takes the next 64
    /// bits x of the key stream (little endian) again and again until (x·n mod 2^64) ≥ (2^64 mod n), and
    /// gives x·n div 2^64. The order is the identity, in which for i = samples-1 down to 1 the entries i and
    /// `below(i + 1)` are swapped. [`Order::Block`] swaps in the same way, from one such stream keyed with
    /// `block order`: first the blocks, then the samples of each buffer in turn.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> EpochOrder {
        let count = self.distinct();
        let mut samples: Arc<[u32]> = match &self.samples {
            Samples::All(_) => (0..count).collect(),
            Samples::Some(subset) => Arc::clone(subset),
        };
        let draws = |name| Draws::new([self.seed, epoch, u64::from(count), domain(name, 0)]);
        match self.order {
            Order::Sequential => {}
            Order::Shuffled => draws("sample order").shuffle(Arc::make_mut(&mut samples)),
            Order::Block { block, buffer } => {
                samples =
                    in_blocks(&samples, block.max(1) as usize, buffer.max(1) as usize, draws("block order"));
            }
        }
        EpochOrder { epoch, repetitions: self.repetitions, samples }
    }
}

fn in_blocks(samples: &[u32], block: usize, buffer: usize, mut draws: Draws) -> Arc<[u32]> {
    let mut blocks: Vec<&[u32]> = samples.chunks(block).collect();
    draws.shuffle(&mut blocks);
    let mut order = Vec::with_capacity(samples.len());
    for buffer in blocks.chunks(buffer) {
        let begin = order.len();
        buffer.iter().for_each(|block| order.extend_from_slice(block));
        draws.shuffle(&mut order[begin..]);
    }
    order.into()
}

/// The visits of one epoch, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    epoch: u64,
    repetitions: u32,
    samples: Arc<[u32]>,
}

impl EpochOrder {
    /// The samples in the order of their first visits, each once.
    #[must_use]
    pub fn samples(&self) -> &[u32] {
        &self.samples
    }

    /// The epoch whose order this is.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The visits at some positions of the epoch.
    ///
    /// # Panics
    /// If a position lies beyond the epoch's end.
    #[must_use]
    pub fn keys(&self, positions: Range<usize>) -> Vec<SampleKey> {
        let repetitions = self.repetitions as usize;
        positions
            .map(|position| SampleKey {
                sample: self.samples[position / repetitions],
                epoch: self.epoch,
                repetition: (position % repetitions) as u32,
            })
            .collect()
    }
}

/// The same share of every class: of a class with n samples the `ceil(fraction·n)` whose XXH3-64 of their index
/// (4 bytes, little endian), seeded with `seed`, is smallest. So a smaller fraction is part of a larger one, and
/// no sample's place depends on other classes. `labels` gives the class of each sample in turn.
#[must_use]
pub fn class_balanced_subset(
    labels: impl Iterator<Item = u32>,
    classes: usize,
    fraction: f64,
    seed: u64,
) -> Arc<[u32]> {
    let mut by_class: Vec<Vec<(u64, u32)>> = vec![Vec::new(); classes];
    for (sample, label) in (0_u32..).zip(labels) {
        if let Some(class) = by_class.get_mut(label as usize) {
            class.push((xxh3_64_with_seed(&sample.to_le_bytes(), seed), sample));
        }
    }
    let mut subset = Vec::new();
    for class in &mut by_class {
        class.sort_unstable();
        let kept = (fraction.clamp(0.0, 1.0) * class.len() as f64).ceil() as usize;
        subset.extend(class.iter().take(kept).map(|&(_, sample)| sample));
    }
    subset.sort_unstable();
    subset.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(samples: &[u32]) -> Vec<u32> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        sorted
    }

    #[test]
    fn every_epoch_is_a_permutation_of_its_own() {
        for order in [
            Order::Shuffled,
            Order::Block { block: 7, buffer: 3 },
            Order::Block { block: 1, buffer: 1 },
            Order::Block { block: 2000, buffer: 4 },
        ] {
            let sampler = Sampler::new(1000, 5, order);
            let first = sampler.epoch(0);
            for other in [&first, &sampler.epoch(1), &Sampler::new(1000, 6, order).epoch(0)] {
                assert_eq!(sorted(other.samples()), (0..1000).collect::<Vec<u32>>(), "{order:?}");
            }
            assert_ne!(first.samples(), sampler.epoch(1).samples(), "epochs differ");
            assert_ne!(first, Sampler::new(1000, 6, order).epoch(0), "seeds differ");
            assert_eq!(first, Sampler::new(1000, 5, order).epoch(0), "equal identities agree");
        }
    }

    #[test]
    fn orders_are_those_of_an_independent_implementation() {
        // From a second implementation, in another language, of the description at `epoch`.
        let order = |samples, seed, epoch| Sampler::new(samples, seed, Order::Shuffled).epoch(epoch);
        assert_eq!(order(12, 42, 3).samples(), [6, 2, 11, 8, 5, 1, 7, 10, 4, 0, 9, 3]);
        let order = order(60_000, 1, 0);
        assert_eq!(order.samples()[..6], [18914, 13431, 33388, 57685, 23449, 45409]);
        assert_eq!(order.samples()[59_997..], [36016, 26526, 17927]);
    }

    #[test]
    fn sequential_order_is_that_of_the_files() {
        let sampler = Sampler::new(5, 9, Order::Sequential);
        assert_eq!(sampler.epoch(3).samples(), [0, 1, 2, 3, 4]);
        assert!(Sampler::new(0, 9, Order::Shuffled).epoch(0).samples().is_empty());
        assert!(Sampler::new(0, 9, Order::Block { block: 4, buffer: 2 }).epoch(0).samples().is_empty());
    }

    #[test]
    fn first_places_are_uniform_over_epochs() {
        for order in [Order::Shuffled, Order::Block { block: 2, buffer: 2 }] {
            let sampler = Sampler::new(8, 11, order);
            let mut counts = [0_i64; 8];
            for epoch in 0..8000 {
                counts[sampler.epoch(epoch).samples()[0] as usize] += 1;
            }
            // Standard deviation of each count is about 30.
            assert!(counts.iter().all(|count| (count - 1000).abs() < 150), "{order:?} {counts:?}");
        }
    }

    #[test]
    fn a_buffer_holds_whole_blocks_and_mixes_them() {
        let (block, buffer) = (10, 4);
        let order = Sampler::new(395, 3, Order::Block { block, buffer }).epoch(2);
        let mut mixed = 0;
        // The short last block may stand in any buffer, so positions are followed rather than cut.
        let mut rest = order.samples();
        while !rest.is_empty() {
            let blocks: std::collections::BTreeSet<u32> = rest.iter().take(1).map(|s| s / block).collect();
            let mut seen = blocks;
            let mut taken = 0;
            for sample in rest {
                if seen.len() == buffer as usize && !seen.contains(&(sample / block)) {
                    break;
                }
                seen.insert(sample / block);
                taken += 1;
            }
            let whole: u32 = seen.iter().map(|&b| block.min(395 - b * block)).sum();
            assert_eq!(taken, whole, "a buffer ends when its blocks are used up");
            mixed += usize::from(!rest[..taken as usize].is_sorted());
            rest = &rest[taken as usize..];
        }
        assert!(mixed >= 9, "buffers are shuffled");
    }

    #[test]
    fn repetitions_follow_each_other_and_tell_themselves_apart() {
        let plain = Sampler::new(50, 5, Order::Shuffled);
        let repeated = plain.clone().repeated(3);
        assert_eq!((plain.len(), repeated.len()), (50, 150));
        assert_eq!(repeated.epoch(4).samples(), plain.epoch(4).samples());
        let keys = repeated.epoch(4).keys(0..150);
        for (position, key) in keys.iter().enumerate() {
            let sample = plain.epoch(4).samples()[position / 3];
            assert_eq!(*key, SampleKey { sample, epoch: 4, repetition: position as u32 % 3 });
        }
        assert_eq!(repeated.epoch(4).keys(7..9), keys[7..9]);
    }

    #[test]
    fn subsets_keep_the_share_of_every_class_and_are_nested() {
        // Class c has 10·(c+1) samples, interleaved.
        let labels: Vec<u32> =
            (0..100).filter_map(|i| [0, 1, 1, 2, 2, 2, 3, 3, 3, 3].get(i % 10).copied()).collect();
        let subset = |fraction, seed| class_balanced_subset(labels.iter().copied(), 4, fraction, seed);
        let count = |subset: &[u32]| -> Vec<usize> {
            (0..4).map(|class| subset.iter().filter(|&&s| labels[s as usize] == class).count()).collect()
        };
        for (fraction, counts) in
            [(0.0, [0, 0, 0, 0]), (0.01, [1, 1, 1, 1]), (0.25, [3, 5, 8, 10]), (1.0, [10, 20, 30, 40])]
        {
            let subset = subset(fraction, 1);
            assert_eq!(count(&subset), counts, "{fraction}");
            assert!(subset.is_sorted());
        }
        let (small, large) = (subset(0.2, 7), subset(0.5, 7));
        assert!(small.iter().all(|sample| large.contains(sample)));
        assert_ne!(subset(0.2, 7), subset(0.2, 8), "seeds choose differently");
        let order = Sampler::new(100, 1, Order::Shuffled).within(Arc::clone(&small)).epoch(0);
        assert_eq!(sorted(order.samples()), small.to_vec());
        assert_ne!(order.samples(), &*small);
    }
}
