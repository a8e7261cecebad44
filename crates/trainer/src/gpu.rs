//! Which GPU is this rank's, and that it is no other rank's. Decided before anything touches the memory of a GPU.

use allreduce::Topology;
use tch::Device;

use crate::error::Error;
use crate::session::Session;

/// Which GPUs a process sees, and in which order; CUDA reads it, and launchers set it for each rank.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The GPU of this rank, which is this thread's current one from now on: what names no GPU would otherwise take memory
/// of the first one, which is another rank's.
///
/// # Errors
/// When this rank does not see as many GPUs as it needs to find its own.
pub(crate) fn of_rank(topology: &Topology) -> Result<Device, Error> {
    let shown = std::env::var(VISIBLE).ok();
    let index =
        choose(topology, torch_ext::runtime::device_count(), shown.as_deref()).map_err(Error::Other)?;
    torch_ext::cuda::set_device(index)?;
    Ok(Device::Cuda(index))
}

/// The number, among the GPUs that this rank sees, of its own.
fn choose(topology: &Topology, seen: usize, shown: Option<&str>) -> Result<usize, String> {
    let Topology { local_rank, local_size, host, .. } = topology;
    let shown_one =
        shown.is_some_and(|list| list.split(',').filter(|gpu| !gpu.trim().is_empty()).count() == 1);
    if *local_size <= seen {
        return Ok(*local_rank);
    }
    // Each rank has its own, under the first number, or they share one, which is noticed when they compare.
    if seen == 1 && shown_one {
        return Ok(0);
    }
    let cause = shown.map_or(String::new(), |list| format!(" ({VISIBLE}={list})"));
    Err(format!(
        "{local_size} ranks run on {host} but this one sees {seen} GPU(s){cause}; start one rank a GPU, and let each see \
         all of them or its own alone"
    ))
}

/// Collective: an error unless every rank that computes on a GPU has it to itself.
pub(crate) fn expect_own(session: &Session, device: Device) -> Result<(), Error> {
    let own = session.agree(match device {
        Device::Cuda(index) => identity(index, session.topology()),
        _ => Ok(String::new()),
    })?;
    let all = session.comm().all_gather(own.into_bytes())?;
    let rank = session.topology().rank;
    session.agree(match owner_before(rank, &all) {
        Some(other) => Err(Error::Other(shared(rank, other, std::env::var(VISIBLE).ok().as_deref()))),
        None => Ok(()),
    })
}

/// What no other GPU of any host has.
fn identity(index: usize, topology: &Topology) -> Result<String, Error> {
    // Of the machine rather than of a container on it, or of one of several machines of the same name.
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let machine = machine.unwrap_or_else(|_| topology.host.clone());
    let slot = torch_ext::cuda::pci_bus_id(index)?;
    let shown = std::env::var(VISIBLE).unwrap_or_default();
    Ok(format!("{} {slot} {}", machine.trim(), part_of_gpu(index, &shown)))
}

/// The instances of a GPU that is split in several (MIG) lie in the same slot, and are shown by their names.
fn part_of_gpu(index: usize, shown: &str) -> &str {
    shown.split(',').nth(index).map(str::trim).filter(|name| name.starts_with("MIG-")).unwrap_or_default()
}

/// The lowest rank before `rank` that has the same GPU.
fn owner_before(rank: usize, identities: &[Vec<u8>]) -> Option<usize> {
    let own = identities.get(rank).filter(|own| !own.is_empty())?;
    identities[..rank].iter().position(|other| other == own)
}

fn shared(rank: usize, other: usize, shown: Option<&str>) -> String {
    let cause = shown.map_or(String::new(), |list| format!(" (this one has {VISIBLE}={list})"));
    format!("rank {other} and rank {rank} would compute on the same GPU{cause}; start one rank a GPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_takes_the_gpu_of_its_local_rank_or_the_only_one_that_it_is_shown() {
        // Local rank, ranks of the host, GPUs seen, what the environment shows.
        for (rank, ranks, seen, shown, expected) in [
            (0, 1, 1, None, Ok(0)),
            (3, 4, 4, None, Ok(3)),
            (1, 2, 8, Some("4,5,6,7,0,1,2,3"), Ok(1)),
            (0, 1, 1, Some("5"), Ok(0)),
            (3, 4, 1, Some("3"), Ok(0)),
            (3, 4, 1, Some("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"), Ok(0)),
            (1, 2, 1, Some(" 1, "), Ok(0)),
            (1, 2, 1, None, Err("2 ranks run on node7 but this one sees 1 GPU(s); ")),
            (1, 2, 1, Some(""), Err("sees 1 GPU(s) (CUDA_VISIBLE_DEVICES=)")),
            (1, 2, 1, Some("0,99"), Err("sees 1 GPU(s) (CUDA_VISIBLE_DEVICES=0,99); start one rank a GPU")),
            (
                1,
                4,
                2,
                Some("0,1"),
                Err("4 ranks run on node7 but this one sees 2 GPU(s) (CUDA_VISIBLE_DEVICES=0,1)"),
            ),
        ] {
            let topology =
                Topology { rank, world_size: 8, local_rank: rank, local_size: ranks, host: "node7".into() };
            match (choose(&topology, seen, shown), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{ranks} {seen} {shown:?}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{ranks} {seen} {shown:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn two_ranks_with_one_gpu_are_named_and_ranks_without_one_are_alike() {
        let (one, two, other_machine) = ("a 0000:3b:00.0 ", "a 0000:af:00.0 ", "b 0000:3b:00.0 ");
        let (instance, another) = ("a 0000:3b:00.0 MIG-1", "a 0000:3b:00.0 MIG-2");
        for (identities, expected) in [
            (&[one, two, other_machine, ""][..], None),
            (&["", "", ""], None),
            (&[instance, another], None),
            (&[one, two, one], Some((2, 0))),
            (&[two, one, one, one], Some((2, 1))),
            (&[instance, instance], Some((1, 0))),
        ] {
            let all: Vec<Vec<u8>> = identities.iter().map(|own| own.as_bytes().to_vec()).collect();
            let found = (0..all.len()).find_map(|rank| Some((rank, owner_before(rank, &all)?)));
            assert_eq!(found, expected, "{identities:?}");
        }
        let sentence = shared(3, 1, Some("0"));
        assert!(sentence.starts_with("rank 1 and rank 3 would compute on the same GPU"), "{sentence}");
        assert!(sentence.contains("CUDA_VISIBLE_DEVICES=0"), "{sentence}");
    }

    #[test]
    fn an_instance_of_a_gpu_has_its_own_name() {
        for (index, shown, expected) in [
            (0, "MIG-1, MIG-2", "MIG-1"),
            (1, "MIG-1, MIG-2", "MIG-2"),
            (0, "0,1", ""),
            (1, "MIG-1", ""),
            (0, "", ""),
        ] {
            assert_eq!(part_of_gpu(index, shown), expected, "{index} of {shown}");
        }
    }
}
