//! Independent pieces of work on a few threads. Knows nothing of what the work is.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, scope};

use crate::error::DataError;

/// Calls `work` with each of `0..count`, on up to `threads` threads, each of which keeps a state of its own. After
/// an error no new piece is begun; of several errors the one of the lowest piece is given, so that it does
/// not depend on who was faster.
pub(crate) fn for_each<S>(
    count: usize,
    threads: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<(), DataError> + Sync,
) -> Result<(), DataError> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<(usize, DataError)>> = Mutex::new(None);
    let fail = |piece: usize, error: DataError| {
        next.store(count, Ordering::Relaxed);
        let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(earlier, _)| piece < *earlier) {
            *first = Some((piece, error));
        }
    };
    let run = || {
        let mut state = state();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= count {
                return;
            }
            if let Err(error) = work(&mut state, piece) {
                fail(piece, error);
            }
        }
    };
    scope(|scope| {
        for thread in 1..threads.min(count) {
            let name = format!("prepare-{thread}");
            if let Err(source) = Builder::new().name(name.clone()).spawn_scoped(scope, run) {
                return fail(0, DataError::Thread { thread: name, source });
            }
        }
        run();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// As many threads as this process may use cores.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
