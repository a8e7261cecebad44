//! Which library carries the sums of gradients (`comm.backend`).

use allreduce::{CommError, Communicator, NcclCommunicator, Reduction};

use crate::config::{Backend, Compression, Config, Determinism, DeviceChoice, Overlap, Reduce};

/// `auto` made definite, as far as this rank can tell: NCCL where there is a GPU to compute on, and nothing else is
/// wanted that is MPI's alone.
pub(crate) fn choose(config: &Config) -> Backend {
    match config.comm.backend {
        Backend::Auto => {
            let on_gpu = config.train.device != DeviceChoice::Cpu && torch_ext::runtime::device_count() > 0;
            // In world's order, several micro batches a rank are added up in host memory.
            let in_host_memory = config.comm.reduce == Reduce::Mpi
                || config.comm.compression == Compression::PowerSgd
                || config.comm.overlap == Overlap::ExchangeAndStep
                || config.model.sync_norm
                || config.optimizer.shard
                || config.train.determinism == Determinism::World;
            if on_gpu && !in_host_memory { Backend::Nccl } else { Backend::Mpi }
        }
        definite => definite,
    }
}

/// Collective: what sums over `backend` for ranks that have met over `control`.
///
/// # Errors
/// On all ranks, when they are to use different libraries, or one has no NCCL.
pub(crate) fn over(
    mut control: Box<dyn Communicator>,
    backend: Backend,
    reduction: Reduction,
) -> Result<Box<dyn Communicator>, CommError> {
    if control.topology().world_size == 1 {
        return Ok(control);
    }
    let nccl = backend == Backend::Nccl;
    let choices = control.all_gather(&[u8::from(nccl)])?;
    if let Some(rank) = choices.iter().position(|choice| *choice != choices[0]) {
        let name = |rank: usize| if choices[rank] == [1] { "NCCL" } else { "MPI" };
        let sentence = format!(
            "rank 0 is to sum over {}, rank {rank} over {}: comm.backend, or whether there is a GPU, differs between them",
            name(0),
            name(rank)
        );
        control.finalize()?;
        return Err(CommError::OtherCollective(sentence));
    }
    Ok(if nccl { Box::new(NcclCommunicator::new(control, reduction)?) } else { control })
}
