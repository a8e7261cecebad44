//! What runs on the communication thread: one piece of work after the other, until the end or the first failure.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam::channel::Receiver;

use super::Job;
use crate::CommError;
use crate::agreement::EXIT_FAILURE;
use crate::communicator::{AbortSignal, Communicator};
use crate::flight::{Collective, CollectiveKind, FlightRecorder};

/// Serves until the end of communication.
pub(super) fn serve(
    communicator: &mut dyn Communicator,
    jobs: &Receiver<Job>,
    signal: &AbortSignal,
    flight: &FlightRecorder,
) {
    let alone = communicator.topology().world_size == 1;
    let mut server = Server { communicator, flight, failure: None, checks: false };
    // Where two are to be swapped, the first of them is held back.
    let (mut swap, mut held) = (false, None);
    loop {
        // An abort comes before any answer: what waits for one must not run on into the end of the process.
        if let Some(exit_code) = signal.raised() {
            return server.communicator.abort(exit_code);
        }
        match jobs.recv() {
            Ok(Job::Wake) => {}
            Ok(Job::Check) => server.checks = !alone,
            Ok(Job::Spin(spin)) => server.communicator.spin_for(spin),
            Ok(Job::SwapNextTwo) => swap = true,
            Ok(Job::Work(work)) if swap => (swap, held) = (false, Some(work)),
            Ok(Job::Work(work)) => {
                for mut work in std::iter::once(work).chain(held.take()) {
                    let result = server.collective(work.collective(), |communicator| work.run(communicator));
                    if let (Err(_), Some(exit_code)) = (&result, signal.raised()) {
                        return server.communicator.abort(exit_code);
                    }
                    work.done(result);
                }
            }
            Ok(Job::Shutdown(reply)) => {
                let barrier = Collective::of_kind(CollectiveKind::Barrier);
                let result = server.collective(barrier, |communicator| {
                    communicator.barrier().and_then(|()| communicator.finalize())
                });
                if result.is_err() && !alone {
                    server.communicator.abort(signal.raised().unwrap_or(EXIT_FAILURE));
                }
                return drop(reply.send(result));
            }
            // All handles of a rank alone are gone; with others, the last handle raises the signal.
            Err(_) => {
                let _ = guarded(|| server.communicator.finalize());
                return;
            }
        }
    }
}

/// Runs one collective after the other, until one fails.
struct Server<'a> {
    communicator: &'a mut dyn Communicator,
    flight: &'a FlightRecorder,
    failure: Option<CommError>,
    /// Whether ranks compare before each collective what it is.
    checks: bool,
}

impl Server<'_> {
    fn collective(
        &mut self,
        collective: Collective,
        run: impl FnOnce(&mut dyn Communicator) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let number = self.flight.begin(collective.clone());
        let result = guarded(|| {
            if self.checks {
                compare(self.communicator, number, &collective)?;
            }
            run(self.communicator)
        });
        self.flight.end(&result);
        self.failure = result.clone().err();
        result
    }
}

/// Collective: an error, the same on all ranks, unless all are about to run the same thing.
fn compare(
    communicator: &mut dyn Communicator,
    number: u64,
    collective: &Collective,
) -> Result<(), CommError> {
    let host = communicator.topology().host.clone();
    let all = communicator.all_gather(format!("{number} {collective}\n{host}").as_bytes())?;
    let all: Vec<_> = all.iter().map(|text| String::from_utf8_lossy(text)).collect();
    let parts: Vec<(&str, &str)> =
        all.iter().map(|text| text.split_once('\n').unwrap_or((text, ""))).collect();
    let Some(rank) = parts.iter().position(|(what, _)| *what != parts[0].0) else { return Ok(()) };
    let ((ours, our_host), (theirs, their_host)) = (parts[0], parts[rank]);
    Err(CommError::OtherCollective(format!(
        "rank 0 on {our_host} runs collective {ours}, rank {rank} on {their_host} runs collective {theirs}"
    )))
}

fn guarded(work: impl FnOnce() -> Result<(), CommError>) -> Result<(), CommError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

pub(super) fn panicked(panic: &(dyn Any + Send)) -> CommError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    CommError::Panicked(text.unwrap_or_else(|| "without a message".into()))
}
