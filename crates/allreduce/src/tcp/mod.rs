//! The group of ranks that no MPI launcher started: they meet at a TCP address that environment variables name, and
//! are then connected each with each.
//!
//! | file | |
//! |---|---|
//! | [`environment`] | variables of `torchrun`, Kubernetes, `srun` → rank and meeting point |
//! | [`rendezvous`] | ranks meet, and gather a few bytes |
//! | [`mesh`] | a connection between every two |
//! | [`transport`] | messages over these, waiting, deaths |
//!
//! The collective operations are those of [`crate::transport`] and [`crate::ordered`], as with MPI, so the bits of all
//! sums are the same. A connection between every two ranks suits some hundred ranks, not thousands.

mod environment;
mod mesh;
mod rendezvous;
mod transport;

use std::time::Duration;

pub use self::environment::MeetingPoint;
pub(crate) use self::environment::{TORCHRUN, rank_from_slurm, rank_from_variables};
use self::mesh::connect_all;
use self::rendezvous::Rendezvous;
use self::transport::Mesh;
use crate::communicator::{AbortSignal, Communicator, Reduction};
use crate::control::end_process;
use crate::hierarchical::Hosts;
use crate::sums::OrderedSums;
use crate::transport::{all_gather, barrier, broadcast};
use crate::{CommError, LaunchedRank, Sharding, Topology, Wire};

/// All ranks that met at one address.
pub struct TcpCommunicator {
    mesh: Mesh,
    topology: Topology,
    description: String,
    sums: OrderedSums,
}

impl TcpCommunicator {
    /// Collective: meets the other ranks, for which it waits for at most `patience`.
    ///
    /// # Errors
    /// When the ranks do not meet, cannot all connect to each other, or should leave sums to a library.
    pub fn initialize(
        launched: &LaunchedRank,
        reduction: Reduction,
        patience: Duration,
    ) -> Result<Self, CommError> {
        Self::over(Rendezvous::meet(launched, patience)?, reduction)
    }

    /// Collective: connects ranks that have met.
    ///
    /// # Errors
    /// As [`TcpCommunicator::initialize`].
    pub(crate) fn over(mut rendezvous: Rendezvous, reduction: Reduction) -> Result<Self, CommError> {
        let topology = rendezvous.topology();
        let streams = connect_all(&mut rendezvous)?;
        let hosts = rendezvous.places().iter().map(|place| place.host.clone()).collect();
        let mesh = Mesh::new(topology.rank, hosts, streams).map_err(|error| {
            format!("rank {} on {} cannot wait for messages: {error}", topology.rank, topology.host)
        });
        let mut mesh = rendezvous.agree(mesh)?;
        let refused = match reduction {
            Reduction::Library => Err(CommError::NoLibrary { mine: true }.to_string()),
            Reduction::Ordered | Reduction::FlatOrdered => Ok(()),
        };
        rendezvous.agree(refused).map_err(|error| match (reduction, error) {
            (Reduction::Library, CommError::NoMeeting { mine, .. }) => CommError::NoLibrary { mine },
            (_, error) => error,
        })?;
        // Whatever this rank is to do: ranks that were told different things must still meet, to find that out.
        let hosts = Hosts::find(&mut mesh, &topology)?;
        let sums = OrderedSums::new(hosts.filter(|_| reduction == Reduction::Ordered));
        let description = format!("TCP, ranks met at {}{}", rendezvous.at(), sums.description());
        Ok(TcpCommunicator { mesh, topology, description, sums })
    }
}

impl Communicator for TcpCommunicator {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.mesh.interrupt_by(signal);
    }

    fn spin_for(&mut self, spin: Duration) {
        self.mesh.spin_for(spin);
    }

    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError> {
        self.sums.all_reduce(&mut self.mesh, values, wire)
    }

    fn sharding(&self) -> Sharding {
        self.sums.sharding(&self.mesh)
    }

    fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        self.sums.reduce_scatter(&mut self.mesh, values)
    }

    fn gather_shards(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        self.sums.gather_shards(&mut self.mesh, values)
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError> {
        broadcast(&mut self.mesh, values, root)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        all_gather(&mut self.mesh, bytes)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        barrier(&mut self.mesh)
    }

    /// The others find this rank's connections closed.
    fn abort(&mut self, exit_code: i32) {
        self.mesh.close();
        end_process(exit_code)
    }

    fn finalize(&mut self) -> Result<(), CommError> {
        self.mesh.close();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
