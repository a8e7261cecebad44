//! The ranks of one command, from their meeting to their common end.
//!
//! Owns the communication thread and the control plane. Whatever a rank may fail at alone goes through
//! [`Session::agree`], so that all ranks go on together or end together, and the reason is printed once. What
//! cannot be agreed on, since ranks no longer come to the same point, the control plane ends.

use std::fmt::Debug;
use std::io::Write;
use std::time::Duration;

use allreduce::{
    Agreed, CommError, CommThread, Communicator, Control, FlightRecorder, LaunchedRank, MpiCommunicator,
    Reduction, Solo, TcpCommunicator, Topology, Way,
};

use crate::backend;
use crate::config::{Backend, CommConfig, Reduce};
use crate::delayed::Delayed;
use crate::device::usable_cores;
use crate::error::{EXIT_FAILURE, EXIT_USAGE, Error};

/// When ranks can no longer exchange anything, the reason is mostly another rank's death, which the control
/// plane names within this time.
const VERDICT: Duration = Duration::from_secs(2);

/// Longer than one rank is late as a rule, so that what is exchanged in no time is not waited for in sleep.
const SPIN_ON_A_SPARE_CORE: Duration = Duration::from_millis(1);

/// This rank's connection to the others.
pub(crate) struct Session {
    comm: CommThread,
    /// Absent when there are no others.
    control: Option<Control>,
    /// What this rank would sum over.
    backend: Backend,
}

impl Session {
    /// Meets the other ranks that the launcher started, or stands alone when there was none.
    fn start(launched: Option<LaunchedRank>, config: &CommConfig, delay: Duration) -> Result<Self, Error> {
        let launched = launched.filter(|launched| launched.world_size > 1);
        let timeout = Duration::from_secs(config.timeout_s.into());
        let reduction = match config.reduce {
            Reduce::Ordered => Reduction::Ordered,
            Reduce::FlatOrdered => Reduction::FlatOrdered,
            Reduce::Mpi | Reduce::Nccl => Reduction::Library,
        };
        let backend = config.backend;
        let nccl_config = nccl_rs::Config { max_ctas: config.nccl_max_ctas, ..nccl_rs::Config::default() };
        // Beside NCCL there is nothing left to sum.
        let beside = if backend == Backend::Nccl { Reduction::Ordered } else { reduction };
        let comm = CommThread::start(move || {
            let communicator: Box<dyn Communicator> = match &launched {
                None => Box::new(Solo::new()),
                Some(LaunchedRank { way: Way::Mpi, .. }) => Box::new(MpiCommunicator::initialize(beside)?),
                Some(launched) => Box::new(TcpCommunicator::initialize(launched, beside, timeout)?),
            };
            let communicator = backend::over(communicator, backend, reduction, nccl_config)?;
            Ok(if delay.is_zero() { communicator } else { Box::new(Delayed::new(communicator, delay)) })
        })?;
        let control = match comm.topology().world_size {
            1 => None,
            _ => match Control::start(&comm, timeout) {
                Ok(control) => Some(control),
                Err(agreed) => return Err(end_without_control(comm, agreed)),
            },
        };
        Ok(Session { comm, control, backend })
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

    /// The connection to rank 0; absent when there are no other ranks.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// Where this rank notes what it is doing.
    pub(crate) fn flight(&self) -> &FlightRecorder {
        self.comm.flight()
    }

    /// Lets waits for other ranks spin rather than sleep if each rank of this host has a core for that, beside
    /// `computing` threads of its own that compute.
    pub(crate) fn spin_on_a_spare_core(&self, computing: usize) {
        if self.topology().local_size * (computing + 1) <= usable_cores() {
            self.comm.spin_for(SPIN_ON_A_SPARE_CORE);
        }
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

    /// Collective: an error unless all ranks sum over the same library. For ranks whose configuration is the same.
    pub(crate) fn agree_on_backend(&self) -> Result<(), Error> {
        let what = "the library for sums (NCCL where libtorch finds a GPU, unless comm.backend names one)";
        self.agree_equal(what, self.backend.name())
    }

    /// Collective: whether any rank says so.
    pub(crate) fn any(&self, mine: bool) -> Result<bool, Error> {
        Ok(self.comm.all_gather(vec![mine.into()])?.iter().any(|word| word == &[1]))
    }

    /// Collective: rank 0's bytes on every rank.
    pub(crate) fn leaders(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let mine = if self.is_leader() { bytes } else { Vec::new() };
        let mut all = self.comm.all_gather(mine)?;
        Ok(all.swap_remove(0))
    }
}

/// A command with those of its options that are to be the same on all ranks.
pub(crate) struct Command(String);

impl Command {
    /// Each option by its name and value.
    pub(crate) fn new(name: &str, options: &[(&str, String)]) -> Self {
        let options = options.iter().map(|(option, value)| format!("--{option}: {value}\n"));
        Command(std::iter::once(format!("wrn-dist: {name}\n")).chain(options).collect())
    }
}

/// The value of an option that may be left out, for a [`Command`].
pub(crate) fn given(value: Option<impl Debug>) -> String {
    value.map_or_else(|| "not given".into(), |value| format!("{value:?}"))
}

/// Runs `body` on every rank and ends the ranks together. Ranks that run another command, or with other options, end in
/// a sentence.
///
/// A failure that all ranks agreed on ends in an orderly way and is printed by the rank it belongs to. Any
/// other failure, a panic included, is this rank's alone: the control plane prints it and ends all ranks,
/// since the others may be waiting.
///
/// # Errors
/// The failure, already printed.
pub(crate) fn with_session<T>(
    command: &Command,
    config: &CommConfig,
    body: impl FnOnce(&Session) -> Result<T, Error>,
) -> Result<T, Error> {
    with_delayed_session(command, config, Duration::ZERO, body)
}

/// As [`with_session`], with a communicator that takes `delay` longer for each sum.
pub(crate) fn with_delayed_session<T>(
    command: &Command,
    config: &CommConfig,
    delay: Duration,
    body: impl FnOnce(&Session) -> Result<T, Error>,
) -> Result<T, Error> {
    let launched =
        allreduce::discover().map_err(Error::from).inspect_err(|error| print_error(None, error))?;
    // Ranks that cannot meet all fail, and only their launcher's variables tell them apart.
    let rank = launched.as_ref().map_or(0, |launched| launched.rank);
    let session = Session::start(launched, config, delay).inspect_err(|error| {
        let mine = match error {
            Error::Comm(error) => error.is_for(rank),
            // Printed, before the communication ended.
            Error::Agreed(_) => false,
            _ => rank == 0,
        };
        if mine {
            print_error(None, error);
        }
    })?;
    if let Some(control) = &session.control {
        end_all_ranks_on_panic(control.clone());
    }
    let result = session.agree_equal("the command", &command.0).and_then(|()| body(&session));
    if let Err(error) = &result {
        session.write_flight_record(error);
    }
    let can_agree = session.flight().failure().is_none();
    match &result {
        Err(Error::Agreed(agreed)) if can_agree => {
            if agreed.mine {
                session.print(&Error::Agreed(agreed.clone()));
            }
        }
        Ok(_) => {}
        Err(error) => {
            session.fail(error);
            return result;
        }
    }
    session.flight().enter(None, "end");
    let Session { comm, control, .. } = session;
    let (topology, flight) = (comm.topology().clone(), comm.flight().clone());
    let ended = comm.shutdown().map_err(Error::from);
    match (control, &ended) {
        (Some(control), Ok(())) => control.leave(),
        (Some(control), Err(error)) => fail_through(&control, error, flight.failure()),
        (None, Ok(())) => {}
        (None, Err(error)) => print_error((topology.world_size > 1).then_some(&topology), error),
    }
    ended?;
    result
}

/// The ranks have met, but not on a control plane: the one that it belongs to says why, and if all know of it they end
/// together.
fn end_without_control(comm: CommThread, agreed: Agreed) -> Error {
    let (mine, error) = (agreed.mine, Error::Agreed(agreed));
    if mine {
        print_error(Some(comm.topology()), &error);
    }
    if comm.flight().failure().is_none() {
        let _ = comm.shutdown();
    }
    error
}

/// Whether this process says what all ranks would say before they have met: rank 0 does, and a process that no launcher
/// has started.
#[must_use]
pub fn speaks_for_all() -> bool {
    allreduce::discover().ok().flatten().is_none_or(|launched| launched.rank == 0)
}

impl Session {
    /// This rank fails by itself.
    fn fail(&self, error: &Error) {
        match &self.control {
            Some(control) => fail_through(control, error, self.flight().failure()),
            None => self.print(error),
        }
        // Without a control plane, or if that did not help.
        self.comm.abort(error.exit_code());
    }

    fn print(&self, error: &Error) {
        print_error((self.topology().world_size > 1).then_some(self.topology()), error);
    }

    fn write_flight_record(&self, error: &Error) {
        if let Err(reason) = self.flight().write(&error.to_string()) {
            tracing::warn!(%reason, "cannot write the flight record");
        }
    }
}

/// Ends all ranks because of `error`. When the exchange itself failed, another rank's end may be the cause.
fn fail_through(control: &Control, error: &Error, exchange: Option<CommError>) {
    let another_rank_may_be_the_cause = |error: &CommError| {
        matches!(
            error,
            CommError::Mpi { .. }
                | CommError::Lost { .. }
                | CommError::Nccl(_)
                | CommError::Aborted
                | CommError::Ended
        )
    };
    if exchange.as_ref().is_some_and(another_rank_may_be_the_cause) {
        control.await_verdict(VERDICT);
    }
    control.fail(error.exit_code(), &error.to_string());
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
fn end_all_ranks_on_panic(control: Control) {
    let training_thread = std::thread::current().id();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == training_thread {
            report(panic);
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("without a message");
            let place =
                panic.location().map_or(String::new(), |at| format!(" at {}:{}", at.file(), at.line()));
            control.fail(EXIT_FAILURE, &format!("panicked{place}: {text}"));
        }
    }));
}
