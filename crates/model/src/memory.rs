//! What a training step keeps between forward and backward.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is kept of a forward pass for backward. Outputs, statistics, gradients and the order in which these
/// become ready are the same to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Whatever the operations need.
    #[default]
    Plain,
    /// Of batch norm, ReLU and the convolution behind them the batch norm's input only; its output is computed
    /// again.
    Recompute,
    /// The input of each block only; each block's forward pass runs again.
    Checkpoint,
}

impl Memory {
    /// All of them, the largest first.
    pub const ALL: [Memory; 3] = [Memory::Plain, Memory::Recompute, Memory::Checkpoint];
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Memory::Plain => "plain",
            Memory::Recompute => "recompute",
            Memory::Checkpoint => "checkpoint",
        })
    }
}
