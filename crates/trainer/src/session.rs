//! The ranks of one command, from their meeting to their common end.
//!
//! Owns the communication thread. Whatever a rank may fail at alone goes through [`Session::agree`], so that
//! all ranks go on together or end together, and the reason is printed once.

use std::io::Write;
use std::time::Duration;

use allreduce::{CommError, CommThread, Communicator, MpiCommunicator, Reduction, Solo, Topology};

use crate::config::Reduce;
use crate::delayed::Delayed;
use crate::error::{EXIT_FAILURE, EXIT_USAGE, Error};

/// This rank's connection to the others.
pub(crate) struct Session {
    comm: CommThread,
}

impl Session {
    /// Meets the other ranks that the launcher started, or stands alone when there was none.
    fn start(reduce: Reduce, delay: Duration) -> Result<Self, CommError> {
        let alone = allreduce::discover().is_none_or(|launched| launched.world_size == 1);
        let reduction = match reduce {
            Reduce::Ordered => Reduction::Ordered,
            Reduce::FlatOrdered => Reduction::FlatOrdered,
            Reduce::Mpi => Reduction::Library,
        };
        let comm = CommThread::start(move || {
            let communicator: Box<dyn Communicator> =
                if alone { Box::new(Solo::new()) } else { Box::new(MpiCommunicator::initialize(reduction)?) };
            Ok(if delay.is_zero() { communicator } else { Box::new(Delayed::new(communicator, delay)) })
        })?;
        Ok(Session { comm })
    }

    pub(crate) fn topology(&self) -> &Topology {
        self.comm.topology()
    }

    /// Whether this rank writes files and speaks to the user.
    pub(crate) fn is_leader(&self) -> bool {
        self.topology().rank == 0
    }

    pub(crate) fn comm(&self) -> &CommThread {
        &self.comm
    }

    /// Collective: the value if every rank succeeded, else the failure of the lowest rank that failed.
    pub(crate) fn agree<T>(&self, local: Result<T, Error>) -> Result<T, Error> {
        self.comm.agree(local.map_err(Into::into)).map_err(Error::Agreed)
    }

    /// Collective: an error that names the first rank whose `value` differs from rank 0's. What must be equal
    /// was given by the user, so it is an error of usage.
    pub(crate) fn agree_equal(&self, what: &str, value: &str) -> Result<(), Error> {
        self.comm.agree_equal(what, value).map_err(|mut agreed| {
            agreed.failure.exit_code = EXIT_USAGE;
            Error::Agreed(agreed)
        })
    }

    /// Collective: rank 0's bytes on every rank.
    pub(crate) fn leaders(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let mine = if self.is_leader() { bytes } else { Vec::new() };
        let mut all = self.comm.all_gather(mine)?;
        Ok(all.swap_remove(0))
    }
}

/// Runs `body` on every rank and ends the ranks together.
///
/// A failure that all ranks agreed on ends in an orderly way and is printed by the rank it belongs to. Any
/// other failure, a panic included, is this rank's alone: it is printed and all ranks are aborted, since the
/// others may be waiting.
///
/// # Errors
/// The failure, already printed.
pub(crate) fn with_session<T>(
    reduce: Reduce,
    body: impl FnOnce(&Session) -> Result<T, Error>,
) -> Result<T, Error> {
    with_delayed_session(reduce, Duration::ZERO, body)
}

/// As [`with_session`], with a communicator that takes `delay` longer for each sum.
pub(crate) fn with_delayed_session<T>(
    reduce: Reduce,
    delay: Duration,
    body: impl FnOnce(&Session) -> Result<T, Error>,
) -> Result<T, Error> {
    let session = Session::start(reduce, delay).map_err(Error::from).inspect_err(|error| {
        // Ranks that cannot meet all fail, and only their launcher's variables tell them apart.
        if allreduce::discover().is_none_or(|launched| launched.rank == 0) {
            print_error(None, error);
        }
    })?;
    let topology = session.topology().clone();
    let speaker = (topology.world_size > 1).then_some(&topology);
    if topology.world_size > 1 {
        abort_all_ranks_on_panic(session.comm.clone());
    }
    let result = body(&session);
    match &result {
        Err(Error::Agreed(agreed)) if agreed.mine => print_error(speaker, &Error::Agreed(agreed.clone())),
        Ok(_) | Err(Error::Agreed(_)) => {}
        Err(error) => {
            print_error(speaker, error);
            session.comm.abort(error.exit_code());
            return result;
        }
    }
    session.comm.shutdown().map_err(Error::from).inspect_err(|error| print_error(speaker, error))?;
    result
}

fn print_error(speaker: Option<&Topology>, error: &Error) {
    // Whether or not anybody reads it, the ranks must end together.
    let _ = match speaker {
        Some(topology) => {
            writeln!(std::io::stderr(), "error (rank {} on {}): {error}", topology.rank, topology.host)
        }
        None => writeln!(std::io::stderr(), "error: {error}"),
    };
}

/// A panic on the thread that trains leaves the other ranks in a collective for ever, so it ends them too.
/// Decoder threads catch their own panics and turn them into errors.
fn abort_all_ranks_on_panic(comm: CommThread) {
    let training_thread = std::thread::current().id();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == training_thread {
            report(panic);
            comm.abort(EXIT_FAILURE);
        }
    }));
}
