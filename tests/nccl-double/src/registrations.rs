//! Which buffers are registered with which communicator, and which memory is `ncclMemAlloc`'s, in this process.

use std::sync::{Mutex, MutexGuard, PoisonError};

static TABLE: Mutex<Table> =
    Mutex::new(Table { registrations: Vec::new(), allocations: Vec::new(), made: 0 });

struct Table {
    registrations: Vec<Registration>,
    /// Where each begins.
    allocations: Vec<usize>,
    made: usize,
}

/// Addresses are compared and never used.
struct Registration {
    handle: usize,
    comm: usize,
    start: usize,
    bytes: usize,
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a buffer of a communicator; the handle, which is never null.
pub(crate) fn add(comm: usize, start: usize, bytes: usize) -> usize {
    let mut table = table();
    table.made += 1;
    let handle = table.made;
    table.registrations.push(Registration { handle, comm, start, bytes });
    handle
}

/// Size of the buffer that is registered no more; none when the communicator has no such one.
pub(crate) fn remove(comm: usize, handle: usize) -> Option<usize> {
    let mut table = table();
    let found = table.registrations.iter().position(|one| (one.comm, one.handle) == (comm, handle))?;
    Some(table.registrations.swap_remove(found).bytes)
}

/// How many buffers of a communicator are registered.
pub(crate) fn left(comm: usize) -> usize {
    table().registrations.iter().filter(|one| one.comm == comm).count()
}

/// The communicator is gone.
pub(crate) fn forget(comm: usize) {
    table().registrations.retain(|one| one.comm != comm);
}

/// Notes memory of `ncclMemAlloc`.
pub(crate) fn allocated(start: usize) {
    table().allocations.push(start);
}

pub(crate) fn is_allocated(start: usize) -> bool {
    table().allocations.contains(&start)
}

/// Whether memory of `ncclMemAlloc` may be freed, which it then is: no communicator knows of it any more.
pub(crate) fn may_be_freed(start: usize) -> bool {
    let mut table = table();
    let free = !table.registrations.iter().any(|one| one.start == start);
    if free {
        table.allocations.retain(|&one| one != start);
    }
    free
}
