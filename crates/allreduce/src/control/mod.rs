//! The control plane: a TCP connection from each rank to rank 0, beside the communicator that carries the
//! data.
//!
//! Over it go heartbeats (what each rank is doing), now and then how fast each rank works, the last words of a rank that
//! failed, and rank 0's word that the job ends. So one rank's death ends all others within moments, and with its name; a
//! collective that does not finish within the timeout ends the job, with those it waits for. To end a job, rank 0 prints
//! why and tells the others; each rank writes its [flight record](crate::FlightRecorder) and ends its process
//! without MPI, which may be waiting for a rank that is no more. Data never travels here.
//!
//! Only ranks that show the job's token are let in, and when all are there nobody is listening any more.
//! Messages are not encrypted.

pub(crate) mod addresses;
mod exit;
mod link;
mod meeting;
mod pace;
mod plane;
mod verdict;
mod wire;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use mio::Waker;

pub(crate) use self::exit::end_process;
use self::meeting::meet;
use self::pace::Paces;
pub use self::pace::{Pace, RankPace};
use self::plane::{Command, Plane};
use crate::agreement::EXIT_FAILURE;
use crate::scheduling::ask_for_short_slices;
use crate::{Agreed, CommThread, Failure};

/// How long a failing rank waits for its control plane to end the process.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a process is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ending {
    exit_code: i32,
    /// Why, for the flight record.
    sentence: String,
    /// What this rank has to say, unless another one says it.
    printed: Option<String>,
}

/// Takes this process to its end; returns in tests only.
type End = Arc<dyn Fn(Ending) + Send + Sync>;

/// This rank's end of the control plane. Clones are the same.
#[derive(Clone)]
pub struct Control {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    /// Disconnected when the thread has ended.
    running: Receiver<()>,
    paces: Paces,
}

impl Control {
    /// Collective: connects the ranks and starts this rank's thread. From now on a job in which a collective of
    /// `comm` takes longer than rank 0's `timeout`, or of which a rank disappears, is ended on all ranks with
    /// exit code 1.
    ///
    /// # Errors
    /// When the ranks do not meet: that on all of them, or that this rank could not talk to the others.
    pub fn start(comm: &CommThread, timeout: Duration) -> Result<Control, Agreed> {
        Self::start_with(comm, timeout, Arc::new(|ending: Ending| end_process(ending.exit_code)))
    }

    fn start_with(comm: &CommThread, timeout: Duration, end: End) -> Result<Control, Agreed> {
        let connections = meet(comm, timeout)?;
        let (commands, receiver) = unbounded();
        let (ending, running) = bounded(0);
        let rank = comm.topology().rank;
        let (flight, paces) = (comm.flight().clone(), Paces::default());
        // No thread serves before all can: one that cannot is no death of its rank.
        let (all_can, begin) = bounded::<()>(1);
        let started =
            Plane::new(rank, connections, flight, paces.clone(), receiver, Arc::clone(&end), ending)
                .and_then(|(plane, waker)| {
                    std::thread::Builder::new()
                        .name("control plane".into())
                        .spawn(move || begin.recv().map(|()| serve(plane, &end)))?;
                    Ok(waker)
                });
        let waker = comm.agree(started.map_err(|error| Failure {
            exit_code: EXIT_FAILURE,
            sentence: format!("cannot start the control plane: {error}"),
        }))?;
        let _ = all_can.send(());
        Ok(Control { commands, waker: Arc::new(waker), running, paces })
    }

    /// This rank failed, with a sentence that has not been printed: prints it, once for the job, and ends all
    /// ranks with `exit_code`. Returns only if this process does not end, which should not happen.
    pub fn fail(&self, exit_code: i32, sentence: &str) {
        self.command(Command::Fail { exit_code, sentence: sentence.to_owned() });
        let _ = self.running.recv_timeout(PATIENCE);
    }

    /// Tells rank 0 how fast this rank works, without waiting for it to hear.
    pub fn tell_pace(&self, pace: Pace) {
        self.command(Command::TellPace(pace));
    }

    /// On rank 0, what every other rank told last, by rank; those that told nothing yet are missing.
    #[must_use]
    pub fn paces(&self) -> Vec<RankPace> {
        self.paces.all()
    }

    /// Waits for at most `patience` whether the control plane ends this process for a reason of its own.
    pub fn await_verdict(&self, patience: Duration) {
        let _ = self.running.recv_timeout(patience);
    }

    /// The job is done, on all ranks: connections that end are no deaths any more. Returns when this rank's
    /// thread has ended.
    pub fn leave(self) {
        self.command(Command::Leave);
        if self.running.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the control plane does not end");
        }
    }

    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        if let Err(error) = self.waker.wake() {
            tracing::warn!(%error, "the control plane cannot be woken");
        }
    }
}

fn serve(plane: Plane, end: &End) {
    if let Err(reason) = ask_for_short_slices() {
        tracing::debug!(%reason, "the control plane cannot ask for short slices");
    }
    if catch_unwind(AssertUnwindSafe(|| plane.run())).is_err() {
        let sentence = "the control plane of this rank panicked";
        print(&format!("error: {sentence}"));
        end(Ending { exit_code: EXIT_FAILURE, sentence: sentence.into(), printed: None });
    }
}

/// Whether or not anybody reads it, the ranks must end.
fn print(line: &str) {
    // In one piece: other ranks write to the same place.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests;
