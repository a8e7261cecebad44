//! Initial weights as a pure function of the seed and the parameter's name (design rule 1).

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use xxhash_rust::xxh3::xxh3_64;

/// The distribution of a parameter's initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    Constant(f32),
    /// Mean 0.
    Normal {
        std: f64,
    },
    Uniform {
        low: f64,
        high: f64,
    },
}

/// Tells this use of the seed from every other one.
const DOMAIN: u64 = u64::from_le_bytes(*b"weights\0");

impl Init {
    /// `len` values for the parameter `name`.
    pub(crate) fn draw(self, len: usize, seed: u64, name: &str) -> Vec<f32> {
        let mut generator = keyed(&[seed, xxh3_64(name.as_bytes()), DOMAIN, 0]);
        match self {
            Init::Constant(value) => vec![value; len],
            Init::Normal { std } => (0..len)
                .map(|_| {
                    let value: f64 = StandardNormal.sample(&mut generator);
                    (std * value) as f32
                })
                .collect(),
            Init::Uniform { low, high } => (0..len)
                .map(|_| {
                    let value: f64 = StandardUniform.sample(&mut generator);
                    (low + (high - low) * value) as f32
                })
                .collect(),
        }
    }
}

/// `len` standard normal values: a function of the seed, a name, and the use that `domain` tells from all others.
#[must_use]
pub fn normal_values(len: usize, seed: u64, name: &str, domain: [u8; 8]) -> Vec<f32> {
    let mut generator = keyed(&[seed, xxh3_64(name.as_bytes()), u64::from_le_bytes(domain), 0]);
    StandardNormal.sample_iter(&mut generator).take(len).collect()
}

/// A generator whose whole key is the identity of what is drawn.
pub(crate) fn keyed(identity: &[u64; 4]) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip(identity) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
