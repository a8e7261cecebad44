//! What `tch` does not expose of libtorch, under a safe interface.
//!
//! A small C++ shim (`src/shim/`) stands behind `sys`, one extern function each; every other module is safe
//! to call. `unsafe` appears in the modules that call the shim, and nowhere above this crate.
//!
//! | module | gives |
//! |---|---|
//! | [`flat`] | parameters and gradients as views of flat buffers |
//! | [`hooks`] | a call when a parameter's gradient is complete |
//! | [`layout`] | channels_last |
//! | [`autocast`] | mixed precision with a dtype, on CPU and CUDA |
//! | [`recompute`] | batch norm and ReLU whose outputs are not kept for backward |
//! | [`checkpoint`] | a part of a network that backward runs again |
//! | [`memory`] | how much host memory tensors take |
//! | [`optimizer`] | SGD and AdamW, each in one fused call |
//! | [`random`] | dropout whose mask is a function of a key |
//! | [`runtime`] | threads, determinism, versions |
//! | [`sync_norm`] | batch norm over the images of several ranks |
//! | [`copy`] | copies to a GPU for which the host does not wait, and the pinned memory that they need |
//! | [`cuda`] | streams and events |

pub mod autocast;
pub mod checkpoint;
pub mod copy;
pub mod cuda;
mod error;
pub mod flat;
pub mod hooks;
pub mod layout;
pub mod memory;
pub mod optimizer;
pub mod random;
pub mod recompute;
pub mod runtime;
pub mod sync_norm;
mod sys;

pub use error::{Error, first_line};
