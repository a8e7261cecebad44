//! The ordered all-reduce over hosts with several ranks each: sums within a host first, then among hosts, so
//! that each host sends only one sum over the network instead of one value a rank.
//!
//! ```text
//! rank l of a host:  sum of slice l over the host's ranks      in memory, fp32
//!                    sum of that over the hosts' ranks l       over the network, in the wire's format
//!                    all slices from the host's ranks          in memory
//! ```
//! Each host has a power of two of ranks, so that the sums within hosts are the lowest levels of the flat tree,
//! and the results have the same bits as those of [`crate::ordered`]. Compression rounds only what travels between
//! hosts.

use std::fmt;
use std::ops::Range;

use crate::compressed::OrderedReductions;
use crate::ordered::{OrderedReduction, Slices, gather, gather_slices};
use crate::transport::{Element, Transport, all_gather};
use crate::{CommError, Sharding, Topology, Wire};

/// The same power of two of ranks on each of several hosts, those of a host in succession.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hosts {
    count: usize,
    ranks_each: usize,
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hosts of {}", self.count, self.ranks_each)
    }
}

impl Hosts {
    /// Collective: how the ranks stand on hosts, or `None` where there is one host, one rank a host, or another
    /// arrangement.
    pub(crate) fn find(
        transport: &mut impl Transport,
        topology: &Topology,
    ) -> Result<Option<Hosts>, CommError> {
        let place = [topology.local_rank as u64, topology.local_size as u64].map(u64::to_le_bytes).concat();
        let places = all_gather(transport, &place)?;
        let ranks_each = topology.local_size;
        let regular = places.iter().enumerate().all(|(rank, bytes)| {
            let expected = [(rank % ranks_each) as u64, ranks_each as u64].map(u64::to_le_bytes).concat();
            *bytes == expected
        });
        let several = ranks_each > 1 && ranks_each < topology.world_size && ranks_each.is_power_of_two();
        let count = topology.world_size / ranks_each;
        Ok((several && regular).then_some(Hosts { count, ranks_each }))
    }

    /// What rank `rank` owns of any values: its host's part of what its local rank owns within the host.
    pub(crate) fn sharding(self, rank: usize) -> Sharding {
        Sharding::nested((rank % self.ranks_each, self.ranks_each), (rank / self.ranks_each, self.count))
    }
}

/// The algorithm with its memory, which grows to the longest data seen and is reused.
#[derive(Debug, Default)]
pub(crate) struct HierarchicalReduction {
    within: OrderedReduction,
    among: OrderedReductions,
}

impl HierarchicalReduction {
    /// Replaces `values` by their sum over all ranks.
    pub(crate) fn all_reduce(
        &mut self,
        transport: &mut impl Transport,
        hosts: Hosts,
        values: &mut [f32],
        wire: Wire,
    ) -> Result<(), CommError> {
        if values.is_empty() {
            return Ok(());
        }
        let (slices, own, members) = place(transport.rank(), hosts, values.len());
        self.within.reduce_scatter(&mut Group { transport, members: members.within }, values, slices)?;
        self.among.all_reduce(&mut Group { transport, members: members.among }, &mut values[own], wire)?;
        gather(&mut Group { transport, members: members.within }, values, slices)
    }

    /// Replaces this rank's shard of `values` by its sum over all ranks, in fp32.
    pub(crate) fn reduce_scatter(
        &mut self,
        transport: &mut impl Transport,
        hosts: Hosts,
        values: &mut [f32],
    ) -> Result<(), CommError> {
        if values.is_empty() {
            return Ok(());
        }
        let (slices, own, members) = place(transport.rank(), hosts, values.len());
        self.within.reduce_scatter(&mut Group { transport, members: members.within }, values, slices)?;
        self.among.reduce_scatter(&mut Group { transport, members: members.among }, &mut values[own])
    }
}

/// Gives every rank the shards that the others own.
pub(crate) fn gather_shards(
    transport: &mut impl Transport,
    hosts: Hosts,
    values: &mut [f32],
) -> Result<(), CommError> {
    if values.is_empty() {
        return Ok(());
    }
    let (slices, own, members) = place(transport.rank(), hosts, values.len());
    gather_slices(&mut Group { transport, members: members.among }, &mut values[own])?;
    gather(&mut Group { transport, members: members.within }, values, slices)
}

/// The ranks of this rank's host, and its like on all hosts.
struct Neighbours {
    within: Members,
    among: Members,
}

/// How `len` values are cut within a host, which slice is this rank's, and with whom it exchanges.
fn place(rank: usize, hosts: Hosts, len: usize) -> (Slices, Range<usize>, Neighbours) {
    let Hosts { count, ranks_each } = hosts;
    let (host, local_rank) = (rank / ranks_each, rank % ranks_each);
    let slices = Slices::new(len, ranks_each);
    let within = Members { first: host * ranks_each, step: 1, count: ranks_each, own: local_rank };
    let among = Members { first: local_rank, step: ranks_each, count, own: host };
    (slices, slices.of(local_rank), Neighbours { within, among })
}

/// Some of all ranks, at equal distances.
#[derive(Clone, Copy)]
struct Members {
    first: usize,
    step: usize,
    count: usize,
    /// Place of this rank among them.
    own: usize,
}

/// Messages among some of the ranks, counted from 0.
struct Group<'a, T> {
    transport: &'a mut T,
    members: Members,
}

impl<T: Transport> Transport for Group<'_, T> {
    fn rank(&self) -> usize {
        self.members.own
    }

    fn world_size(&self) -> usize {
        self.members.count
    }

    fn exchange<'a, E: Element>(
        &mut self,
        outgoing: impl Iterator<Item = (usize, &'a [E])>,
        incoming: impl Iterator<Item = (usize, &'a mut [E])>,
    ) -> Result<(), CommError> {
        let Members { first, step, .. } = self.members;
        let rank_of = |member: usize| first + step * member;
        self.transport.exchange(
            outgoing.map(|(to, slice)| (rank_of(to), slice)),
            incoming.map(|(from, slice)| (rank_of(from), slice)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_process::{on_each_rank, wild_values};

    fn topology(rank: usize, world_size: usize, ranks_each: usize) -> Topology {
        Topology {
            rank,
            world_size,
            local_rank: rank % ranks_each,
            local_size: ranks_each,
            host: format!("host{}", rank / ranks_each),
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn sums_over_hosts_have_the_bits_of_the_flat_tree() {
        for (hosts, ranks_each) in [(2, 2), (3, 2), (2, 4), (5, 2), (4, 4)] {
            let world_size = hosts * ranks_each;
            for len in [1, 16, 17, 100, 5000] {
                let results = on_each_rank(world_size, |transport| {
                    let rank = transport.rank();
                    let topology = topology(rank, world_size, ranks_each);
                    let found = Hosts::find(transport, &topology).unwrap();
                    assert_eq!(found, Some(Hosts { count: hosts, ranks_each }));
                    let mut values = wild_values(len, rank as u64);
                    let mut flat = values.clone();
                    HierarchicalReduction::default()
                        .all_reduce(transport, found.unwrap(), &mut values, Wire::Fp32)
                        .unwrap();
                    OrderedReduction::default().all_reduce(transport, &mut flat).unwrap();
                    (bits(&values), bits(&flat))
                });
                for (rank, (hierarchical, flat)) in results.iter().enumerate() {
                    assert!(hierarchical == flat, "rank {rank}, {hosts} hosts of {ranks_each}, {len} values");
                    assert!(*hierarchical == results[0].0, "rank {rank} has another result than rank 0");
                }
            }
        }
    }

    #[test]
    fn shards_of_sums_hold_the_bits_of_the_whole_and_gather_to_it() {
        for (hosts, ranks_each) in [(2, 2), (3, 2), (2, 4)] {
            for len in [1, 17, 100, 5000] {
                let results = on_each_rank(hosts * ranks_each, |transport| {
                    let rank = transport.rank();
                    let hosts = Hosts { count: hosts, ranks_each };
                    let mut whole = wild_values(len, rank as u64);
                    let mut shards = whole.clone();
                    let mut reduction = HierarchicalReduction::default();
                    reduction.all_reduce(transport, hosts, &mut whole, Wire::Fp32).unwrap();
                    reduction.reduce_scatter(transport, hosts, &mut shards).unwrap();
                    let own = hosts.sharding(rank).of(len);
                    let equal = bits(&shards[own.clone()]) == bits(&whole[own.clone()]);
                    // What belongs to others is of no account.
                    shards[..own.start].fill(f32::NAN);
                    shards[own.end..].fill(f32::NAN);
                    gather_shards(transport, hosts, &mut shards).unwrap();
                    equal && bits(&shards) == bits(&whole)
                });
                assert!(results.iter().all(|&equal| equal), "{hosts} hosts of {ranks_each}, {len} values");
            }
        }
    }

    #[test]
    fn every_rank_has_the_same_compressed_sum() {
        let results = on_each_rank(6, |transport| {
            let mut values: Vec<f32> = (0..100).map(|index| (transport.rank() * index) as f32).collect();
            let hosts = Hosts { count: 2, ranks_each: 3 };
            HierarchicalReduction::default().all_reduce(transport, hosts, &mut values, Wire::Bf16).unwrap();
            values
        });
        for (index, value) in results[0].iter().enumerate() {
            let exact = (15 * index) as f32;
            assert!((value - exact).abs() <= exact / 128.0, "{value} for {exact}");
        }
        assert!(results.iter().all(|values| *values == results[0]));
    }

    #[test]
    fn other_arrangements_are_flat() {
        let find = |places: &'static [(usize, usize)]| {
            on_each_rank(places.len(), move |transport| {
                let (local_rank, local_size) = places[transport.rank()];
                let (rank, world_size) = (transport.rank(), places.len());
                let topology = Topology { rank, world_size, local_rank, local_size, host: String::new() };
                Hosts::find(transport, &topology).unwrap()
            })
        };
        for places in [
            &[(0, 2), (1, 2)][..],
            &[(0, 1), (0, 1)],
            &[(0, 2), (0, 2), (1, 2), (1, 2)],
            &[(0, 3), (1, 3), (2, 3), (0, 1)],
            &[(0, 2), (1, 2), (0, 1)],
            &[(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3)],
        ] {
            assert!(find(places).iter().all(Option::is_none), "{places:?}");
        }
    }
}
