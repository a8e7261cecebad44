//! Whether all ranks still hold the same numbers. They should by construction: one bit that flipped in one rank's
//! memory, or a library that rounds otherwise on one host, makes them drift apart without any other sign. So the ranks
//! compare checksums now and then (`train.check_replicas_every`).

use std::collections::BTreeMap;
use std::ops::Range;

use allreduce::{Agreed, Failure};
use model::Network;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{EXIT_FAILURE, Error};
use crate::memory::read_bytes;
use crate::session::Session;
use crate::state::State;

/// Tensors of one flat buffer.
struct Buffer<'a> {
    what: &'static str,
    flat: &'a Tensor,
    /// Name and place of each tensor.
    tensors: Vec<(String, Range<usize>)>,
}

/// All that every rank holds a copy of.
fn buffers<'a>(network: &Network, state: &'a State) -> Vec<Buffer<'a>> {
    let segments: Vec<(String, Range<usize>)> =
        state.layout.exchange_segments().into_iter().map(|segment| (segment.name, segment.range)).collect();
    let statistics: Vec<(String, Range<usize>)> = (network.norms().iter().zip(state.layout.statistics()))
        .map(|(norm, (mean, variance))| (norm.name.clone(), mean.start..variance.end))
        .collect();
    let mut buffers = vec![
        Buffer { what: "the weights", flat: &state.flat_parameters, tensors: segments.clone() },
        Buffer {
            what: "the running statistics",
            flat: &state.running_statistics,
            tensors: statistics.clone(),
        },
    ];
    // Shares are of different weights.
    if state.optimizer.shards().is_none() {
        let memory = state.optimizer.buffers();
        buffers.extend(memory.map(|flat| Buffer {
            what: "the optimizer's memory",
            flat,
            tensors: segments.clone(),
        }));
    }
    if let Some(averaged) = &state.averaged {
        buffers.push(Buffer { what: "the averaged weights", flat: &averaged.parameters, tensors: segments });
        buffers.push(Buffer {
            what: "the averaged statistics",
            flat: &averaged.running_statistics,
            tensors: statistics,
        });
    }
    buffers
}

/// What one rank holds.
struct Replica {
    host: String,
    /// Of each tensor.
    checksums: Vec<u64>,
}

/// Collective: fails on all ranks when one of them does not hold the same numbers after `step`, with the ranks that
/// differ and the first tensor.
pub(crate) fn check(session: &Session, network: &Network, state: &State, step: u64) -> Result<(), Error> {
    session.flight().enter(Some(step), "comparison of replicas");
    let checksums = session.agree(checksums(network, state))?;
    let mut bytes: Vec<u8> = checksums.iter().flat_map(|checksum| checksum.to_le_bytes()).collect();
    let digests = session.comm().all_gather(xxh3_64(&bytes).to_le_bytes().to_vec())?;
    if digests.iter().all(|digest| *digest == digests[0]) {
        return Ok(());
    }
    let checksums_len = bytes.len();
    bytes.extend_from_slice(session.topology().host.as_bytes());
    let replicas: Vec<Replica> = (session.comm().all_gather(bytes)?.iter())
        .map(|bytes| {
            let (checksums, host) = bytes.split_at(checksums_len.min(bytes.len()));
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            Replica {
                host: String::from_utf8_lossy(host).into_owned(),
                checksums: checksums.chunks_exact(8).map(word).collect(),
            }
        })
        .collect();
    let names: Vec<String> = buffers(network, state)
        .into_iter()
        .flat_map(|Buffer { what, tensors, .. }| {
            tensors.into_iter().map(move |(name, _)| format!("{name} of {what}"))
        })
        .collect();
    let (rank, what) = compare(&replicas, &names);
    let sentence = format!(
        "after step {step} {what}; resume from a checkpoint before that, and if it happens again on that host, suspect its \
         memory or another version of a library there"
    );
    let failure = Failure { exit_code: EXIT_FAILURE, sentence };
    Err(Error::Agreed(Agreed { rank, failure, mine: rank == session.topology().rank }))
}

fn checksums(network: &Network, state: &State) -> Result<Vec<u64>, Error> {
    let mut checksums = Vec::new();
    for Buffer { flat, tensors, .. } in buffers(network, state) {
        let host = flat.f_to_device(Device::Cpu)?;
        read_bytes(&host, |bytes| {
            checksums
                .extend(tensors.iter().map(|(_, range)| xxh3_64(&bytes[4 * range.start..4 * range.end])));
        })?;
    }
    Ok(checksums)
}

/// The lowest rank that differs from most ranks, and a sentence about all that do. Some do.
fn compare(replicas: &[Replica], names: &[String]) -> (usize, String) {
    let mut groups: BTreeMap<&[u64], Vec<usize>> = BTreeMap::new();
    for (rank, replica) in replicas.iter().enumerate() {
        groups.entry(&replica.checksums).or_default().push(rank);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    // The largest group first, among equals that of the lowest rank.
    groups.sort_by_key(|ranks| (usize::MAX - ranks.len(), ranks[0]));
    let majority = 2 * groups[0].len() > replicas.len();
    let mut differing: Vec<usize> = groups[1..].iter().flatten().copied().collect();
    differing.sort_unstable();
    let (usual, first) = (&replicas[groups[0][0]], differing[0]);
    let tensors: Vec<usize> = (0..names.len())
        .filter(|&tensor| replicas[first].checksums.get(tensor) != usual.checksums.get(tensor))
        .collect();
    let tensor = tensors.first().map_or("the number of tensors", |&tensor| names[tensor].as_str());
    let more = match tensors.len().saturating_sub(1) {
        0 => String::new(),
        1 => " and in 1 more tensor".to_owned(),
        more => format!(" and in {more} more tensors"),
    };
    let named = |rank: &usize| format!("rank {rank} on {}", replicas[*rank].host);
    let ranks = differing.iter().map(named).collect::<Vec<_>>().join(", ");
    let does = if differing.len() == 1 { "does" } else { "do" };
    let sentence = match majority {
        true => {
            format!("{ranks} {does} not hold the same numbers as the other ranks: first in {tensor}{more}")
        }
        false => format!(
            "{ranks} {does} not hold the same numbers as {}: first in {tensor}{more}; no majority tells which are right",
            named(&groups[0][0])
        ),
    };
    (first, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranks_that_differ_from_most_are_named_with_the_first_tensor() {
        let names = ["conv0.weight of the weights", "fc.bias of the weights", "bn of the running statistics"];
        let names = names.map(str::to_owned);
        /// Checksums by rank, the lowest rank that differs, the sentence.
        type Case = (&'static [[u64; 3]], usize, &'static str);
        let cases: [Case; 5] = [
            (
                &[[1, 2, 3], [1, 2, 3], [1, 9, 3]],
                2,
                "rank 2 on n2 does not hold the same numbers as the other ranks: first in fc.bias of the weights",
            ),
            (
                &[[8, 9, 3], [1, 2, 3], [1, 2, 3]],
                0,
                "rank 0 on n0 does not hold the same numbers as the other ranks: first in conv0.weight of the weights and in 1 more \
                 tensor",
            ),
            (
                &[[1, 2, 3], [4, 5, 6], [1, 2, 3], [1, 2, 7], [1, 2, 3]],
                1,
                "rank 1 on n1, rank 3 on n3 do not hold the same numbers as the other ranks: first in conv0.weight of the weights and \
                 in 2 more tensors",
            ),
            (
                &[[1, 2, 3], [1, 2, 4]],
                1,
                "rank 1 on n1 does not hold the same numbers as rank 0 on n0: first in bn of the running statistics; no majority \
                 tells which are right",
            ),
            (
                &[[1, 2, 3], [1, 2, 4], [1, 2, 4], [1, 2, 3]],
                1,
                "rank 1 on n1, rank 2 on n2 do not hold the same numbers as rank 0 on n0: first in bn of the running statistics; no \
                 majority tells which are right",
            ),
        ];
        for (checksums, rank, sentence) in cases {
            let replica = |(rank, checksums): (usize, &[u64; 3])| Replica {
                host: format!("n{rank}"),
                checksums: checksums.to_vec(),
            };
            let replicas: Vec<_> = checksums.iter().enumerate().map(replica).collect();
            assert_eq!(compare(&replicas, &names), (rank, sentence.to_owned()));
        }
    }
}
