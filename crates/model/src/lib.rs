//! Networks as specifications: an architecture string and options become a tree of few kinds of nodes, from
//! which names, counts, initial weights and the forward pass all follow.
//!
//! Reading order: `architecture` (the string) → `wide_resnet` (the tree) → `spec` (its nodes) → `forward`
//! (its interpreter). Holds no weights: the caller owns the tensors and passes them to [`Network::forward`].
//!
//! Source of the architecture: Zagoruyko & Komodakis, *Wide Residual Networks*, 2016 (arXiv 1605.07146),
//! table 1 and figure 1, and the authors' code, szagoruyko/wide-residual-networks.

mod architecture;
mod builder;
mod error;
mod forward;
mod init;
mod network;
mod options;
mod spec;
mod wide_resnet;

pub use architecture::Architecture;
pub use error::ModelError;
pub use forward::{DropoutKey, Norm, Pass, Statistics};
pub use network::Network;
pub use options::{ConvInit, GammaInit, Options, Projection, ShortcutInput};
pub use spec::{NormLayer, Parameter, Role, Stage};
