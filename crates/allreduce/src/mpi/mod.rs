//! The group of ranks that an MPI launcher started. Holds no unsafe code: that is [`library`]'s.

mod library;

use std::time::Duration;

use crate::backoff::Patience;
use crate::communicator::{AbortSignal, Communicator, Reduction};
use crate::hierarchical::Hosts;
use crate::ordered::gather_slices;
use crate::sums::OrderedSums;
use crate::transport::{all_gather, barrier, broadcast};
use crate::{CommError, Sharding, Topology, Way, Wire, discover};
use library::Library;

/// All ranks of `MPI_COMM_WORLD`.
///
/// Messages go from rank to rank through non-blocking MPI operations, and the collective operations are made
/// of them; only [`Reduction::Library`] uses MPI's own reduction.
pub struct MpiCommunicator {
    library: Library,
    topology: Topology,
    description: String,
    reduction: Kind,
}

enum Kind {
    Ordered(OrderedSums),
    /// With memory for the values while their sums are written.
    Library(Vec<f32>),
}

impl MpiCommunicator {
    /// Starts MPI on this thread, which must be the one that makes all further calls. Collective over the
    /// ranks. Possible once in a process.
    ///
    /// # Errors
    /// When MPI does not start, or sees another number of ranks than the launcher announced.
    pub fn initialize(reduction: Reduction) -> Result<Self, CommError> {
        let mut library = Library::start()?;
        let topology = locate(&library)?;
        if topology.local_size < topology.world_size {
            library.wait_with(Patience::BETWEEN_HOSTS);
        }
        // Whatever this rank is to do: ranks that were told different things must still meet, to find that out.
        let hosts = Hosts::find(&mut library, &topology)?;
        let mut description =
            format!("{}, thread level {}", short_version(&library.version()?), library.thread_level());
        let reduction = match reduction {
            Reduction::Ordered => Kind::Ordered(OrderedSums::new(hosts)),
            Reduction::FlatOrdered => Kind::Ordered(OrderedSums::new(None)),
            Reduction::Library => Kind::Library(Vec::new()),
        };
        if let Kind::Ordered(sums) = &reduction {
            description += &sums.description();
        }
        Ok(MpiCommunicator { library, topology, description, reduction })
    }
}

fn locate(library: &Library) -> Result<Topology, CommError> {
    use crate::transport::Transport;
    let (rank, world_size) = (library.rank(), library.world_size());
    let launched = discover()?.filter(|launched| launched.way == Way::Mpi);
    if let Some(launched) = launched.filter(|launched| launched.world_size != world_size) {
        return Err(CommError::Launch {
            launcher: launched.launcher,
            launched: launched.world_size,
            seen: world_size,
        });
    }
    let (local_rank, local_size) = library.local_place()?;
    Ok(Topology { rank, world_size, local_rank, local_size, host: library.host()? })
}

/// Name and number of a library version text: `Open MPI v4.1.4, package: …` or `MPICH Version: 4.0.2` and
/// more lines.
fn short_version(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let first = first.split(',').next().unwrap_or_default();
    let words = first.split_whitespace().filter(|word| !word.eq_ignore_ascii_case("version:"));
    let without_v = words.map(|word| match word.strip_prefix('v') {
        Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => number,
        _ => word,
    });
    without_v.collect::<Vec<_>>().join(" ")
}

impl Communicator for MpiCommunicator {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.library.interrupt_by(signal);
    }

    fn spin_for(&mut self, spin: Duration) {
        self.library.wait_with(Patience::with_a_spare_core(spin));
    }

    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError> {
        match &mut self.reduction {
            Kind::Ordered(sums) => sums.all_reduce(&mut self.library, values, wire),
            Kind::Library(_) if wire != Wire::Fp32 => Err(CommError::UnknownToLibrary { wire }),
            Kind::Library(copy) => {
                copy.clear();
                copy.extend_from_slice(values);
                self.library.all_reduce(copy, values)
            }
        }
    }

    fn sharding(&self) -> Sharding {
        let Topology { rank, world_size, .. } = self.topology;
        match &self.reduction {
            Kind::Ordered(sums) => sums.sharding(&self.library),
            Kind::Library(_) => Sharding::flat(rank, world_size),
        }
    }

    fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        match &mut self.reduction {
            Kind::Ordered(sums) => sums.reduce_scatter(&mut self.library, values),
            Kind::Library(_) => self.all_reduce(values, Wire::Fp32),
        }
    }

    fn gather_shards(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        match &self.reduction {
            Kind::Ordered(sums) => sums.gather_shards(&mut self.library, values),
            Kind::Library(_) => gather_slices(&mut self.library, values),
        }
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError> {
        broadcast(&mut self.library, values, root)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        all_gather(&mut self.library, bytes)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        barrier(&mut self.library)
    }

    fn abort(&mut self, exit_code: i32) {
        self.library.abort(exit_code)
    }

    fn finalize(&mut self) -> Result<(), CommError> {
        self.library.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_texts_are_shortened_to_name_and_number() {
        let cases = [
            ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4", "Open MPI 4.1.4"),
            ("MPICH Version:\t4.0.2\nMPICH Release date:\tThu Apr 7", "MPICH 4.0.2"),
            ("Intel(R) MPI Library 2021.5 for Linux* OS\n", "Intel(R) MPI Library 2021.5 for Linux* OS"),
            ("", ""),
        ];
        for (text, short) in cases {
            assert_eq!(short_version(text), short);
        }
    }
}
