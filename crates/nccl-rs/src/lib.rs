//! NVIDIA's collective communication library, found at run time: a machine without it builds and runs everything
//! else, and hears of its absence as an error.
//!
//! - [`sys`]: types, constants and the table of functions, as in `nccl.h`.
//! - [`result`]: one thin function a call, which turns return codes into [`Error`]s.
//! - [`Library`]: where libnccl comes from. [`Comm`]: a communicator that ends in an orderly way, or at least ends.
//!
//! Knows nothing of CUDA beyond the streams and pointers that callers bring.

mod comm;
mod error;
mod library;
mod memory;
pub mod result;
pub mod sys;

pub use comm::{Comm, Config, Registration, UniqueId};
pub use error::{Error, LoadError};
pub use library::{Library, NCCL_PATH_VARIABLE, Version};
pub use memory::DeviceMemory;
pub use result::{DataType, Operation, Progress};
