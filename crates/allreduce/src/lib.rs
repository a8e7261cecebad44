//! The exchange of gradients between the ranks of a data-parallel job.
//!
//! A rank is a process. [`CommThread`] is its one thread that talks to the others, through a
//! [`Communicator`]: [`Solo`] for one rank, [`MpiCommunicator`] for those that an MPI launcher started,
//! [`TcpCommunicator`] for those that know each other from environment variables only, and [`NcclCommunicator`]
//! beside one of these where gradients lie on GPUs.
//! [`Reducer`] averages a flat gradient buffer over all ranks, one [`Bucket`] after the other, while backward
//! goes on; [`Reduction::Ordered`] and [`Accumulation::Tree`] together make the result independent of the
//! number of ranks, bit for bit. [`CommThread::agree`] lets ranks end together, and the [`Control`] plane
//! ends all of them when one fails alone, dies or hangs.
//!
//! Works on memory ranges and segment tables, and knows neither networks nor tensors.

mod accumulate;
mod agreement;
mod backoff;
mod buckets;
mod callers;
mod communicator;
mod compressed;
mod control;
mod error;
mod finite;
mod flight;
mod frames;
mod hierarchical;
mod hook;
#[cfg(test)]
mod in_process;
mod measure;
mod mpi;
mod nccl;
mod on_device;
mod ordered;
mod pending;
mod processor_time;
mod reducer;
mod region;
mod scheduling;
mod sharding;
mod sums;
mod tcp;
mod thread;
mod topology;
mod transport;

pub use accumulate::Accumulation;
pub use agreement::{Agreed, Failure};
pub use buckets::{Bucket, Segment, plan_buckets};
pub use communicator::{AbortSignal, Communicator, DeviceTask, Reduction, Solo};
pub use compressed::Wire;
pub use control::{Control, Pace, RankPace};
pub use error::CommError;
pub use flight::{Collective, CollectiveKind, FlightRecorder, Status, WriteWhole};
pub use hook::{BucketHook, Sum};
pub use measure::{measure_all_reduce, values_to_sum, wrong_sums};
pub use mpi::MpiCommunicator;
pub use nccl::{ExchangeDevice, Moment, NcclCommunicator, Now, Ready, RegionDevice};
pub use pending::{Arrival, Pending};
pub use reducer::{BucketRecord, Reducer, ReducerOptions, StepExchange};
pub use region::Region;
pub use sharding::Sharding;
pub use tcp::{MeetingPoint, TcpCommunicator};
pub use thread::CommThread;
pub use topology::{LaunchedRank, Topology, Way, discover};
