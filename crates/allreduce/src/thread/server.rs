//! What runs on the communication thread: one piece of work after the other, until the end or the first failure. Work on
//! host memory is done when the next begins; on a device, pieces of work are queued behind each other, and each is
//! looked after until the device is through with it.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::{Job, Work};
use crate::CommError;
use crate::agreement::EXIT_FAILURE;
use crate::communicator::{AbortSignal, Communicator, LOOK};
use crate::flight::{Collective, CollectiveKind, FlightRecorder};
use crate::nccl::Moment;

/// Serves until the end of communication.
pub(super) fn serve(
    communicator: &mut dyn Communicator,
    jobs: &Receiver<Job>,
    signal: &AbortSignal,
    flight: &FlightRecorder,
) {
    let alone = communicator.topology().world_size == 1;
    let mut server =
        Server { communicator, signal, flight, failure: None, checks: false, queued: VecDeque::new() };
    // Where two are to be swapped, the first of them is held back.
    let (mut swap, mut held) = (false, None);
    loop {
        // An abort comes before any answer: what waits for one must not run on into the end of the process.
        if let Some(exit_code) = signal.raised() {
            return server.communicator.abort(exit_code);
        }
        let job = if server.queued.is_empty() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            server.look_after_queued();
            jobs.recv_timeout(LOOK)
        };
        match job {
            Ok(Job::Wake) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Job::Check) => server.checks = !alone,
            Ok(Job::Spin(spin)) => server.communicator.spin_for(spin),
            Ok(Job::SwapNextTwo) => swap = true,
            Ok(Job::Work(work)) if swap => (swap, held) = (false, Some(work)),
            Ok(Job::Work(work)) => {
                for work in std::iter::once(work).chain(held.take()) {
                    if server.work(work) == Go::End {
                        return;
                    }
                }
            }
            Ok(Job::Shutdown(reply)) => {
                server.finish_queued();
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
            Err(RecvTimeoutError::Disconnected) => {
                server.finish_queued();
                let _ = guarded(|| server.communicator.finalize());
                return;
            }
        }
    }
}

/// Runs one collective after the other, until one fails.
struct Server<'a> {
    communicator: &'a mut dyn Communicator,
    signal: &'a AbortSignal,
    flight: &'a FlightRecorder,
    failure: Option<CommError>,
    /// Whether ranks compare before each collective what it is.
    checks: bool,
    /// What a device has to do yet, in order.
    queued: VecDeque<Queued>,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Go {
    On,
    End,
}

/// Work that has been queued on a device.
struct Queued {
    work: Box<dyn Work>,
    /// Of its collective.
    number: u64,
    end: Box<dyn Moment>,
}

impl Server<'_> {
    /// Does `work`, or queues it.
    fn work(&mut self, mut work: Box<dyn Work>) -> Go {
        if !work.is_on_device() {
            self.finish_queued();
        }
        let mut end = None;
        let begun = self.begin(work.collective(), |communicator| {
            end = work.run(communicator)?;
            Ok(())
        });
        match (begun, end) {
            (Ok(number), Some(end)) => self.queued.push_back(Queued { work, number, end }),
            (Ok(number), None) => {
                self.flight.end(number, &Ok(()));
                work.done(Ok(()));
            }
            (Err(error), _) => {
                if let Some(exit_code) = self.signal.raised() {
                    self.communicator.abort(exit_code);
                    return Go::End;
                }
                work.done(Err(error));
            }
        }
        Go::On
    }

    fn collective(
        &mut self,
        collective: Collective,
        run: impl FnOnce(&mut dyn Communicator) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let number = self.begin(collective, run)?;
        self.flight.end(number, &Ok(()));
        Ok(())
    }

    /// Runs what is, or begins, `collective`; its number.
    fn begin(
        &mut self,
        collective: Collective,
        run: impl FnOnce(&mut dyn Communicator) -> Result<(), CommError>,
    ) -> Result<u64, CommError> {
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
        if let Err(error) = &result {
            self.flight.end(number, &result);
            self.failure = Some(error.clone());
        }
        result.map(|()| number)
    }

    /// Tells the work that the device has done.
    fn look_after_queued(&mut self) {
        while let Some(first) = self.queued.front_mut() {
            match guarded_look(self.communicator, &mut *first.end) {
                Ok(false) => return,
                Ok(true) => {}
                Err(error) => return self.fail_queued(&error),
            }
            if let Some(Queued { work, number, .. }) = self.queued.pop_front() {
                self.flight.end(number, &Ok(()));
                work.done(Ok(()));
            }
        }
    }

    /// Waits until the device has nothing more to do, or can do nothing more.
    fn finish_queued(&mut self) {
        while let (Some(first), None) = (self.queued.front_mut(), &self.failure) {
            let (communicator, end) = (&mut *self.communicator, &mut *first.end);
            match guarded(|| communicator.await_moment(end)) {
                Ok(()) => self.look_after_queued(),
                Err(error) => self.fail_queued(&error),
            }
        }
    }

    /// What is queued behind something that failed will not be done.
    fn fail_queued(&mut self, error: &CommError) {
        self.failure = Some(error.clone());
        if self.signal.raised().is_some() {
            // The abort that follows comes before any answer.
            return;
        }
        for Queued { work, number, .. } in std::mem::take(&mut self.queued) {
            self.flight.end(number, &Err(error.clone()));
            work.done(Err(error.clone()));
        }
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

fn guarded_look(communicator: &mut dyn Communicator, end: &mut dyn Moment) -> Result<bool, CommError> {
    let mut come = false;
    guarded(|| {
        come = communicator.has_come(end)?;
        Ok(())
    })?;
    Ok(come)
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
