//! The device of a region: what works on its memory, and how the exchange learns that a part of it is computed.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ExchangeDevice;

/// Lets the device's stream wait, without the host, for a moment of another stream.
pub type Ready = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// The moment at which the stream of the calling thread has done what it holds now. Takes no lock: it is called from
/// whichever thread runs backward.
type Mark = dyn Fn() -> Result<Ready, String> + Send + Sync;

/// The device that a [`Region`](crate::Region) is on. Clones are the same.
#[derive(Clone)]
pub struct RegionDevice {
    device: Arc<Mutex<dyn ExchangeDevice>>,
    mark: Arc<Mark>,
}

impl RegionDevice {
    /// `mark` notes how far the calling thread's stream is, and gives what makes the exchange wait for that.
    pub fn new(
        device: impl ExchangeDevice + 'static,
        mark: impl Fn() -> Result<Ready, String> + Send + Sync + 'static,
    ) -> Self {
        RegionDevice { device: Arc::new(Mutex::new(device)), mark: Arc::new(mark) }
    }

    pub(crate) fn mark(&self) -> Result<Ready, String> {
        (self.mark)()
    }

    /// Held by the communication thread while it queues an exchange.
    pub(crate) fn lock(&self) -> MutexGuard<'_, dyn ExchangeDevice + 'static> {
        // After a panic the job ends.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RegionDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegionDevice")
    }
}
