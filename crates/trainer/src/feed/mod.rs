//! Batches on their way from the decoder pool to the device, one ahead of the computation. Decides neither which samples
//! they hold nor what becomes of their bytes there; [`crate::input`] does.
//!
//! ```text
//!                 copied on a stream of its own            bytes to numbers, computed on
//! Pool ──► Batch ───────────────────────────────► [`Lane`] ─────────────────────────────► network
//!   ▲        │ pinned memory                        two slots
//!   └────────┘ filled again when the copy is through
//! ```
//! On a GPU the next batch is copied while this one is computed, and the host waits for neither. On the CPU the batch
//! stays where the pool has put it.

mod lane;
mod pinned;
#[cfg(test)]
mod tests;

use data_sharding::{
    Augmentation, Batch, BatchAllocator, DataSet, HeapMemory, Pool, PoolOptions, SampleKey, StageTimes,
};
use tch::{Device, Kind, Tensor};

use self::lane::{Lane, Slot};
use self::pinned::PinnedMemory;
use crate::error::Error;

/// A decoder pool and the way from there to a device.
pub(crate) struct Feed {
    pool: Pool,
    /// On a GPU.
    lane: Option<Lane>,
    /// The next batch, if it has been taken already.
    ahead: Option<Result<Staged, Error>>,
}

/// A batch whose bytes are on their way to the device, or there.
struct Staged {
    batch: Batch,
    /// Of the lane, where there is one.
    slot: usize,
}

/// A batch in the hands of who computes with it. While it is there, no other one comes and none is staged, so that two
/// slots are enough.
pub(crate) struct Delivery<'feed> {
    batch: Batch,
    /// On a GPU.
    slot: Option<&'feed mut Slot>,
}

impl Feed {
    /// Starts decoding for `device`, as [`Pool::start`].
    pub(crate) fn start(
        device: Device,
        data: DataSet,
        augmentation: Augmentation,
        requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
        options: PoolOptions,
    ) -> Result<Self, Error> {
        let memory: &dyn BatchAllocator = match device {
            Device::Cuda(index) => &PinnedMemory { gpu: index },
            _ => &HeapMemory,
        };
        let pool = Pool::start_in(memory, data, augmentation, requests, options)?;
        let lane = match device {
            Device::Cuda(_) => Some(Lane::new(device, pool.batch_bytes())?),
            _ => None,
        };
        Ok(Feed { pool, lane, ahead: None })
    }

    /// Waits for the next batch. What was skipped in it is logged.
    pub(crate) fn next(&mut self) -> Result<Delivery<'_>, Error> {
        let staged = match self.ahead.take() {
            Some(staged) => staged,
            None => {
                let batch =
                    self.pool.next().ok_or_else(|| Error::Other("the decoder pool ended early".into()))??;
                self.stage(batch)
            }
        };
        let Staged { batch, slot } = staged?;
        for error in batch.skipped() {
            tracing::error!("skipped: {error}");
        }
        Ok(Delivery { batch, slot: self.lane.as_mut().map(|lane| lane.slot(slot)) })
    }

    /// Takes the batch that comes next, if it is decoded, and begins to copy it. To be called while the device has work.
    /// A failure is [`Feed::next`]'s to report.
    pub(crate) fn stage_ahead(&mut self) {
        if self.ahead.is_none()
            && let Some(batch) = self.pool.next_if_ready()
        {
            self.ahead = Some(batch.map_err(Error::from).and_then(|batch| self.stage(batch)));
        }
    }

    /// What the decoder threads have spent their time on so far.
    pub(crate) fn stage_times(&self) -> StageTimes {
        self.pool.stage_times()
    }

    fn stage(&mut self, mut batch: Batch) -> Result<Staged, Error> {
        let slot = match &mut self.lane {
            Some(lane) => lane.upload(&mut batch)?,
            None => 0,
        };
        Ok(Staged { batch, slot })
    }
}

impl Delivery<'_> {
    /// Everything but its pixels.
    pub(crate) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The pixels, where they are to be read on the host.
    pub(crate) fn on_host(&self) -> Option<&[u8]> {
        self.slot.is_none().then(|| self.batch.images())
    }

    /// The pixels as fp32 `[N, H, W, C]` on the device, 0 to 255.
    pub(crate) fn floats(&mut self) -> Result<Tensor, Error> {
        let shape = self.batch.shape().map(|side| side as i64);
        match &mut self.slot {
            Some(slot) => slot.floats(&shape),
            None => {
                let bytes = Tensor::f_from_data_size(self.batch.images(), &shape, Kind::Uint8)?;
                Ok(bytes.f_to_kind(Kind::Float)?)
            }
        }
    }
}
