//! The thread that owns communication. Other threads hand it work over a channel and it does it in that
//! order. What the work means is the business of those who send it.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::agreement::EXIT_FAILURE;
use crate::communicator::{AbortSignal, Communicator};
use crate::flight::{Collective, CollectiveKind, FlightRecorder};
use crate::pending::Pending;
use crate::scheduling::{ask_for_exact_sleeps, ask_for_short_slices};
use crate::{CommError, Region, Sharding, Topology, Wire};

/// How long an abort may take before this process ends without the help of the communicator, which may be
/// held up in a call that cannot be interrupted.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// A piece of work for the communication thread.
pub(crate) trait Work: Send {
    /// What it is, as all ranks should see it.
    fn collective(&self) -> Collective;
    /// Does it.
    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<(), CommError>;
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

    /// Whether it sums values in the memory of a device, as [`Region::on_device`] describes it.
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
        self.start_gather_shards(region).wait()
    }

    /// As [`CommThread::gather_shards`], but returns at once. The operation is under way until it has been waited for.
    pub fn start_gather_shards(&self, region: Region) -> Pending<()> {
        let collective = Collective {
            bytes: Some(region.len() * size_of::<f32>()),
            dtype: Some("fp32".into()),
            ..Collective::of_kind(CollectiveKind::AllGather)
        };
        self.start_as(collective, move |communicator| communicator.gather_shards(&mut region.lock()))
    }

    /// Collective: the bytes of every rank, by rank. Lengths may differ.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        let collective = Collective::of_kind(CollectiveKind::AllGather);
        self.call_as(collective, move |communicator| communicator.all_gather(&bytes))
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

/// Serves until the end of communication.
fn serve(
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

fn panicked(panic: &(dyn Any + Send)) -> CommError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    CommError::Panicked(text.unwrap_or_else(|| "without a message".into()))
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

    fn run(&mut self, communicator: &mut dyn Communicator) -> Result<(), CommError> {
        if let Some(operation) = self.operation.take() {
            self.value = Some(operation(communicator)?);
        }
        Ok(())
    }

    fn done(self: Box<Self>, result: Result<(), CommError>) {
        let Call { value, reply, .. } = *self;
        let _ = reply.send(result.and_then(|()| value.ok_or(CommError::Ended)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::Solo;
    use crate::in_process::{InProcessCommunicator, comm_threads, on_each_comm_thread};

    #[test]
    fn a_rank_alone_serves_until_it_is_shut_down() {
        let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
        assert_eq!(comm.topology().world_size, 1);
        comm.barrier().unwrap();
        let clone = comm.clone();
        comm.shutdown().unwrap();
        assert_eq!(clone.barrier(), Err(CommError::Ended));
        clone.abort(3);
        assert_eq!(clone.shutdown(), Err(CommError::Aborted));
    }

    #[test]
    fn operations_reach_all_ranks() {
        for world_size in [2, 3] {
            std::thread::scope(|scope| {
                for comm in comm_threads(world_size) {
                    scope.spawn(move || {
                        let rank = comm.topology().rank;
                        let region = Region::from_vec(vec![rank as f32; 10]);
                        comm.broadcast(region.clone(), 1).unwrap();
                        assert_eq!(region.to_vec(), [1.0; 10]);
                        let sum = (world_size * (world_size - 1) / 2) as f32;
                        assert_eq!(comm.sum(vec![rank as f32; 3]).unwrap(), [sum; 3]);
                        let ranks: Vec<_> = (0..world_size).map(|rank| vec![rank as u8]).collect();
                        assert_eq!(comm.all_gather(vec![rank as u8]).unwrap(), ranks);
                        comm.barrier().unwrap();
                        comm.shutdown().unwrap();
                    });
                }
            });
        }
    }

    #[test]
    fn started_operations_end_in_order_and_dropping_one_waits() {
        std::thread::scope(|scope| {
            for comm in comm_threads(2) {
                scope.spawn(move || {
                    let rank = comm.topology().rank;
                    let region = Region::from_vec(vec![rank as f32; 64]);
                    let slice = |begin: usize| region.slice(begin..begin + 32);
                    let started: Vec<_> = [0, 32].map(|begin| comm.start_gather_shards(slice(begin))).into();
                    drop(started);
                    let shards = [[0.0; 16], [1.0; 16]].concat();
                    assert_eq!(region.to_vec(), [shards.clone(), shards].concat());
                    comm.shutdown().unwrap();
                });
            }
        });
    }

    #[test]
    fn a_communicator_that_cannot_be_made_is_an_error_of_start() {
        type Make = fn() -> Result<Box<dyn Communicator>, CommError>;
        let cases: [(Make, CommError); 2] = [
            (|| Err(CommError::AlreadyStarted), CommError::AlreadyStarted),
            (|| panic!("no luck"), CommError::Panicked("no luck".into())),
        ];
        for (make, expected) in cases {
            assert_eq!(CommThread::start(make).err(), Some(expected));
        }
    }

    #[test]
    fn an_abort_from_another_thread_ends_an_operation_that_waits_and_all_ranks() {
        let begin = Instant::now();
        let mut ranks = comm_threads(3);
        let busy = ranks.remove(2);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = ranks.iter().map(|comm| scope.spawn(|| comm.barrier())).collect();
            std::thread::sleep(Duration::from_millis(20));
            ranks[0].abort(9);
            for rank in waiting {
                assert_eq!(rank.join().unwrap(), Err(CommError::Aborted));
            }
        });
        assert_eq!(busy.barrier(), Err(CommError::Aborted));
        assert!(begin.elapsed() < ABORT_PATIENCE);
    }

    #[test]
    fn a_handle_that_goes_without_shutdown_aborts_the_other_ranks() {
        let mut ranks = comm_threads(2);
        let survivor = ranks.remove(0);
        let waiting = std::thread::spawn(move || survivor.barrier());
        drop(ranks);
        assert_eq!(waiting.join().unwrap(), Err(CommError::Aborted));
    }

    #[test]
    fn after_a_failure_nothing_is_exchanged_any_more() {
        let mut group = InProcessCommunicator::group(2);
        let _other = group.remove(1);
        let first = group.remove(0);
        let comm = CommThread::start(move || Ok(Box::new(first))).unwrap();
        let refused = CommError::NoSuchRank { root: 5, world_size: 2 };
        assert_eq!(comm.broadcast(Region::from_vec(vec![0.0]), 5), Err(refused.clone()));
        assert_eq!(comm.barrier(), Err(refused.clone()));
        assert_eq!(comm.shutdown(), Err(refused));
    }

    #[test]
    fn checked_ranks_find_out_that_they_run_different_collectives() {
        let results = on_each_comm_thread(3, |comm| {
            comm.check_every_collective();
            let region = Region::from_vec(vec![0.0; 4]);
            comm.broadcast(region.clone(), 0).unwrap();
            comm.all_gather(vec![0; comm.topology().rank]).unwrap();
            match comm.topology().rank {
                2 => comm.barrier(),
                _ => comm.broadcast(region, 0),
            }
        });
        let sentence = "rank 0 on host0 runs collective 3 broadcast, 16 bytes of fp32, \
                        rank 2 on host2 runs collective 3 barrier";
        for result in results {
            assert_eq!(result, Err(CommError::OtherCollective(sentence.into())));
        }
    }

    #[test]
    fn swapped_operations_run_in_the_other_order() {
        let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        comm.swap_next_two();
        std::thread::scope(|scope| {
            for index in 0..3 {
                let (order, comm) = (Arc::clone(&order), &comm);
                scope.spawn(move || {
                    comm.call(move |_| {
                        order.lock().unwrap().push(index);
                        Ok(())
                    })
                });
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        assert_eq!(*order.lock().unwrap(), [1, 0, 2]);
    }

    #[test]
    fn a_panic_in_the_work_is_an_error_of_the_work() {
        let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
        let result = comm.call(|_| -> Result<(), CommError> { panic!("a bug") });
        assert_eq!(result, Err(CommError::Panicked("a bug".into())));
    }
}
