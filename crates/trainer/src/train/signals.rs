//! Requests to stop, from outside.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::Error;

/// The first signal asks the run to save and stop at the next step; a second one ends the process at once.
pub(super) fn listen_for_stop_signals() -> Result<Arc<AtomicBool>, Error> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    let requested = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&requested))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&requested)))
            .map_err(|error| Error::Other(format!("cannot listen for signal {signal}: {error}")))?;
    }
    Ok(requested)
}
