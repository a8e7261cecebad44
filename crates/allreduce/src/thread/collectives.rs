//! The collectives that a handle of the communication thread has done.

use super::CommThread;
use crate::flight::{Collective, CollectiveKind};
use crate::nccl::RegionDevice;
use crate::on_device;
use crate::pending::Pending;
use crate::{CommError, Region, Wire};

impl CommThread {
    /// Collective: returns when every rank has come here.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub fn barrier(&self) -> Result<(), CommError> {
        self.call_as(Collective::of_kind(CollectiveKind::Barrier), |communicator| communicator.barrier())
    }

    /// Collective: the sums of `values` over all ranks, element by element and formed in fp32. The same length and
    /// the same result on every rank.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub fn sum(&self, mut values: Vec<f32>) -> Result<Vec<f32>, CommError> {
        let collective = Collective {
            bytes: Some(size_of_val(&*values)),
            dtype: Some(Wire::Fp32.name().into()),
            ..Collective::of_kind(CollectiveKind::AllReduce)
        };
        self.call_as(collective, move |communicator| {
            communicator.all_reduce(&mut values, Wire::Fp32)?;
            Ok(values)
        })
    }

    /// Collective: replaces the elements by those of rank `root`.
    ///
    /// # Errors
    /// When there is no such rank, or the exchange failed or was aborted.
    pub fn broadcast(&self, region: Region, root: usize) -> Result<(), CommError> {
        let collective = Collective {
            bytes: Some(region.len() * size_of::<f32>()),
            dtype: Some("fp32".into()),
            ..Collective::of_kind(CollectiveKind::Broadcast)
        };
        self.call_as(collective, move |communicator| communicator.broadcast(&mut region.lock(), root))
    }

    /// Collective: replaces the elements by what each rank has in its own shard of them, see
    /// [`CommThread::sharding`].
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub fn gather_shards(&self, region: Region) -> Result<(), CommError> {
        self.start_gather_shards(region).wait()
    }

    /// As [`CommThread::gather_shards`], but returns at once. The operation is under way until it has been waited for.
    pub fn start_gather_shards(&self, region: Region) -> Pending<()> {
        let collective = Collective {
            bytes: Some(region.len() * size_of::<f32>()),
            dtype: Some("fp32".into()),
            ..Collective::of_kind(CollectiveKind::AllGather)
        };
        let computed = region.device().map(RegionDevice::mark);
        self.start_as(collective, move |communicator| match computed {
            Some(computed) => on_device::gather_shards(communicator, &region, computed),
            None => communicator.gather_shards(&mut region.lock()),
        })
    }

    /// Collective: the bytes of every rank, by rank. Lengths may differ.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        let collective = Collective::of_kind(CollectiveKind::AllGather);
        self.call_as(collective, move |communicator| communicator.all_gather(&bytes))
    }
}
