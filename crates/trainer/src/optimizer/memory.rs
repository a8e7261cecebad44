//! What an update rule remembers of past gradients: this rank's share of it, and for checkpoints the whole on rank 0.
//! Knows neither the rule nor files.

use std::cell::RefCell;
use std::ops::Range;
use std::time::Duration;

use allreduce::{CommThread, Region};
use tch::{Device, Kind, Tensor};

use super::gathering::Gathering;
use super::share::Share;
use crate::error::Error;
use crate::memory::region_of;

/// How the work is shared out over the ranks.
pub(crate) struct Shards {
    pub(crate) comm: CommThread,
    /// Ranges of the flat parameters that together are all of it, and of each the part that is this rank's.
    pub(crate) buckets: Vec<(Range<usize>, Range<usize>)>,
    /// As long as the flat parameters, and free between steps: the gradients.
    pub(crate) scratch: Tensor,
    /// The flat parameters, where ranks exchange them on their device.
    pub(crate) weights: Option<Region>,
    /// The new weights of other ranks.
    pub(crate) gathering: Gathering,
}

impl Shards {
    fn is_leader(&self) -> bool {
        self.comm.topology().rank == 0
    }

    /// Zeros in host memory for a bucket.
    fn room_for(&self, bucket: &Range<usize>) -> Result<Tensor, Error> {
        match self.scratch.device() {
            Device::Cpu => Ok(narrow(&self.scratch, bucket)?.f_zero_()?),
            _ => Ok(Tensor::f_zeros([bucket.len() as i64], (Kind::Float, Device::Cpu))?),
        }
    }

    /// Collective: begins to give every rank the parts of the flat parameters, `flat`, that the others own. Those of a GPU
    /// that pass through host memory are there at once.
    pub(crate) fn gather_weights(&self, flat: &Tensor) -> Result<(), Error> {
        let buckets = self.buckets.iter().map(|(bucket, _)| bucket.clone());
        if let Some(weights) = &self.weights {
            self.gathering.start(&self.comm, weights, buckets);
            return Ok(());
        }
        // On the host it is the same memory.
        let host = flat.f_to_device(Device::Cpu)?;
        self.gathering.start(&self.comm, &region_of(&host)?, buckets);
        if flat.device() != Device::Cpu {
            self.gathering.await_all()?;
            flat.shallow_clone().f_copy_(&host)?;
        }
        Ok(())
    }
}

/// What a rule remembers, a number a parameter for each of its buffers.
pub(crate) struct OptimizerState {
    /// What stands behind a parameter's name, and the elements of this rank's share.
    buffers: Vec<(&'static str, Tensor)>,
    /// `[1]`: updates so far, where the rule counts them.
    updates: Option<Tensor>,
    share: Share,
    whole_len: usize,
    shards: Option<Shards>,
    /// With shards, on rank 0, while a checkpoint is read or written: the whole buffers.
    whole: RefCell<Option<Vec<Tensor>>>,
}

impl OptimizerState {
    /// Nothing is remembered yet, of `whole_len` parameters.
    pub(crate) fn new(
        names: &[&'static str],
        counts_updates: bool,
        whole_len: usize,
        shards: Option<Shards>,
        device: Device,
    ) -> Result<Self, Error> {
        let share = match &shards {
            None => Share::whole(whole_len),
            Some(shards) => Share::new(shards.buckets.iter().map(|(_, own)| own.clone())),
        };
        let buffers = names
            .iter()
            .map(|&name| Ok((name, Tensor::f_zeros([share.len() as i64], (Kind::Float, device))?)))
            .collect::<Result<_, Error>>()?;
        let updates = match counts_updates {
            true => Some(Tensor::f_zeros([1], (Kind::Float, device))?),
            false => None,
        };
        Ok(OptimizerState { buffers, updates, share, whole_len, shards, whole: RefCell::new(None) })
    }

    /// Which parameters this rank updates.
    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    pub(crate) fn shards(&self) -> Option<&Shards> {
        self.shards.as_ref()
    }

    /// The rank's own elements of each buffer.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = &Tensor> {
        self.buffers.iter().map(|(_, buffer)| buffer)
    }

    /// The count of updates, `[1]`, where the rule counts them.
    pub(crate) fn updates(&self) -> Option<&Tensor> {
        self.updates.as_ref()
    }

    /// Returns when the weights are those of all ranks' updates, on a device for whatever this thread queues there.
    pub(crate) fn await_weights(&self) -> Result<(), Error> {
        self.shards.as_ref().map_or(Ok(()), |shards| Ok(shards.gathering.await_all()?))
    }

    /// How long this rank has waited for weights since this was last asked.
    pub(crate) fn take_waited(&self) -> Duration {
        self.shards.as_ref().map_or(Duration::ZERO, |shards| shards.gathering.take_waited())
    }

    /// Forgets past gradients.
    pub(crate) fn reset(&self) -> Result<(), Error> {
        for tensor in self.buffers().chain(&self.updates) {
            let _ = tensor.shallow_clone().f_zero_()?;
        }
        Ok(())
    }

    /// The whole buffers with their names. With shards only on rank 0, after [`OptimizerState::gather`] or
    /// [`OptimizerState::make_room`].
    pub(crate) fn whole(&self) -> Result<Vec<(&'static str, Tensor)>, Error> {
        if self.shards.is_none() {
            return Ok(self.buffers.iter().map(|(name, buffer)| (*name, buffer.shallow_clone())).collect());
        }
        let whole = self.whole.borrow();
        let whole = whole.as_ref().ok_or_else(|| {
            Error::Other("the ranks' shares of the optimizer's state have not been gathered".into())
        })?;
        Ok(self.buffers.iter().zip(whole).map(|((name, _), whole)| (*name, whole.shallow_clone())).collect())
    }

    /// On rank 0: whole buffers, to be filled from a checkpoint and handed out by [`OptimizerState::broadcast`].
    pub(crate) fn make_room(&self) -> Result<(), Error> {
        if self.shards.is_some() {
            let zeros = || Tensor::f_zeros([self.whole_len as i64], (Kind::Float, Device::Cpu));
            let whole = self.buffers.iter().map(|_| zeros()).collect::<Result<_, _>>()?;
            self.whole.replace(Some(whole));
        }
        Ok(())
    }

    /// Collective, between steps: rank 0 gets the whole buffers, until [`OptimizerState::release`].
    pub(crate) fn gather(&self) -> Result<(), Error> {
        let Some(shards) = &self.shards else { return Ok(()) };
        let _no_grad = tch::no_grad_guard();
        if shards.is_leader() {
            self.make_room()?;
        }
        for (index, buffer) in self.buffers().enumerate() {
            for (bucket, _) in &shards.buckets {
                let part = shards.room_for(bucket)?;
                for (from, mut to) in self.own_in(bucket, buffer, &part)? {
                    to.f_copy_(&from)?;
                }
                shards.comm.gather_shards(region_of(&part)?)?;
                if let Some(whole) = &*self.whole.borrow() {
                    narrow(&whole[index], bucket)?.f_copy_(&part)?;
                }
            }
        }
        Ok(())
    }

    /// Lets go of the whole buffers.
    pub(crate) fn release(&self) {
        self.whole.replace(None);
    }

    /// Collective, between steps: what rank 0 remembers becomes what all remember. With shards, rank 0's whole buffers, or nothing
    /// where it has none.
    pub(crate) fn broadcast(&self, comm: &CommThread) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        if let Some(updates) = &self.updates {
            broadcast(comm, updates)?;
        }
        for (index, buffer) in self.buffers().enumerate() {
            let Some(shards) = &self.shards else {
                broadcast(comm, buffer)?;
                continue;
            };
            for (bucket, _) in &shards.buckets {
                let mut part = shards.room_for(bucket)?;
                if let Some(whole) = &*self.whole.borrow() {
                    part.f_copy_(&narrow(&whole[index], bucket)?)?;
                }
                comm.broadcast(region_of(&part)?, 0)?;
                for (mut own, from) in self.own_in(bucket, buffer, &part)? {
                    own.f_copy_(&from)?;
                }
            }
        }
        self.release();
        Ok(())
    }

    /// Views of this rank's elements of `bucket`: in its buffer, and in `part`, which holds all of the bucket.
    fn own_in(
        &self,
        bucket: &Range<usize>,
        buffer: &Tensor,
        part: &Tensor,
    ) -> Result<Vec<(Tensor, Tensor)>, Error> {
        let pair = |(range, offset): (Range<usize>, usize)| {
            let in_buffer = narrow(buffer, &(offset..offset + range.len()))?;
            Ok((in_buffer, narrow(part, &(range.start - bucket.start..range.end - bucket.start))?))
        };
        self.share.within(bucket).into_iter().map(pair).collect()
    }
}

/// Collective: rank 0's numbers for all, through the host's memory.
fn broadcast(comm: &CommThread, numbers: &Tensor) -> Result<(), Error> {
    let host = numbers.f_to_device(Device::Cpu)?;
    comm.broadcast(region_of(&host)?, 0)?;
    if numbers.device() != Device::Cpu {
        numbers.shallow_clone().f_copy_(&host)?;
    }
    Ok(())
}

/// A view of the elements `range` of a vector.
pub(crate) fn narrow(flat: &Tensor, range: &Range<usize>) -> Result<Tensor, Error> {
    Ok(flat.f_narrow(0, range.start as i64, range.len() as i64)?)
}
