//! How long a step takes on many ranks, from the time one needs alone and the speed of the links. Pure
//! arithmetic; nothing is measured here.
//!
//! The number of images a rank stays the same (weak scaling). With n ranks, g of them on each of h hosts, a
//! bucket of S bytes, and links with latency a and rate b (a', b' within a host):
//!
//! ```text
//! ring          2 (n-1) a + 2 (n-1)/n S/b                    every host's link carries the whole ring once
//! tree          2 log2(n) a + 2 (n-1)/n S/b                  NCCL's double binary tree
//! ordered       2 (n-1) a + 2 (n-g)/n g S/b                  g ranks of a host send a slice to each of n-g others
//! hierarchical  2 (g-1) a' + 2 (g-1)/g F/b'                  within hosts, F bytes of fp32
//!               + 2 (h-1) a + 2 (h-1)/h S/b                  and an ordered sum among them
//! ```
//! On one host the links within it take the place of the network's, and the ordered sum moves 2 (n-1)/n S/b'. The messages
//! of an ordered sum to n-1 others count as if one left after the other, which is the worst case.
//!
//! Backward completes gradients in proportion to the multiply-adds behind them. With overlap a bucket's exchange
//! begins when its last gradient is complete in the last micro batch and the bucket before has been exchanged;
//! without, when backward has ended. What has not ended when backward ends makes the step longer.
//!
//! `optimizer.shard` cuts each exchange in two halves. The first is hidden as above; the second gathers new weights
//! while the next forward pass runs, the last bucket first, and forward waits where it comes to a bucket that is not
//! there. `model.sync_norm` sums three times a layer (C, C and 2C values of C channels), which nothing hides.

use std::fmt::Write;

use model::Network;

use crate::config::{CommConfig, Compression, Config, Reduce};
use crate::flat::{FlatLayout, Placed};
use crate::power_sgd;

/// A point-to-point connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Time until the first byte arrives.
    pub latency_seconds: f64,
    /// Rate of a long message.
    pub bytes_per_second: f64,
}

/// How a sum travels; the module's text has the formulae.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// NCCL's and MPI's for long messages.
    Ring,
    /// NCCL's for short messages and many hosts.
    Tree,
    /// Ours, regardless of hosts.
    Ordered,
    /// Ours where each of several hosts has the same power of two of ranks.
    Hierarchical,
}

/// The machines, and what a rank does alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    /// Step of one rank without any exchange.
    pub step_seconds: f64,
    /// Share of backward in it.
    pub backward_share: f64,
    /// Ranks on each host.
    pub ranks_a_host: usize,
    /// Between ranks of one host.
    pub within: Link,
    /// Of each host to the others.
    pub between: Link,
}

impl Algorithm {
    /// What `comm.reduce` comes to with so many ranks on each host.
    pub(crate) fn configured(comm: &CommConfig, ranks_a_host: usize) -> Algorithm {
        match comm.reduce {
            Reduce::Ordered if ranks_a_host.is_power_of_two() => Algorithm::Hierarchical,
            Reduce::Ordered | Reduce::FlatOrdered => Algorithm::Ordered,
            Reduce::Mpi | Reduce::Nccl => Algorithm::Ring,
        }
    }

    /// As the command line calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Ring => "ring",
            Algorithm::Tree => "tree",
            Algorithm::Ordered => "ordered",
            Algorithm::Hierarchical => "hierarchical",
        }
    }
}

/// What a rank exchanges in a step, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Load {
    buckets: Vec<BucketLoad>,
    algorithm: Algorithm,
    /// Bytes of a value between ranks that do not share memory.
    wire_bytes: f64,
    /// Micro batches of a rank, in the last of which buckets leave.
    micro_batches: f64,
    overlap: bool,
    /// Whether new weights are gathered after the update.
    sharded: bool,
    /// Values of each sum within a micro batch's forward and backward pass.
    norm_sums: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct BucketLoad {
    values: f64,
    /// Share of the last micro batch's backward that has passed when it is complete.
    ready: f64,
}

impl Load {
    pub(crate) fn new(
        network: &Network,
        layout: &FlatLayout,
        config: &Config,
        micro_batches: usize,
        algorithm: Algorithm,
    ) -> Self {
        let comm = &config.comm;
        let total = network.macs().max(1) as f64;
        let macs = |placed: &Placed| network.parameters()[placed.parameter].macs;
        let mut passed = 0;
        // After the first steps, in which they travel as they are.
        let rank = comm.power_sgd_rank.filter(|_| comm.compression == Compression::PowerSgd);
        let saved = |placed: &Placed| {
            let shape = &network.parameters()[placed.parameter].shape;
            rank.map_or(0, |rank| placed.len - power_sgd::compressed_len(shape, rank))
        };
        let buckets = (layout.buckets(comm).into_iter())
            .map(|bucket| {
                let segments = &layout.segments[bucket.segments];
                passed += segments.iter().map(macs).sum::<u64>();
                let values = bucket.range.len() - segments.iter().map(saved).sum::<usize>();
                BucketLoad { values: values as f64, ready: passed as f64 / total }
            })
            .collect();
        let norms = network.norms().iter().filter(|_| config.model.sync_norm);
        let norm_sums =
            norms.flat_map(|norm| [1, 1, 2].map(|times| (times * norm.channels) as f64)).collect();
        Load {
            buckets,
            algorithm,
            wire_bytes: comm.compression.wire().bytes() as f64,
            micro_batches: micro_batches as f64,
            overlap: comm.overlap.exchanges_early(),
            sharded: config.optimizer.shard,
            norm_sums,
        }
    }
}

impl Cluster {
    /// Time to sum `values` over `ranks`.
    fn exchange_seconds(&self, load: &Load, ranks: usize, values: f64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        let each = self.ranks_a_host.min(ranks);
        let (n, g) = (ranks as f64, each as f64);
        let hosts = n / g;
        let one_host = ranks <= self.ranks_a_host;
        let link = if one_host { self.within } else { self.between };
        let bytes = values * load.wire_bytes;
        let share = |members: f64| 2.0 * (members - 1.0) / members;
        let seconds = |link: Link, messages: f64, bytes: f64| {
            messages * link.latency_seconds + bytes / link.bytes_per_second
        };
        match load.algorithm {
            Algorithm::Ring => seconds(link, 2.0 * (n - 1.0), share(n) * bytes),
            Algorithm::Tree => seconds(link, 2.0 * n.log2(), share(n) * bytes),
            Algorithm::Ordered | Algorithm::Hierarchical if one_host => {
                seconds(link, 2.0 * (n - 1.0), share(n) * bytes)
            }
            Algorithm::Ordered => seconds(link, 2.0 * (n - 1.0), 2.0 * (n - g) / n * g * bytes),
            Algorithm::Hierarchical => {
                let fp32_bytes = values * size_of::<f32>() as f64;
                let within = match each {
                    1 => 0.0,
                    _ => seconds(self.within, 2.0 * (g - 1.0), share(g) * fp32_bytes),
                };
                within + seconds(self.between, 2.0 * (hosts - 1.0), share(hosts) * bytes)
            }
        }
    }

    /// Time that a bucket travels beside backward, and with shards again beside forward.
    fn part_seconds(&self, load: &Load, ranks: usize, bucket: &BucketLoad) -> f64 {
        self.exchange_seconds(load, ranks, bucket.values) / if load.sharded { 2.0 } else { 1.0 }
    }

    /// All that is exchanged in a step.
    fn exchanged_seconds(&self, load: &Load, ranks: usize) -> f64 {
        let values = load.buckets.iter().map(|bucket| bucket.values);
        values.map(|values| self.exchange_seconds(load, ranks, values)).sum::<f64>()
            + self.norm_seconds(load, ranks)
    }

    fn norm_seconds(&self, load: &Load, ranks: usize) -> f64 {
        load.norm_sums.iter().map(|&values| self.exchange_seconds(load, ranks, values)).sum()
    }

    /// Length of a step on `ranks`.
    pub(crate) fn step_seconds(&self, load: &Load, ranks: usize) -> f64 {
        // Backward of the last micro batch.
        let window = self.step_seconds * self.backward_share / load.micro_batches;
        let exchanged = load.buckets.iter().fold(0.0_f64, |free, bucket| {
            let ready = if load.overlap { bucket.ready } else { 1.0 };
            free.max(ready * window) + self.part_seconds(load, ranks, bucket)
        });
        let exposed = (exchanged - window).max(0.0);
        self.step_seconds + exposed + self.gather_seconds(load, ranks) + self.norm_seconds(load, ranks)
    }

    /// How much longer the next forward pass takes for the weights it waits for.
    fn gather_seconds(&self, load: &Load, ranks: usize) -> f64 {
        if !load.sharded {
            return 0.0;
        }
        // Forward of the first micro batch, which takes as large a share for each bucket as backward does.
        let window = match load.overlap {
            true => self.step_seconds * (1.0 - self.backward_share) / load.micro_batches,
            false => 0.0,
        };
        let before = |index: usize| index.checked_sub(1).map_or(0.0, |index| load.buckets[index].ready);
        let (mut gathered, mut computed) = (0.0_f64, 0.0_f64);
        for (index, bucket) in load.buckets.iter().enumerate().rev() {
            gathered += self.part_seconds(load, ranks, bucket);
            computed = computed.max(gathered) + (bucket.ready - before(index)) * window;
        }
        computed - window
    }

    /// A table from one rank to `most`, doubling.
    pub(crate) fn table(&self, load: &Load, images_a_rank: usize, most: usize) -> String {
        let mut text = format!(
            "{:>8}{:>16}{:>14}{:>14}{:>12}\n",
            "ranks", "exchange, ms", "step, ms", "images/s", "efficiency"
        );
        let counts = std::iter::successors(Some(1_usize), |ranks| ranks.checked_mul(2));
        for ranks in counts.take_while(|&ranks| ranks <= most) {
            let step = self.step_seconds(load, ranks);
            let exchange = self.exchanged_seconds(load, ranks);
            let _ = writeln!(
                text,
                "{ranks:>8}{:>16.2}{:>14.2}{:>14.0}{:>11.1}%",
                1e3 * exchange,
                1e3 * step,
                (images_a_rank * ranks) as f64 / step,
                100.0 * self.step_seconds / step
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        Cluster {
            step_seconds: 0.3,
            backward_share: 0.5,
            ranks_a_host: 4,
            within: Link { latency_seconds: 1e-6, bytes_per_second: 100e9 },
            between: Link { latency_seconds: 10e-6, bytes_per_second: 10e9 },
        }
    }

    /// fp32 values of one micro batch.
    fn load(algorithm: Algorithm, buckets: &[(f64, f64)]) -> Load {
        let buckets =
            buckets.iter().map(|&(bytes, ready)| BucketLoad { values: bytes / 4.0, ready }).collect();
        Load {
            buckets,
            algorithm,
            wire_bytes: 4.0,
            micro_batches: 1.0,
            overlap: true,
            sharded: false,
            norm_sums: Vec::new(),
        }
    }

    #[test]
    fn formulae_give_what_is_worked_out_by_hand() {
        // 1 GB over 2 hosts of 4 ranks, by messages that leave a host: of the ordered sum each of 4 ranks sends an
        // eighth to each of 4 others, twice.
        let ordered = 2.0 * 4.0 * 4.0 / 8.0 * 0.1;
        for (algorithm, seconds) in [
            (Algorithm::Ring, 14.0 * 10e-6 + 2.0 * 7.0 / 8.0 * 0.1),
            (Algorithm::Tree, 6.0 * 10e-6 + 2.0 * 7.0 / 8.0 * 0.1),
            (Algorithm::Ordered, 14.0 * 10e-6 + ordered),
            (Algorithm::Hierarchical, 6.0 * 1e-6 + 1.5 * 0.01 + 2.0 * 10e-6 + 0.1),
        ] {
            let found = cluster().exchange_seconds(&load(algorithm, &[]), 8, 0.25e9);
            assert!((found - seconds).abs() < 1e-12, "{algorithm:?}: {found}, not {seconds}");
        }
        // Compressed, half as much between hosts and the same within.
        let bf16 = Load { wire_bytes: 2.0, ..load(Algorithm::Hierarchical, &[]) };
        let compressed = cluster().exchange_seconds(&bf16, 8, 0.25e9);
        assert!((compressed - (6e-6 + 1.5 * 0.01 + 20e-6 + 0.05)).abs() < 1e-12, "{compressed}");
        let ring = load(Algorithm::Ring, &[]);
        let one_host = cluster().exchange_seconds(&ring, 4, 0.25e9);
        assert!((one_host - (6e-6 + 1.5 * 0.01)).abs() < 1e-12, "{one_host}");
        assert_eq!(cluster().exchange_seconds(&ring, 1, 0.25e9), 0.0);
    }

    #[test]
    fn what_backward_covers_costs_nothing_and_the_rest_makes_the_step_longer() {
        let cluster = cluster();
        let load = |buckets: &[(f64, f64)]| load(Algorithm::Tree, buckets);
        let exchange = |bytes: f64| cluster.exchange_seconds(&load(&[]), 8, bytes / 4.0);
        let close =
            |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-12, "{found}, not {wanted}");
        // Backward takes 150 ms; 100 MB take about 17.5 ms.
        close(cluster.step_seconds(&load(&[(1e8, 0.5)]), 8), 0.3);
        close(cluster.step_seconds(&load(&[(1e8, 0.5), (1e8, 1.0)]), 8), 0.3 + exchange(1e8));
        // The first bucket holds up the second.
        let held_up = cluster.step_seconds(&load(&[(1e9, 0.5), (1e8, 1.0)]), 8);
        close(held_up, 0.225 + exchange(1e9) + exchange(1e8));
        // Only the last of four micro batches covers anything: 37.5 ms.
        let accumulated = Load { micro_batches: 4.0, ..load(&[(3e8, 0.5)]) };
        close(cluster.step_seconds(&accumulated, 8), 0.3 - 0.01875 + exchange(3e8));
        let without_overlap = Load { overlap: false, ..load(&[(1e8, 0.5)]) };
        close(cluster.step_seconds(&without_overlap, 8), 0.3 + exchange(1e8));
    }

    #[test]
    fn forward_waits_for_the_first_weights_and_covers_others() {
        // Forward takes 150 ms. The last bucket comes first, and forward cannot begin without it.
        let cluster = cluster();
        let load = |buckets: &[(f64, f64)]| Load { sharded: true, ..load(Algorithm::Tree, buckets) };
        let half = |bytes: f64| cluster.exchange_seconds(&load(&[]), 8, bytes / 4.0) / 2.0;
        let close =
            |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-12, "{found}, not {wanted}");
        close(cluster.gather_seconds(&load(&[(1e8, 0.5), (1e7, 1.0)]), 8), half(1e7));
        // Forward of the last bucket's layers takes 75 ms, which is too little for 1 GB.
        close(cluster.gather_seconds(&load(&[(1e9, 0.5), (1e7, 1.0)]), 8), half(1e7) + half(1e9) - 0.075);
        let step = cluster.step_seconds(&load(&[(1e7, 1.0)]), 8);
        close(step, 0.3 + 2.0 * half(1e7));
        let at_once = Load { overlap: false, ..load(&[(1e8, 0.5), (1e7, 1.0)]) };
        close(cluster.gather_seconds(&at_once, 8), half(1e8) + half(1e7));
    }

    #[test]
    fn nothing_hides_the_sums_of_batch_norms() {
        let cluster = cluster();
        let load = Load { norm_sums: vec![16.0, 16.0, 32.0], ..load(Algorithm::Tree, &[]) };
        let sums: f64 = load.norm_sums.iter().map(|&values| cluster.exchange_seconds(&load, 8, values)).sum();
        assert!((cluster.step_seconds(&load, 8) - 0.3 - sums).abs() < 1e-12);
    }

    #[test]
    fn the_algorithm_is_what_the_reducer_does_with_so_many_ranks_a_host() {
        for (reduce, ranks_a_host, algorithm) in [
            (Reduce::Ordered, 8, Algorithm::Hierarchical),
            (Reduce::Ordered, 6, Algorithm::Ordered),
            (Reduce::FlatOrdered, 8, Algorithm::Ordered),
            (Reduce::Mpi, 8, Algorithm::Ring),
        ] {
            let comm = CommConfig { reduce, ..CommConfig::default() };
            assert_eq!(Algorithm::configured(&comm, ranks_a_host), algorithm, "{reduce:?}, {ranks_a_host}");
        }
    }

    #[test]
    fn buckets_are_ready_in_order_and_the_last_at_the_end_of_backward() {
        let text = "{model: {arch: wrn-28-10}, data: {kind: cifar10, path: d}, train: {epochs: 1, global_batch: 8}, \
                    schedule: {kind: constant, rate: 1}}";
        let config: Config = serde_yaml::from_str(text).unwrap();
        let network = Network::new(&config.model.arch.parse().unwrap(), &model::Options::default()).unwrap();
        let load = Load::new(&network, &FlatLayout::new(&network, 1), &config, 1, Algorithm::Ring);
        assert!(load.buckets.len() > 1);
        assert!(load.buckets.windows(2).all(|pair| pair[0].ready < pair[1].ready));
        assert_eq!(load.buckets.last().map(|bucket| bucket.ready), Some(1.0));
    }
}
