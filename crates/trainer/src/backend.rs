//! Which library carries the sums of gradients (`comm.backend`).

use allreduce::{CommError, Communicator, NcclCommunicator, Reduction};

use crate::config::{AutoOr, Backend, Compression, Config, Determinism, Reduce};
use crate::device::expects_gpu;

/// `auto` made definite, as far as this rank can tell: NCCL where there is a GPU to compute on, and nothing is
/// configured that it cannot do.
pub(crate) fn choose(config: &Config, world_size: usize) -> Backend {
    let on_gpu = expects_gpu(config);
    match config.comm.backend {
        Backend::Auto if on_gpu && why_not_nccl(config, world_size).is_none() => Backend::Nccl,
        Backend::Auto => Backend::Mpi,
        definite => definite,
    }
}

/// The same for sums alone.
pub(crate) fn for_sums(backend: Backend, reduce: Reduce) -> Backend {
    match backend {
        Backend::Auto if reduce != Reduce::Mpi && torch_ext::runtime::device_count() > 0 => Backend::Nccl,
        Backend::Auto => Backend::Mpi,
        definite => definite,
    }
}

/// What of the configuration asks for MPI, or for gradients in host memory.
pub(crate) fn why_not_nccl(config: &Config, world_size: usize) -> Option<&'static str> {
    let local_micro_batches = match config.train.micro_batch {
        None => Some(1),
        Some(AutoOr::Auto) => None,
        Some(AutoOr::Exactly(micro_batch)) => {
            Some(config.train.global_batch / micro_batch.get() / world_size.max(1))
        }
    };
    let reasons = [
        (config.comm.backend == Backend::Mpi, "comm.backend: mpi"),
        (config.comm.reduce == Reduce::Mpi, "comm.reduce: mpi leaves the sum to MPI"),
        (config.model.sync_norm, "model.sync_norm sums statistics in host memory"),
    ];
    host_memory_needed(config, local_micro_batches)
        .or_else(|| reasons.into_iter().find_map(|(applies, reason)| applies.then_some(reason)))
}

/// What of the configuration works on gradients in host memory only. The number of micro batches is this rank's in a
/// step, where it is known.
pub(crate) fn host_memory_needed(
    config: &Config,
    local_micro_batches: Option<usize>,
) -> Option<&'static str> {
    let world_s_tree =
        config.train.determinism == Determinism::World && local_micro_batches.is_none_or(|count| count > 1);
    [
        (world_s_tree, "train.determinism: world adds up several micro batches a rank in host memory"),
        (
            config.comm.compression == Compression::PowerSgd,
            "comm.compression: power-sgd works on gradients in host memory",
        ),
    ]
    .into_iter()
    .find_map(|(applies, reason)| applies.then_some(reason))
}

/// Collective: what sums over `backend` for ranks that have met over `control`. Where the ranks want different
/// libraries it is `control`: they can still find out why, and must before they sum anything.
///
/// # Errors
/// On all ranks, when one has no NCCL.
pub(crate) fn over(
    mut control: Box<dyn Communicator>,
    backend: Backend,
    reduction: Reduction,
    nccl_config: nccl_rs::Config,
) -> Result<Box<dyn Communicator>, CommError> {
    if control.topology().world_size == 1 {
        return Ok(control);
    }
    let nccl = backend == Backend::Nccl;
    let choices = control.all_gather(&[u8::from(nccl)])?;
    let unanimous = choices.iter().all(|choice| *choice == choices[0]);
    Ok(match nccl && unanimous {
        true => Box::new(NcclCommunicator::new(control, reduction, nccl_config)?),
        false => control,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn what_nccl_cannot_do_is_left_to_mpi_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        let text = "model: {arch: wrn-10-1}\ndata: {kind: cifar10, path: d}\ntrain: {epochs: 1, global_batch: 8}\n\
                    schedule: {kind: constant, rate: 1}\n";
        std::fs::write(&path, text).unwrap();
        let reason = |sets: &[&str], world_size: usize| {
            let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
            why_not_nccl(&load(&path, &sets).unwrap().config, world_size).unwrap_or_default()
        };
        for (sets, world_size, key) in [
            (&["comm.backend=mpi"][..], 2, "comm.backend"),
            (&["comm.reduce=mpi"], 2, "comm.reduce"),
            (&["comm.compression=power-sgd"], 2, "comm.compression"),
            (&["model.sync_norm=true"], 2, "model.sync_norm"),
            (&["train.determinism=world", "train.micro_batch=2"], 2, "train.determinism"),
            (&["train.determinism=world", "train.micro_batch=auto"], 4, "train.determinism"),
        ] {
            assert!(reason(sets, world_size).starts_with(key), "{sets:?}: {}", reason(sets, world_size));
        }
        for (sets, world_size) in [
            (&[][..], 2),
            (&["comm.overlap=sync+step"], 2),
            (&["optimizer.shard=true"], 2),
            (&["comm.compression=bf16"], 2),
            (&["train.determinism=world", "train.micro_batch=2"], 4),
            (&["train.determinism=world"], 2),
        ] {
            assert_eq!(reason(sets, world_size), "", "{sets:?}");
        }
    }
}
