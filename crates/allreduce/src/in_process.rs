//! Ranks that are threads of one test process, with channels between them.

use std::any::Any;
use std::iter;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::communicator::{AbortSignal, Communicator};
use crate::compressed::OrderedReductions;
use crate::transport::{Element, Transport, all_gather, barrier, broadcast};
use crate::{CommError, CommThread, Topology, Wire};

type Message = Box<dyn Any + Send>;

/// One rank's ends of the channels to and from every rank.
pub(crate) struct InProcess {
    rank: usize,
    senders: Vec<Sender<Message>>,
    receivers: Vec<Receiver<Message>>,
    /// Raised by any rank that aborts.
    world: AbortSignal,
    own: AbortSignal,
}

impl InProcess {
    pub(crate) fn mesh(world_size: usize) -> Vec<InProcess> {
        let world = AbortSignal::new();
        let mut ranks: Vec<InProcess> = (0..world_size)
            .map(|rank| InProcess {
                rank,
                senders: Vec::new(),
                receivers: Vec::new(),
                world: world.clone(),
                own: AbortSignal::new(),
            })
            .collect();
        for from in 0..world_size {
            for to in 0..world_size {
                let (sender, receiver) = unbounded();
                ranks[from].senders.push(sender);
                ranks[to].receivers.push(receiver);
            }
        }
        ranks
    }
}

impl Transport for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.senders.len()
    }

    fn exchange<'a, E: Element>(
        &mut self,
        outgoing: impl Iterator<Item = (usize, &'a [E])>,
        incoming: impl Iterator<Item = (usize, &'a mut [E])>,
    ) -> Result<(), CommError> {
        for (to, values) in outgoing {
            assert!(to != self.rank && !values.is_empty());
            let _ = self.senders[to].send(Box::new(values.to_vec()));
        }
        for (from, into) in incoming {
            assert!(from != self.rank && !into.is_empty());
            let message = loop {
                if self.world.raised().or(self.own.raised()).is_some() {
                    return Err(CommError::Aborted);
                }
                // A rank that has gone will be missed only by a collective that waits for it.
                match self.receivers[from].recv_timeout(Duration::from_millis(1)) {
                    Ok(message) => break message,
                    Err(_) => continue,
                }
            };
            let values = message.downcast::<Vec<E>>().expect("the element type of the operation");
            if values.len() != into.len() {
                let (expected, received) = (size_of_val(into), size_of_val(&values[..]));
                return Err(CommError::OutOfStep { peer: from, expected, received });
            }
            into.copy_from_slice(&values);
        }
        Ok(())
    }
}

/// The communicator over such a transport.
pub(crate) struct InProcessCommunicator {
    topology: Topology,
    transport: InProcess,
    reductions: OrderedReductions,
}

impl InProcessCommunicator {
    pub(crate) fn group(world_size: usize) -> Vec<InProcessCommunicator> {
        let of = |transport: InProcess| InProcessCommunicator {
            topology: Topology {
                rank: transport.rank,
                world_size,
                local_rank: transport.rank,
                local_size: world_size,
                host: format!("host{}", transport.rank),
            },
            transport,
            reductions: OrderedReductions::default(),
        };
        InProcess::mesh(world_size).into_iter().map(of).collect()
    }
}

impl Communicator for InProcessCommunicator {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn description(&self) -> String {
        "threads".into()
    }

    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.transport.own = signal;
    }

    fn all_reduce(&mut self, values: &mut [f32], wire: Wire) -> Result<(), CommError> {
        self.reductions.all_reduce(&mut self.transport, values, wire)
    }

    fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<(), CommError> {
        self.reductions.reduce_scatter(&mut self.transport, values)
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError> {
        broadcast(&mut self.transport, values, root)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        all_gather(&mut self.transport, bytes)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        barrier(&mut self.transport)
    }

    fn abort(&mut self, exit_code: i32) {
        self.transport.world.raise(exit_code);
    }

    fn finalize(&mut self) -> Result<(), CommError> {
        Ok(())
    }
}

/// Runs `body` once a rank, each on a thread of its own, and collects the results by rank.
pub(crate) fn on_each_rank<T: Send>(world_size: usize, body: impl Fn(&mut InProcess) -> T + Sync) -> Vec<T> {
    let body = &body;
    std::thread::scope(|scope| {
        let threads: Vec<_> = InProcess::mesh(world_size)
            .into_iter()
            .map(|mut transport| scope.spawn(move || body(&mut transport)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Finite values of both signs and very different size, so that almost every order of summation gives other
/// bits.
pub(crate) fn wild_values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    iter::repeat_with(next)
        .map(|random| {
            let mantissa = 1.0 + (random & 0xffff_ffff) as f32 / u32::MAX as f32;
            let exponent = (random >> 32) as i32 % 24 - 12;
            let sign = if random >> 63 == 1 { -1.0 } else { 1.0 };
            sign * mantissa * (exponent as f32).exp2()
        })
        .take(len)
        .collect()
}

/// One communication thread a rank.
pub(crate) fn comm_threads(world_size: usize) -> Vec<CommThread> {
    InProcessCommunicator::group(world_size)
        .into_iter()
        .map(|communicator| CommThread::start(move || Ok(Box::new(communicator))).unwrap())
        .collect()
}

/// Runs `body` once a rank, each on a thread of its own beside its communication thread.
pub(crate) fn on_each_comm_thread<T: Send>(
    world_size: usize,
    body: impl Fn(&CommThread) -> T + Sync,
) -> Vec<T> {
    let ranks = comm_threads(world_size);
    let body = &body;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter().map(|comm| scope.spawn(move || body(comm))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
