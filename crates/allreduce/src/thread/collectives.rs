//! The collectives that a handle of the communication thread has done.

use crossbeam::channel::{Sender, bounded};

use super::{CommThread, Work};
use crate::communicator::Communicator;
use crate::flight::{Collective, CollectiveKind};
use crate::nccl::{Moment, Ready, RegionDevice};
use crate::on_device;
use crate::pending::{Arrival, Pending};
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
        self.start_gather_shards(region).wait()?.hold_caller()
    }

    /// As [`CommThread::gather_shards`], but returns at once. The operation is under way until its arrival has held who
    /// uses the elements.
    pub fn start_gather_shards(&self, region: Region) -> Pending<Arrival> {
        let collective = Collective {
            bytes: Some(region.len() * size_of::<f32>()),
            dtype: Some("fp32".into()),
            ..Collective::of_kind(CollectiveKind::AllGather)
        };
        if let Some(computed) = region.device().map(RegionDevice::mark) {
            let (reply, result) = bounded(1);
            self.submit(Box::new(GatherOnDevice { collective, region, computed: Some(computed), reply }));
            return Pending::new(self.clone(), result);
        }
        self.start_as(collective, move |communicator| {
            communicator.gather_shards(&mut region.lock())?;
            Ok(Arrival::over())
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

/// The gathering of shards in the memory of a device, whose caller hears as soon as it is queued.
struct GatherOnDevice {
    collective: Collective,
    region: Region,
    /// Lets the device wait for what is to be gathered.
    computed: Option<Result<Ready, String>>,
    reply: Sender<Result<Arrival, CommError>>,
}

impl Work for GatherOnDevice {
    fn collective(&self) -> Collective {
        self.collective.clone()
    }

    fn is_on_device(&self) -> bool {
        true
    }

    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<Option<Box<dyn Moment>>, CommError> {
        let Some(computed) = self.computed.take() else { return Ok(None) };
        let [end, same_end] = on_device::gather_shards(communicator, &self.region, computed)?;
        let _ = self.reply.send(Ok(Arrival::at(same_end)));
        Ok(Some(end))
    }

    fn done(self: Box<Self>, result: Result<(), CommError>) {
        if let Err(error) = result {
            // Unread where it was queued before; then it is known from whatever comes next.
            let _ = self.reply.try_send(Err(error));
        }
    }
}
