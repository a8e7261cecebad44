//! Why ranks could not talk to each other.

use crate::Wire;

/// A failed communication. After one, the communicator is of no further use: the other ranks may be waiting
/// in an operation that this rank left, so all that remains is to end the job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// An MPI function returned an error code.
    #[error("{call} failed: {message} (MPI error {code})")]
    Mpi {
        /// The function.
        call: &'static str,
        /// MPI's own sentence for the code.
        message: String,
        /// What the function returned.
        code: i32,
    },
    /// MPI was started earlier in this process; it can be started only once.
    #[error("MPI has already been started in this process, and it can be started only once")]
    AlreadyStarted,
    /// The MPI library cannot be used in a process with several threads.
    #[error(
        "the MPI library grants thread level {granted}, but FUNNELED is needed beside the threads that compute"
    )]
    ThreadLevel {
        /// What it grants.
        granted: &'static str,
    },
    /// The launcher and the MPI library do not know each other.
    #[error(
        "{launcher} started {launched} ranks, but the MPI library sees {seen}: it was built without support for this \
         launcher; start the ranks with the `mpirun` of this MPI library, or without MPI, with `srun --mpi=none`"
    )]
    Launch {
        /// Who started the ranks.
        launcher: &'static str,
        /// How many ranks it announced.
        launched: usize,
        /// The size of `MPI_COMM_WORLD`.
        seen: usize,
    },
    /// The variables that should say which rank this is make no sense.
    #[error("{0}")]
    Environment(String),
    /// The ranks could not meet at the address that all of them know.
    #[error("{sentence}")]
    NoMeeting {
        /// Why not.
        sentence: String,
        /// Whether this rank found it out; otherwise rank 0 did, and says so.
        mine: bool,
    },
    /// A connection to another rank ended in the middle of the job.
    #[error("rank {rank} on {host} is gone: {reason}")]
    Lost {
        /// The other rank.
        rank: usize,
        /// Its host.
        host: String,
        /// How that showed.
        reason: String,
    },
    /// There is no library that could sum.
    #[error(
        "the ranks talk over TCP, without MPI, and cannot leave sums to it; set comm.reduce to ordered, or start them with mpirun"
    )]
    NoLibrary {
        /// Whether this rank is the one to say so.
        mine: bool,
    },
    /// A message had another length than the operation of this rank calls for.
    #[error(
        "rank {peer} sent {received} bytes where {expected} were expected: the ranks do not run the same operation"
    )]
    OutOfStep {
        /// The sender.
        peer: usize,
        /// Length by this rank's operation.
        expected: usize,
        /// Length of the message.
        received: usize,
    },
    /// The ranks were about to run different operations.
    #[error("the ranks do not run the same operations: {0}")]
    OtherCollective(String),
    /// MPI's own reduction cannot sum 16-bit formats.
    #[error("MPI cannot sum {wire:?} values; leave compression at none, or let the ranks sum in order")]
    UnknownToLibrary {
        /// The format asked for.
        wire: Wire,
    },
    /// NCCL cannot be used, or failed.
    #[error("NCCL: {0}")]
    Nccl(String),
    /// Only NCCL exchanges the memory of a GPU.
    #[error("this communicator sums values in host memory only")]
    HostMemoryOnly,
    /// The root of an operation does not exist.
    #[error("rank {root} does not exist, there are {world_size} ranks")]
    NoSuchRank {
        /// The rank asked for.
        root: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// What was to be done with a bucket beside its exchange failed on this rank.
    #[error("{0}")]
    Hook(String),
    /// The job is being ended on request.
    #[error("the job is being aborted")]
    Aborted,
    /// The communication thread could not be started.
    #[error("cannot start the communication thread: {0}")]
    Thread(String),
    /// The communication thread has ended, so nothing can be exchanged any more.
    #[error("the communication thread has ended")]
    Ended,
    /// The communication thread panicked.
    #[error("the communication thread panicked: {0}")]
    Panicked(String),
}

impl CommError {
    /// Whether rank `rank`, which could not meet the others because of this, is the one to say so. What all ranks find
    /// alike is rank 0's to say.
    #[must_use]
    pub fn is_for(&self, rank: usize) -> bool {
        match self {
            CommError::NoMeeting { mine, .. } | CommError::NoLibrary { mine } => *mine,
            _ => rank == 0,
        }
    }
}
