//! The ordered sums of a communicator that carries messages between its ranks, whatever carries them: within hosts
//! first where that is possible, else regardless of hosts. When which is chosen is the communicator's business.

use crate::compressed::OrderedReductions;
use crate::hierarchical::{HierarchicalReduction, Hosts, gather_shards};
use crate::ordered::gather_slices;
use crate::transport::Transport;
use crate::{CommError, Sharding, Wire};

pub(crate) enum OrderedSums {
    Flat(Box<OrderedReductions>),
    Hierarchical(Box<HierarchicalReduction>, Hosts),
}

impl OrderedSums {
    pub(crate) fn new(hosts: Option<Hosts>) -> Self {
        match hosts {
            Some(hosts) => OrderedSums::Hierarchical(Box::default(), hosts),
            None => OrderedSums::Flat(Box::default()),
        }
    }

    /// What to add to the description of a communicator.
    pub(crate) fn description(&self) -> String {
        match self {
            OrderedSums::Flat(_) => String::new(),
            OrderedSums::Hierarchical(_, hosts) => format!(", sums within {hosts} first"),
        }
    }

    /// As [`Communicator::all_reduce`](crate::Communicator::all_reduce).
    pub(crate) fn all_reduce(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
        wire: Wire,
    ) -> Result<(), CommError> {
        match self {
            OrderedSums::Flat(reductions) => reductions.all_reduce(transport, values, wire),
            OrderedSums::Hierarchical(reduction, hosts) => {
                reduction.all_reduce(transport, *hosts, values, wire)
            }
        }
    }

    /// As [`Communicator::sharding`](crate::Communicator::sharding).
    pub(crate) fn sharding(&self, transport: &impl Transport) -> Sharding {
        match self {
            OrderedSums::Flat(_) => Sharding::flat(transport.rank(), transport.world_size()),
            OrderedSums::Hierarchical(_, hosts) => hosts.sharding(transport.rank()),
        }
    }

    /// As [`Communicator::reduce_scatter`](crate::Communicator::reduce_scatter).
    pub(crate) fn reduce_scatter(
        &mut self,
        transport: &mut impl Transport,
        values: &mut [f32],
    ) -> Result<(), CommError> {
        match self {
            OrderedSums::Flat(reductions) => reductions.reduce_scatter(transport, values),
            OrderedSums::Hierarchical(reduction, hosts) => {
                reduction.reduce_scatter(transport, *hosts, values)
            }
        }
    }

    /// As [`Communicator::gather_shards`](crate::Communicator::gather_shards).
    pub(crate) fn gather_shards(
        &self,
        transport: &mut impl Transport,
        values: &mut [f32],
    ) -> Result<(), CommError> {
        match self {
            OrderedSums::Flat(_) => gather_slices(transport, values),
            OrderedSums::Hierarchical(_, hosts) => gather_shards(transport, *hosts, values),
        }
    }
}
