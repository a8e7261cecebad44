//! The exchange over NCCL. Another communicator, over MPI or TCP, stays beside it: it brings NCCL's ranks together,
//! and carries what lies in host memory, such as what ranks agree on. Only sums and shards of the device's values go
//! over NCCL.

mod buffers;
mod device;
mod exchange;
mod region_device;

use std::time::Duration;

use nccl_rs::{Comm, Config, Library, Progress, UniqueId};
use serde::{Deserialize, Serialize};

pub(crate) use self::device::device_failed;
pub use self::device::{ExchangeDevice, Moment, Now};
pub use self::region_device::{Ready, RegionDevice};

pub(crate) use self::device::HostMemory;
use self::exchange::{Exchange, Values, Waiting};
use crate::backoff::Patience;
use crate::communicator::{AbortSignal, Communicator, DeviceTask, Reduction};
use crate::{CommError, Region, Topology, Wire};

/// Sums, and gathers shards on the device, over NCCL; does everything else over the communicator that it is made of.
///
/// NCCL's ranks meet at the first sum, on the device that it is on, so that by then a watchdog can see to it. An
/// abort, or an error of NCCL, ends NCCL's part without waiting for other ranks.
pub struct NcclCommunicator {
    control: Box<dyn Communicator>,
    library: Library,
    id: UniqueId,
    reduction: Reduction,
    config: Config,
    waiting: Waiting,
    state: State,
    host: HostMemory,
}

enum State {
    Apart,
    Met(Box<Exchange>),
    /// The first failure, or the end.
    Over(CommError),
}

/// What each rank tells all others.
#[derive(Serialize, Deserialize)]
struct Word {
    /// Version of its libnccl, or why there is none.
    library: Result<String, String>,
    /// On rank 0.
    id: Option<Vec<u8>>,
}

impl NcclCommunicator {
    /// Collective over the ranks of `control`: finds libnccl, the same version on every rank, and passes its unique id
    /// round. `control` ends when this fails, on all ranks. NCCL's ranks meet with `config`.
    ///
    /// # Errors
    /// On all ranks alike, which rank has no libnccl and why, or which one has another version; or that `control`
    /// failed.
    pub fn new(
        mut control: Box<dyn Communicator>,
        reduction: Reduction,
        config: Config,
    ) -> Result<Self, CommError> {
        match introduce(&mut *control) {
            Ok((library, id)) => Ok(NcclCommunicator {
                control,
                library,
                id,
                reduction,
                config,
                waiting: Waiting { signal: AbortSignal::new(), patience: Patience::WITHIN_HOST },
                state: State::Apart,
                host: HostMemory::default(),
            }),
            Err(error) => {
                if matches!(error, CommError::Nccl(_)) {
                    control.finalize()?;
                }
                Err(error)
            }
        }
    }

    fn meet(&mut self, device: &mut dyn ExchangeDevice) -> Result<Exchange, CommError> {
        // Makes its device the current one.
        let _ = device.stream().map_err(CommError::Nccl)?;
        let Topology { rank, world_size, .. } = *self.control.topology();
        let mut comm = Comm::init(&self.library, self.id, rank, world_size, self.config)?;
        self.waiting.until(|| Ok(comm.poll()? == Progress::Complete))?;
        Ok(Exchange::new(comm, self.library.clone(), rank, world_size))
    }

    /// Ranks that have not met yet do.
    ///
    /// # Safety
    /// As [`Communicator::on_device`]; `region` is where the values lie, if they stay there.
    #[allow(unsafe_code)]
    unsafe fn perform(
        &mut self,
        device: &mut dyn ExchangeDevice,
        values: Values,
        region: Option<&Region>,
        task: DeviceTask,
    ) -> Result<(), CommError> {
        if matches!(self.state, State::Apart) {
            self.state = match self.meet(device) {
                Ok(exchange) => State::Met(Box::new(exchange)),
                Err(error) => State::Over(error),
            };
        }
        let exchange = match &mut self.state {
            State::Met(exchange) => exchange,
            State::Over(error) => return Err(error.clone()),
            State::Apart => return Err(CommError::Ended),
        };
        let (reduction, waiting) = (self.reduction, &self.waiting);
        let prepared =
            exchange.prepare(device, (region, values.len), (task, reduction), &mut *self.control, waiting);
        // SAFETY: the caller's promise.
        let result =
            prepared.and_then(|()| unsafe { exchange.run(device, values, task, reduction, waiting) });
        self.over_after_error(result)
    }

    /// An error ends NCCL's part: the communicator is dropped, which aborts it.
    fn over_after_error<T>(&mut self, result: Result<T, CommError>) -> Result<T, CommError> {
        if let Err(error) = &result {
            self.state = State::Over(error.clone());
        }
        result
    }

    #[allow(unsafe_code)]
    fn perform_on_host(&mut self, values: &mut [f32], task: DeviceTask) -> Result<(), CommError> {
        if !self.library.works_on_host_memory() {
            return Err(CommError::Nccl("it sums the memory of GPUs, not of the host".into()));
        }
        let mut host = std::mem::take(&mut self.host);
        let range = Values { start: values.as_mut_ptr(), len: values.len() };
        // SAFETY: host memory, on which this library works, borrowed until all is done; after an error, also of the wait,
        // the communicator is dropped.
        let result = unsafe { self.perform(&mut host, range, None, task) };
        let result = result.and_then(|()| self.await_moment(&mut Now));
        self.host = host;
        result
    }
}

/// Collective: this rank's library, and the id that rank 0 made with its own.
fn introduce(control: &mut dyn Communicator) -> Result<(Library, UniqueId), CommError> {
    let leader = control.topology().rank == 0;
    let library = Library::load();
    let made = match (&library, leader) {
        (Ok(library), true) => UniqueId::new(library).map(Some).map_err(|error| error.to_string()),
        _ => Ok(None),
    };
    let version = library.as_ref().map(|library| library.version().to_string());
    let word = Word {
        library: version.map_err(ToString::to_string).and_then(|version| made.clone().map(|_| version)),
        id: made.ok().flatten().map(|id| id.to_bytes().to_vec()),
    };
    let word = serde_json::to_vec(&word).map_err(|error| CommError::Nccl(error.to_string()))?;
    let words = control.all_gather(&word)?;
    let words: Vec<Word> = words
        .iter()
        .map(|word| serde_json::from_slice(word))
        .collect::<Result<_, _>>()
        .map_err(|_| CommError::Nccl("the ranks run different versions of this program".into()))?;
    let mut versions = Vec::with_capacity(words.len());
    for (rank, word) in words.iter().enumerate() {
        match &word.library {
            Ok(version) => versions.push(version),
            Err(sentence) => return Err(CommError::Nccl(format!("rank {rank} has no NCCL: {sentence}"))),
        }
    }
    if let Some(rank) = versions.iter().position(|version| *version != versions[0]) {
        let (first, other) = (versions[0], versions[rank]);
        return Err(CommError::Nccl(format!(
            "rank 0 has NCCL {first}, rank {rank} has {other}; all ranks need the same version"
        )));
    }
    let id = words.first().and_then(|word| UniqueId::from_bytes(word.id.as_deref()?));
    match (library, id) {
        (Ok(library), Some(id)) => Ok((library, id)),
        _ => Err(CommError::Nccl("rank 0 made no unique id".into())),
    }
}

impl Communicator for NcclCommunicator {
    fn topology(&self) -> &Topology {
        self.control.topology()
    }

    fn description(&self) -> String {
        format!("{:?}; beside it {}", self.library, self.control.description())
    }

    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.control.interrupt_by(signal.clone());
        self.waiting.signal = signal;
    }

    fn spin_for(&mut self, spin: Duration) {
        self.control.spin_for(spin);
        self.waiting.patience = Patience::with_a_spare_core(spin);
    }

    fn sums_host_memory(&self) -> bool {
        self.library.works_on_host_memory()
    }

    fn sums_device_memory(&self) -> bool {
        true
    }

    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError> {
        self.perform_on_host(values, DeviceTask::AllReduce(wire))
    }

    fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        self.perform_on_host(values, DeviceTask::ReduceScatter)
    }

    #[allow(unsafe_code)]
    unsafe fn on_device(
        &mut self,
        device: &mut dyn ExchangeDevice,
        region: &Region,
        task: DeviceTask,
    ) -> Result<(), CommError> {
        let values = Values { start: region.start(), len: region.len() };
        // SAFETY: the caller's promise.
        unsafe { self.perform(device, values, Some(region), task) }
    }

    fn has_come(&mut self, moment: &mut dyn Moment) -> Result<bool, CommError> {
        let come = match &mut self.state {
            State::Met(exchange) => exchange.has_come(moment),
            State::Apart => moment.has_come().map_err(device_failed),
            State::Over(error) => Err(error.clone()),
        };
        self.over_after_error(come)
    }

    fn await_moment(&mut self, moment: &mut dyn Moment) -> Result<(), CommError> {
        let waiting = self.waiting.clone();
        // Also when it was aborted: what was waited for may go on otherwise, in memory that its owner takes back.
        let come = waiting.until(|| self.has_come(moment));
        self.over_after_error(come)
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError> {
        self.control.broadcast(values, root)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.control.all_gather(bytes)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.control.barrier()
    }

    fn abort(&mut self, exit_code: i32) {
        self.state = State::Over(CommError::Aborted);
        self.control.abort(exit_code);
    }

    fn finalize(&mut self) -> Result<(), CommError> {
        let waiting = self.waiting.clone();
        let ended = match &mut self.state {
            State::Met(exchange) => exchange.finalize(&waiting),
            State::Apart => Ok(()),
            State::Over(error) => Err(error.clone()),
        };
        self.state = State::Over(CommError::Ended);
        ended?;
        self.control.finalize()
    }
}
