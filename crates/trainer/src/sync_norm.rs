//! Batch norm over the images of all ranks ([`torch_ext::sync_norm`]), with the communication thread between them.
//!
//! Its averages and the buckets of the gradients share the one thread that communicates, which takes both in the order
//! in which they are handed over. Both come from the thread that runs backward, and every rank runs the same layers in
//! the same order, so that order is the same on all ranks. A rank that leaves it, because it failed, cannot come back:
//! its failure ends the job (see [`crate::engine`]).

use std::sync::Arc;

use allreduce::CommThread;
use torch_ext::sync_norm::Ranks;

/// All ranks of `comm`.
pub(crate) fn ranks(comm: &CommThread) -> Ranks {
    let comm = comm.clone();
    let count = comm.topology().world_size;
    let average = move |values: &mut [f32]| {
        let sums = comm.sum(values.to_vec()).map_err(|error| error.to_string())?;
        for (value, sum) in values.iter_mut().zip(sums) {
            *value = sum / count as f32;
        }
        Ok(())
    };
    Ranks { count, average: Arc::new(average) }
}
