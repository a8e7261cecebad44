//! Which sample goes into which shard: a pure function of the listing and the options, so that any shard can be made
//! at any time, by any thread, with the same bytes.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3Default;

use super::listing::{Listing, Sample};
use super::options::PrepareOptions;
use crate::error::DataError;
use crate::random::{Draws, domain};
use crate::shards::archive::stored_bytes;
use crate::shards::manifest::Origin;

/// The order of the samples and where shards begin.
pub(crate) struct Plan {
    /// Indices into the listing.
    order: Vec<u32>,
    /// What each shard holds of `order`.
    shards: Vec<Range<usize>>,
    pub(crate) origin: Origin,
    /// The same, if no file were left out. What has been made so far under this plan is made under the other too.
    pub(crate) without_skipping: Origin,
}

impl Plan {
    /// The order is a Fisher-Yates shuffle, as [`Sampler::epoch`](crate::Sampler::epoch) describes it, with the
    /// identity (seed, 0, number of samples, `shard order`): classes mix, so that reading a shard front to back gives
    /// useful batches. A shard ends before the sample with which it would exceed the size asked for, counted
    /// with the images as they are in the source.
    pub(crate) fn new(listing: &Listing, options: &PrepareOptions) -> Result<Self, DataError> {
        let count = listing.samples.len();
        let too_many = |_| DataError::OutOfRange {
            name: "number of samples",
            value: count as u64,
            expected: "fewer than 2^32".into(),
        };
        let mut order: Vec<u32> = (0..u32::try_from(count).map_err(too_many)?).collect();
        let mut draws = Draws::new([options.seed, 0, count as u64, domain("shard order", 0)]);
        for last in (1..count).rev() {
            order.swap(last, draws.below(last as u64 + 1) as usize);
        }

        let mut shards = Vec::new();
        let (mut begin, mut bytes) = (0, 0);
        for (place, &sample) in order.iter().enumerate() {
            let more = stored_bytes(listing.samples[sample as usize].length);
            if place > begin && bytes + more > options.shard_bytes {
                shards.push(begin..place);
                (begin, bytes) = (place, 0);
            }
            bytes += more;
        }
        if begin < count {
            shards.push(begin..count);
        }

        let images = options.images();
        let mut hash = Xxh3Default::new();
        let text = |hash: &mut Xxh3Default, text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text(&mut hash, &listing.source);
        text(&mut hash, &images);
        for number in [options.seed, options.shard_bytes] {
            hash.update(&number.to_le_bytes());
        }
        listing.classes.iter().for_each(|class| text(&mut hash, class));
        for &sample in &order {
            let sample = &listing.samples[sample as usize];
            text(&mut hash, &sample.name);
            hash.update(&sample.length.to_le_bytes());
            hash.update(&sample.label.to_le_bytes());
        }
        let origin = |skip_bad: bool| {
            let mut hash = hash.clone();
            hash.update(&[skip_bad.into()]);
            Origin {
                source: listing.source.clone(),
                seed: options.seed,
                shard_bytes: options.shard_bytes,
                images: images.clone(),
                plan: format!("{:032x}", hash.digest128()),
            }
        };
        Ok(Plan { order, shards, origin: origin(options.skip_bad), without_skipping: origin(false) })
    }

    pub(crate) fn shard_names(&self) -> Vec<String> {
        (0..self.shards.len()).map(|shard| format!("shard-{shard:06}.tar")).collect()
    }

    /// The samples of a shard, in order, each with its index in the listing.
    pub(crate) fn samples<'a>(
        &'a self,
        listing: &'a Listing,
        shard: usize,
    ) -> impl Iterator<Item = (u32, &'a Sample)> {
        let order = &self.order[self.shards[shard].clone()];
        order.iter().map(|&sample| (sample, &listing.samples[sample as usize]))
    }

    /// Bytes of all shards, if images stay as they are.
    pub(crate) fn bytes(&self, listing: &Listing) -> u64 {
        let samples = listing.samples.iter().map(|sample| stored_bytes(sample.length));
        samples.sum::<u64>() + 1024 * self.shards.len() as u64
    }
}
