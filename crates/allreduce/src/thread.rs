//! The thread that owns communication. Other threads hand it work over a channel and it does it in that
//! order. What the work means is the business of those who send it.

mod collectives;
mod server;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use self::server::{panicked, serve};
use crate::agreement::EXIT_FAILURE;
use crate::communicator::{AbortSignal, Communicator};
use crate::flight::{Collective, CollectiveKind, FlightRecorder};
use crate::nccl::Moment;
use crate::pending::Pending;
use crate::scheduling::{ask_for_exact_sleeps, ask_for_short_slices};
use crate::{CommError, Sharding, Topology};

/// How long an abort may take before this process ends without the help of the communicator, which may be
/// held up in a call that cannot be interrupted.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// A piece of work for the communication thread.
pub(crate) trait Work: Send {
    /// What it is, as all ranks should see it.
    fn collective(&self) -> Collective;
    /// Whether it is queued on a device, behind what is queued there, so that nothing need be through before. It may then
    /// wait for its own end, as a bucket does that has a hook.
    fn is_on_device(&self) -> bool {
        false
    }
    /// Does it, or queues it on a device: then the moment at which it will be done there.
    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<Option<Box<dyn Moment>>, CommError>;
    /// Hears how it went; after an earlier failure `run` may not have been called. Work dropped without this
    /// call was abandoned because the job ends.
    fn done(self: Box<Self>, result: Result<(), CommError>);
}

enum Job {
    Work(Box<dyn Work>),
    /// Look at the abort signal.
    Wake,
    /// From now on, compare with the other ranks before each collective.
    Check,
    /// From now on, wait without sleep for so long.
    Spin(Duration),
    /// Do the next work after the one that follows it.
    SwapNextTwo,
    Shutdown(Sender<Result<(), CommError>>),
}

/// A handle to the communication thread of this rank. Clones are the same thread.
///
/// When the last handle goes without [`CommThread::shutdown`], because of a panic say, all ranks are aborted,
/// since they may be waiting for this one.
#[derive(Clone)]
pub struct CommThread {
    handle: Arc<Handle>,
}

struct Handle {
    jobs: Sender<Job>,
    signal: AbortSignal,
    topology: Topology,
    description: String,
    /// Whether it sums values in the memory of the host, and in that of a device.
    sums: [bool; 2],
    sharding: Sharding,
    flight: FlightRecorder,
    id: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Disconnected once the thread has ended.
    ended: Receiver<()>,
}

impl CommThread {
    /// Starts the thread; `make` makes the communicator on it, where it is used and finalised as well.
    ///
    /// # Errors
    /// When the thread or the communicator could not be made.
    pub fn start(
        make: impl FnOnce() -> Result<Box<dyn Communicator>, CommError> + Send + 'static,
    ) -> Result<CommThread, CommError> {
        let (jobs, receiver) = unbounded();
        let (ready, started) = bounded(1);
        let (ending, ended) = bounded(0);
        let signal = AbortSignal::new();
        let thread = {
            let signal = signal.clone();
            std::thread::Builder::new().name("communication".into()).spawn(move || {
                let _ending: Sender<()> = ending;
                if let Err(reason) = ask_for_short_slices().and_then(|()| ask_for_exact_sleeps()) {
                    tracing::debug!(%reason, "the communication thread cannot ask for short slices or exact sleeps");
                }
                let made =
                    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| Err(panicked(&*panic)));
                match made {
                    Err(error) => drop(ready.send(Err(error))),
                    Ok(mut communicator) => {
                        communicator.interrupt_by(signal.clone());
                        let topology = communicator.topology().clone();
                        let flight = FlightRecorder::new(topology.clone());
                        let description = communicator.description();
                        let sums = [communicator.sums_host_memory(), communicator.sums_device_memory()];
                        let sharding = communicator.sharding();
                        let _ = ready.send(Ok((topology, description, sums, sharding, flight.clone())));
                        serve(&mut *communicator, &receiver, &signal, &flight);
                    }
                }
            })
        };
        let thread = thread.map_err(|error| CommError::Thread(error.to_string()))?;
        let (topology, description, sums, sharding, flight) =
            started.recv().unwrap_or(Err(CommError::Ended))?;
        let id = thread.thread().id();
        let thread = Mutex::new(Some(thread));
        let handle =
            Handle { jobs, signal, topology, description, sums, sharding, flight, id, thread, ended };
        Ok(CommThread { handle: Arc::new(handle) })
    }

    /// Where this rank stands.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.handle.topology
    }

    /// What carries the messages, for people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.handle.description
    }

    /// Whether it sums values in host memory.
    #[must_use]
    pub fn sums_host_memory(&self) -> bool {
        self.handle.sums[0]
    }

    /// Whether it sums values in the memory of a device, as [`Region::on_device`](crate::Region::on_device)
    /// describes it.
    #[must_use]
    pub fn sums_device_memory(&self) -> bool {
        self.handle.sums[1]
    }

    /// Which part of any values this rank owns where their sum is scattered.
    #[must_use]
    pub fn sharding(&self) -> Sharding {
        self.handle.sharding
    }

    /// What this rank is doing and did last.
    #[must_use]
    pub fn flight(&self) -> &FlightRecorder {
        &self.handle.flight
    }

    /// From the next operation on, ranks compare which one they are about to run, so that different ones are
    /// an error of both rather than a wrong result or a wait without end. All ranks call this between the
    /// same operations.
    pub fn check_every_collective(&self) {
        let _ = self.handle.jobs.send(Job::Check);
    }

    /// From the next operation on, waits for other ranks take a whole core for up to `spin` before they sleep:
    /// faster, where no thread that computes wants that core.
    pub fn spin_for(&self, spin: Duration) {
        let _ = self.handle.jobs.send(Job::Spin(spin));
    }

    /// This rank runs its next two operations in the wrong order: a fault, to rehearse what comes of it.
    pub fn swap_next_two(&self) {
        let _ = self.handle.jobs.send(Job::SwapNextTwo);
    }

    /// Ends all ranks with `exit_code`, from any thread, also from a panic hook and while an operation waits
    /// for other ranks. Where ranks are processes of their own this does not return; a rank alone goes on,
    /// but can exchange nothing more.
    pub fn abort(&self, exit_code: i32) {
        self.handle.abort(exit_code);
    }

    /// Collective: waits for every rank, leaves the group in an orderly way and ends the thread. After a
    /// failed operation, or where another rank cannot come, all ranks are aborted instead.
    ///
    /// # Errors
    /// When the thread has ended before or panicked, or the library failed to end.
    pub fn shutdown(self) -> Result<(), CommError> {
        let (reply, result) = bounded(1);
        let sent = self.handle.jobs.send(Job::Shutdown(reply)).is_ok();
        let result = if sent { result.recv().unwrap_or_else(|_| Err(self.gone())) } else { Err(self.gone()) };
        self.handle.join();
        result
    }

    /// Hands over work without waiting for it.
    pub(crate) fn submit(&self, work: Box<dyn Work>) {
        // Work that cannot be sent is dropped, and so learns that it was abandoned.
        let _ = self.handle.jobs.send(Job::Work(work));
    }

    /// Has `operation` done and waits for it.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut dyn Communicator) -> Result<T, CommError> + Send + 'static,
    ) -> Result<T, CommError> {
        self.call_as(Collective::of_kind(CollectiveKind::Composite), operation)
    }

    /// Has `operation` done, which is `collective`, and waits for it.
    pub(crate) fn call_as<T: Send + 'static>(
        &self,
        collective: Collective,
        operation: impl FnOnce(&mut dyn Communicator) -> Result<T, CommError> + Send + 'static,
    ) -> Result<T, CommError> {
        self.start_as(collective, operation).wait()
    }

    /// Hands over `operation`, which is `collective`.
    fn start_as<T: Send + 'static>(
        &self,
        collective: Collective,
        operation: impl FnOnce(&mut dyn Communicator) -> Result<T, CommError> + Send + 'static,
    ) -> Pending<T> {
        let (reply, result) = bounded(1);
        self.submit(Box::new(Call { collective, operation: Some(operation), value: None, reply }));
        Pending::new(self.clone(), result)
    }

    /// Why there is no answer.
    pub(crate) fn gone(&self) -> CommError {
        match self.handle.signal.raised() {
            Some(_) => CommError::Aborted,
            None => CommError::Ended,
        }
    }
}

impl Handle {
    fn abort(&self, exit_code: i32) {
        self.signal.raise(exit_code);
        let _ = self.jobs.send(Job::Wake);
        // On the communication thread itself, the abort follows when the work in hand is done.
        if std::thread::current().id() != self.id
            && self.ended.recv_timeout(ABORT_PATIENCE) == Err(crossbeam::channel::RecvTimeoutError::Timeout)
        {
            let _ = writeln!(
                std::io::stderr(),
                "error (rank {}): communication does not end when asked to; ending this process",
                self.topology.rank
            );
            std::process::exit(exit_code);
        }
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Panics in work are caught, so there is nothing to learn here.
            let _ = thread.join();
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(crossbeam::channel::TryRecvError::Disconnected)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.topology.world_size > 1 && !self.has_ended() {
            self.abort(EXIT_FAILURE);
        }
    }
}

/// An operation whose caller waits for its result.
struct Call<T, F> {
    collective: Collective,
    operation: Option<F>,
    value: Option<T>,
    reply: Sender<Result<T, CommError>>,
}

impl<T, F> Work for Call<T, F>
where
    T: Send,
    F: FnOnce(&mut dyn Communicator) -> Result<T, CommError> + Send,
{
    fn collective(&self) -> Collective {
        self.collective.clone()
    }

    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<Option<Box<dyn Moment>>, CommError> {
        if let Some(operation) = self.operation.take() {
            self.value = Some(operation(communicator)?);
        }
        Ok(None)
    }

    fn done(self: Box<Self>, result: Result<(), CommError>) {
        let Call { value, reply, .. } = *self;
        let _ = reply.send(result.and_then(|()| value.ok_or(CommError::Ended)));
    }
}

#[cfg(test)]
mod tests;
