//! Random numbers as a pure function of an identity. No generator outlives the thing it was made for.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use xxhash_rust::xxh3::xxh3_64;

/// The stream of numbers that belongs to an identity of four integers: ChaCha with 8 rounds, counter and
/// stream 0, whose 32-byte key is the four integers, little endian, in order.
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    pub(crate) fn new(identity: [u64; 4]) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip(identity) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Draws(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `0..bound`, without bias (Lemire 2019, arXiv 1805.10941): the upper 64 bits of x·bound, x
    /// being the next 64 bits of the stream (little endian), where draws whose lower 64 bits are below 2^64
    /// mod bound are thrown away.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let refused = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            if product as u64 >= refused {
                return (product >> 64) as u64;
            }
        }
    }

    /// Uniform in `low..high`: the upper 53 of the next 64 bits, as a fraction of 2^53, scaled.
    pub(crate) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64)
    }

    /// Normal with mean 0 and standard deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// From any distribution of `rand_distr`.
    pub(crate) fn sample(&mut self, distribution: &impl Distribution<f64>) -> f64 {
        distribution.sample(&mut self.0)
    }

    /// Brings `items` into an order in which every permutation is equally likely: for i from the last down to
    /// 1 the items i and `below(i + 1)` are swapped.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// The last word of an identity: the upper half of XXH3-64 of what is drawn, above a repetition.
pub(crate) fn domain(name: &str, repetition: u32) -> u64 {
    (xxh3_64(name.as_bytes()) & !0xffff_ffff) | u64::from(repetition)
}
