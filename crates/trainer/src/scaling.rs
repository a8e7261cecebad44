//! How long a step takes on many ranks, from the time one needs alone and the speed of the links. Pure
//! arithmetic; nothing is measured here.
//!
//! The number of images a rank stays the same (weak scaling). With n ranks, g of them on each of h hosts, a
//! bucket of S bytes, and links with latency a and rate b (a', b' within a host):
//!
//! ```text
//! ring          2 (n-1) a + 2 (n-1)/n S/b                    every host's link carries the whole ring once
//! tree          2 log2(n) a + 2 (n-1)/n S/b                  NCCL's double binary tree
//! ordered       2 a + 2 (n-1)/n S g/b                        every rank of a host sends to every rank of the others
//! hierarchical  2 (g-1) a' + 2 (g-1)/g S/b'                  within hosts
//!               + 2 a + 2 (h-1)/h S/b                        and an ordered sum among them
//! ```
//! On one host the links within it take the place of the network's.
//!
//! Backward completes gradients in proportion to the multiply-adds behind them. A bucket's exchange begins when its
//! last gradient is complete and the bucket before has been exchanged; what has not ended when backward ends
//! makes the step longer.

use std::fmt::Write;

use allreduce::Bucket;
use model::Network;

use crate::flat::FlatLayout;

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
    /// Ours with several ranks a host.
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
    /// How sums travel.
    pub algorithm: Algorithm,
}

/// What is exchanged, and when it is ready.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    bytes: f64,
    /// Share of backward that has passed.
    ready: f64,
}

/// Backward's multiply-adds up to the end of each bucket.
pub(crate) fn loads(
    network: &Network,
    layout: &FlatLayout,
    buckets: &[Bucket],
    bytes_an_element: usize,
) -> Vec<Load> {
    let total = network.macs().max(1) as f64;
    let mut passed = 0;
    buckets
        .iter()
        .map(|bucket| {
            let segments = &layout.segments[bucket.segments.clone()];
            passed += segments.iter().map(|placed| network.parameters()[placed.parameter].macs).sum::<u64>();
            Load { bytes: (bucket.range.len() * bytes_an_element) as f64, ready: passed as f64 / total }
        })
        .collect()
}

impl Cluster {
    /// Time to sum `bytes` over `ranks`.
    fn exchange_seconds(&self, ranks: usize, bytes: f64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        let each = self.ranks_a_host.min(ranks);
        let hosts = ranks.div_ceil(each) as f64;
        let link = if ranks <= self.ranks_a_host { self.within } else { self.between };
        let (n, g) = (ranks as f64, each as f64);
        let share = |members: f64| 2.0 * (members - 1.0) / members;
        let seconds = |link: Link, messages: f64, bytes: f64| {
            messages * link.latency_seconds + bytes / link.bytes_per_second
        };
        match self.algorithm {
            Algorithm::Ring => seconds(link, 2.0 * (n - 1.0), share(n) * bytes),
            Algorithm::Tree => seconds(link, 2.0 * n.log2(), share(n) * bytes),
            Algorithm::Ordered if hosts > 1.0 => seconds(link, 2.0, share(n) * bytes * g),
            Algorithm::Ordered => seconds(link, 2.0, share(n) * bytes),
            Algorithm::Hierarchical => {
                let within =
                    if each > 1 { seconds(self.within, 2.0 * (g - 1.0), share(g) * bytes) } else { 0.0 };
                let among = if hosts > 1.0 { seconds(self.between, 2.0, share(hosts) * bytes) } else { 0.0 };
                within + among
            }
        }
    }

    /// Length of a step on `ranks`.
    pub(crate) fn step_seconds(&self, loads: &[Load], ranks: usize) -> f64 {
        let backward = self.step_seconds * self.backward_share;
        let exchanged = loads.iter().fold(0.0_f64, |free, load| {
            free.max(load.ready * backward) + self.exchange_seconds(ranks, load.bytes)
        });
        self.step_seconds + (exchanged - backward).max(0.0)
    }

    /// A table from one rank to `most`, doubling.
    pub(crate) fn table(&self, loads: &[Load], images_a_rank: usize, most: usize) -> String {
        let mut text = format!(
            "{:>8}{:>16}{:>14}{:>14}{:>12}\n",
            "ranks", "exchange, ms", "step, ms", "images/s", "efficiency"
        );
        let counts = std::iter::successors(Some(1_usize), |ranks| ranks.checked_mul(2));
        for ranks in counts.take_while(|&ranks| ranks <= most) {
            let step = self.step_seconds(loads, ranks);
            let exchange: f64 = loads.iter().map(|load| self.exchange_seconds(ranks, load.bytes)).sum();
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

    fn cluster(algorithm: Algorithm) -> Cluster {
        Cluster {
            step_seconds: 0.3,
            backward_share: 0.5,
            ranks_a_host: 4,
            within: Link { latency_seconds: 1e-6, bytes_per_second: 100e9 },
            between: Link { latency_seconds: 10e-6, bytes_per_second: 10e9 },
            algorithm,
        }
    }

    #[test]
    fn formulae_give_what_is_worked_out_by_hand() {
        // 1 GB over 2 hosts of 4 ranks.
        for (algorithm, seconds) in [
            (Algorithm::Ring, 14.0 * 10e-6 + 2.0 * 7.0 / 8.0 * 0.1),
            (Algorithm::Tree, 6.0 * 10e-6 + 2.0 * 7.0 / 8.0 * 0.1),
            (Algorithm::Ordered, 2.0 * 10e-6 + 2.0 * 7.0 / 8.0 * 0.4),
            (Algorithm::Hierarchical, 6.0 * 1e-6 + 1.5 * 0.01 + 2.0 * 10e-6 + 0.1),
        ] {
            let found = cluster(algorithm).exchange_seconds(8, 1e9);
            assert!((found - seconds).abs() < 1e-12, "{algorithm:?}: {found}, not {seconds}");
        }
        let one_host = cluster(Algorithm::Ring).exchange_seconds(4, 1e9);
        assert!((one_host - (6e-6 + 1.5 * 0.01)).abs() < 1e-12, "{one_host}");
        assert_eq!(cluster(Algorithm::Ring).exchange_seconds(1, 1e9), 0.0);
    }

    #[test]
    fn what_backward_covers_costs_nothing_and_the_rest_makes_the_step_longer() {
        let cluster = cluster(Algorithm::Tree);
        let exchange = |bytes| cluster.exchange_seconds(8, bytes);
        // Backward takes 150 ms; this is ready half way and takes about 17.5 ms.
        let early = Load { bytes: 1e8, ready: 0.5 };
        assert!((cluster.step_seconds(&[early], 8) - 0.3).abs() < 1e-12);
        let late = Load { bytes: 1e8, ready: 1.0 };
        let step = cluster.step_seconds(&[early, late], 8);
        assert!((step - (0.3 + exchange(1e8))).abs() < 1e-12, "{step}");
        // The first bucket holds up the second.
        let long = Load { bytes: 1e9, ready: 0.5 };
        let step = cluster.step_seconds(&[long, late], 8);
        assert!((step - (0.225 + exchange(1e9) + exchange(1e8))).abs() < 1e-12, "{step}");
    }

    #[test]
    fn buckets_are_ready_in_order_and_the_last_at_the_end_of_backward() {
        let network = Network::new(&"wrn-28-10".parse().unwrap(), &model::Options::default()).unwrap();
        let layout = FlatLayout::new(&network);
        let buckets = layout.buckets(&crate::config::CommConfig::default());
        let loads = loads(&network, &layout, &buckets, 4);
        assert_eq!(loads.len(), buckets.len());
        assert!(loads.windows(2).all(|pair| pair[0].ready < pair[1].ready));
        assert_eq!(loads.last().map(|load| load.ready), Some(1.0));
    }
}
