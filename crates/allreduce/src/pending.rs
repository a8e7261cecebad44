//! An operation of the communication thread that was started and not yet waited for.

use crossbeam::channel::Receiver;

use crate::nccl::{Moment, device_failed};
use crate::{CommError, CommThread};

/// An operation under way. It ends by itself; [`Pending::wait`] tells how. One that is dropped is waited for as well, so
/// that host memory is free again; on a device, until it is queued.
#[must_use = "dropping it waits, and does not tell how the operation went"]
pub struct Pending<T> {
    comm: CommThread,
    /// `None` once it has been waited for.
    result: Option<Receiver<Result<T, CommError>>>,
}

impl<T> Pending<T> {
    pub(crate) fn new(comm: CommThread, result: Receiver<Result<T, CommError>>) -> Self {
        Pending { comm, result: Some(result) }
    }

    /// What came of it.
    ///
    /// # Errors
    /// When the exchange failed or was aborted.
    pub fn wait(mut self) -> Result<T, CommError> {
        let answer = self.result.take().and_then(|result| result.recv().ok());
        answer.unwrap_or_else(|| Err(self.comm.gone()))
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Some(result) = self.result.take() {
            let _ = result.recv();
        }
    }
}

/// When values are there.
#[must_use = "the values are there only for a thread that it has held"]
pub struct Arrival {
    /// `None` where they are there already.
    moment: Option<Box<dyn Moment>>,
}

impl Arrival {
    pub(crate) fn over() -> Self {
        Arrival { moment: None }
    }

    pub(crate) fn at(moment: Box<dyn Moment>) -> Self {
        Arrival { moment: Some(moment) }
    }

    /// Lets what the calling thread queues on the values' device from now on wait for them; the host goes on.
    ///
    /// # Errors
    /// When the device failed.
    pub fn hold_caller(self) -> Result<(), CommError> {
        self.moment.map_or(Ok(()), |mut moment| moment.hold_caller().map_err(device_failed))
    }
}
