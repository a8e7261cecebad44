//! A test double of libnccl, so that code written for NCCL runs where there is no GPU. **Not NCCL**: it shares no code
//! with it, knows no device, and is slow.
//!
//! A shared library with the functions that this project calls of NCCL's C interface. Ranks are processes of one
//! machine, memory is host memory, messages go over Unix sockets. Streams are ignored: what NCCL would put on a stream
//! is complete when the communicator is, so `ncclCommGetAsyncError` reports `ncclInProgress` until then, and moves
//! the data. Like NCCL it tells nobody of a rank that died; unlike NCCL it checks that ranks call the same things, and
//! that every registration is given back before its memory and its communicator go.
//!
//! | environment | |
//! |---|---|
//! | `NCCL_DOUBLE_FAULT=KIND:RANK:GROUP` | from its GROUP-th group of operations on (0: from the beginning), rank RANK is `absent` (takes no part any more) or has an `async-error`; from its GROUP-th registration on its buffers are `unregistered`: NCCL fails |
//! | `NCCL_DOUBLE_LOG=FILE` | where each rank adds a line for each configuration, registration and end of a communicator |
//! | `NCCL_DOUBLE_VERSION=CODE` | the version it claims to have |

#![allow(non_upper_case_globals, reason = "NVIDIA's names in patterns")]

use std::path::PathBuf;

mod call;
mod communicator;
mod exports;
mod fault;
mod last_error;
mod link;
mod log;
mod numbers;
mod registrations;

/// The shared library, which cargo builds beside the tests that depend on this crate.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn shared_library() -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let mut places = this.ancestors().skip(1).take(2).map(|folder| folder.join("libnccl_double.so"));
    places.find(|place| place.is_file()).unwrap_or_else(|| {
        panic!(
            "there is no libnccl_double.so near {}: run `cargo build --release --workspace`",
            this.display()
        )
    })
}
