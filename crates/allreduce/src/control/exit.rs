//! The end of this process without the help of MPI, which may be waiting for a rank that is no more.
#![allow(unsafe_code)]

use std::io::Write;
use std::time::Duration;

/// How long buffered output may take to leave: its lock may be held for ever.
const FLUSH: Duration = Duration::from_millis(500);

/// Ends this process at once: neither destructors run nor what libraries registered for the exit.
pub(crate) fn end_process(exit_code: i32) -> ! {
    let (done, flushed) = std::sync::mpsc::channel();
    let flusher = std::thread::Builder::new().spawn(move || {
        let _ = std::io::stdout().flush();
        let _ = done.send(());
    });
    if flusher.is_ok() {
        let _ = flushed.recv_timeout(FLUSH);
    }
    // SAFETY: ends the process; nothing in it runs on.
    unsafe { libc::_exit(exit_code) }
}
