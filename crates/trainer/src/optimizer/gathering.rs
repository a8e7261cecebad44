//! New weights on their way from the ranks that made them, while the next forward pass begins: it waits for a bucket only
//! when it comes to the first of its parameters. Knows neither rules nor networks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use allreduce::{Arrival, CommError, CommThread, Pending, Region};

/// What one rank waits for. Between [`Gathering::start`] and the return of [`Gathering::await_all`] nobody writes the
/// weights, and nobody reads elements that have not been waited for.
#[derive(Default)]
pub(crate) struct Gathering {
    /// Ranges of the flat parameters, in the order in which they come.
    under_way: RefCell<VecDeque<(Range<usize>, Pending<Arrival>)>>,
    waited: Cell<Duration>,
}

impl Gathering {
    /// Collective: has each of `buckets` gathered, the last first: backward completes gradients from the output on, and
    /// forward begins with the input.
    pub(crate) fn start(
        &self,
        comm: &CommThread,
        flat: &Region,
        buckets: impl DoubleEndedIterator<Item = Range<usize>>,
    ) {
        let started =
            buckets.rev().map(|bucket| (bucket.clone(), comm.start_gather_shards(flat.slice(bucket))));
        self.under_way.borrow_mut().extend(started);
    }

    /// Returns when `element` of the flat parameters is the new one, on a device for whatever this thread queues there.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub(crate) fn await_element(&self, element: usize) -> Result<(), CommError> {
        let position = self.under_way.borrow().iter().position(|(bucket, _)| bucket.contains(&element));
        position.map_or(Ok(()), |position| self.await_first(position + 1))
    }

    /// As [`Gathering::await_element`], for all elements.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub(crate) fn await_all(&self) -> Result<(), CommError> {
        let count = self.under_way.borrow().len();
        self.await_first(count)
    }

    fn await_first(&self, count: usize) -> Result<(), CommError> {
        if count == 0 {
            return Ok(());
        }
        let begin = Instant::now();
        let first: Vec<_> = self.under_way.borrow_mut().drain(..count).collect();
        // All of them, whatever became of the first.
        let arrive = |pending: Pending<Arrival>| pending.wait()?.hold_caller();
        let results: Vec<_> = first.into_iter().map(|(_, pending)| arrive(pending)).collect();
        self.waited.set(self.waited.get() + begin.elapsed());
        results.into_iter().collect()
    }

    /// How long this rank waited since this was last asked.
    pub(crate) fn take_waited(&self) -> Duration {
        self.waited.take()
    }
}
