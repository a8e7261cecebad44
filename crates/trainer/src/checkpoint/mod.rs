//! Checkpoints on disk: tensors as safetensors by name, the run's position as JSON, and the checksums of both.
//!
//! ```text
//! checkpoints/step-000000390/{weights.safetensors, optimizer.safetensors, averaged.safetensors, state.json, SHA256SUMS}
//! checkpoints/latest           name of the newest complete one
//! checkpoints/best             name of the kept one of the lowest test error
//! checkpoints/abandoned/       those of later steps than the one that the user made the run go on from
//! ```
//! The checkpoints of a folder are of one course of its run: where it goes on from an earlier one, those of later steps
//! leave the folder before its first step.
//!
//! What `wrn-dist model import` makes of another program's weights has no optimizer, and a run without `train.averaging`
//! no averaged weights. Averaged weights have the names of the weights, and their file can be named in place of a
//! checkpoint wherever weights are read.
//!
//! A checkpoint is written beside its final place, synced and renamed, so that a name that exists was complete;
//! `SHA256SUMS`, written last, tells whether it still is, also to `sha256sum -c`. Tensors are stored contiguous in
//! their logical order (`[O, I, H, W]`), whatever the layout in memory, so other tools read them as they are. Only
//! rank 0 comes here; it broadcasts what it reads. Which tensors there are is [`crate::transfer`]'s business.

mod background;
mod content;
mod read;
mod retention;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_sharding::printable;
use serde::{Deserialize, Serialize};

use crate::health::HealthState;

pub(crate) use background::{Job, LazyTensors, Outcome, Writer};
pub(crate) use content::checksum;
pub(crate) use read::{
    candidates, candidates_up_to, load, load_all, load_state, newest_whole, pointer_warning, weights_checksum,
};
pub(crate) use retention::{ABANDONED, Keep, Later, drop_later};
#[cfg(test)]
pub(crate) use write::Written;
pub(crate) use write::{refuse_existing, replace_file, replace_file_by, save_weights};

/// Version of the layout that this module documents.
pub(crate) const FORMAT: u32 = 2;
const STATE: &str = "state.json";
const CHECKSUMS: &str = "SHA256SUMS";
const LATEST: &str = "latest";
const BEST: &str = "best";

/// One file of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Parameters and running statistics.
    Weights,
    /// What the update rule remembers of past gradients.
    Optimizer,
    /// Averages of parameters and running statistics, under the names of the weights.
    Averaged,
}

/// The files of tensors. Those that a checkpoint has stand in its `SHA256SUMS`.
const FILES: [(Part, &str); 3] = [
    (Part::Weights, "weights.safetensors"),
    (Part::Optimizer, "optimizer.safetensors"),
    (Part::Averaged, "averaged.safetensors"),
];

impl Part {
    /// Name within the checkpoint's folder.
    pub(crate) fn file(self) -> &'static str {
        FILES.iter().find(|(part, _)| *part == self).map_or("", |(_, file)| file)
    }
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nothing of ours is where a checkpoint should be.
    #[error("there is no checkpoint (a folder with state.json, or a run directory) at {}", path.display())]
    Absent {
        /// Where.
        path: PathBuf,
    },
    /// The content is not what was written.
    #[error("the checkpoint {} is damaged: {}", path.display(), printable(reason))]
    Damaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// Checkpoints, but not one to go on from.
    #[error(
        "none of the checkpoints in {} is whole: {}; repair one, or begin anew with another --out", path.display(), reasons.join("; ")
    )]
    NoneWhole {
        /// Folder of the checkpoints.
        path: PathBuf,
        /// What is wrong with each of them.
        reasons: Vec<String>,
    },
    /// A whole checkpoint, but of another network or run.
    #[error("the checkpoint {} does not belong to this run: {}", path.display(), printable(reason))]
    Foreign {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Numbers that training cannot go on from.
    #[error(transparent)]
    NotFinite(#[from] NotFiniteTensor),
    /// Tensors could not be turned into a file.
    #[error("cannot encode a checkpoint: {0}")]
    Tensors(String),
}

/// Numbers that training cannot go on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{tensor} is no longer finite after step {step}")]
pub struct NotFiniteTensor {
    /// Name of the tensor.
    pub tensor: String,
    /// Completed steps.
    pub step: u64,
}

/// Where a run stands, beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Version of the checkpoint's layout.
    pub(crate) format: u32,
    /// Architecture string.
    pub(crate) arch: String,
    /// Number of classes.
    pub(crate) classes: u32,
    /// Completed epochs. An epoch all of whose steps are done is not complete before its evaluation.
    pub(crate) epoch: u32,
    /// Completed steps of the whole run.
    pub(crate) step: u64,
    /// Sum of the losses of the steps of the epoch under way.
    pub(crate) epoch_loss_sum: f64,
    /// Correct predictions of the epoch under way.
    pub(crate) epoch_correct: u64,
    /// Steps of the epoch under way that were skipped, and are in neither sum.
    #[serde(default)]
    pub(crate) epoch_skipped: u64,
    /// Samples of the epoch under way that are in these sums.
    #[serde(default)]
    pub(crate) epoch_counted: u64,
    /// Samples of the epoch under way that could not be decoded and were skipped.
    #[serde(default)]
    pub(crate) epoch_skipped_samples: u64,
    /// Test error of these weights, 0 to 1, where they were evaluated.
    #[serde(default)]
    pub(crate) top1_error: Option<f64>,
    /// Lowest test error so far, 0 to 1.
    pub(crate) best_top1_error: Option<f64>,
    /// Losses, loss scale, and ways back to earlier checkpoints.
    #[serde(default)]
    pub(crate) health: HealthState,
    /// Keys of the configuration that decide what the run computes.
    pub(crate) meaning: BTreeMap<String, String>,
    /// Hash of these keys, as in `run.json`.
    #[serde(default)]
    pub(crate) meaning_hash: String,
    /// Fingerprint of the training data.
    pub(crate) data: String,
    /// Versions of the programs that saved.
    #[serde(default)]
    pub(crate) versions: BTreeMap<String, String>,
    /// Where weights came from that no run of ours made. Then there is no optimizer, and nothing above but
    /// architecture and classes has a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) imported: Option<Imported>,
}

/// The origin of weights that another program wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// Name of the file, without its folder.
    pub(crate) file: String,
    /// SHA-256 of the file.
    pub(crate) sha256: String,
    /// Whose names its tensors had.
    pub(crate) naming: String,
    /// Whether the classifier was taken over.
    pub(crate) classifier: bool,
}

/// A tensor by its logical shape and contiguous values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// A checkpoint in memory, with those of its parts that were asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) state: RunState,
    pub(crate) parts: BTreeMap<Part, Vec<NamedTensor>>,
}

impl Checkpoint {
    /// The tensors of a part, none if it has no such file.
    pub(crate) fn tensors(&self, part: Part) -> &[NamedTensor] {
        self.parts.get(&part).map_or(&[], Vec::as_slice)
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError + use<> {
    let path = path.to_owned();
    move |source| CheckpointError::File { action, path, source }
}
