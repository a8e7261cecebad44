//! What can be wrong with a request for a network.

use crate::grammar;

/// A network that cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An architecture string that names nothing.
    #[error(
        "`{text}` is no architecture: {reason}{} Known:{}",
        suggestion.as_ref().map_or_else(|| ".".into(), |meant| format!("; did you mean {meant}?")), grammar::families()
    )]
    Architecture {
        /// As given.
        text: String,
        /// What is wrong with it.
        reason: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// An option that the architecture does not allow.
    #[error("{0}")]
    Option(String),
    /// A parameter cannot be had, as [`Pass::before_use`](crate::Pass::before_use) says.
    #[error("{0}")]
    Parameter(String),
    /// libtorch refused an operation.
    #[error("libtorch: {}", torch_ext::first_line(.0))]
    Tch(#[from] tch::TchError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    TorchExt(#[from] torch_ext::Error),
}
