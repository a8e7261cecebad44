//! Weights of other programs: `wrn-dist model import` makes a checkpoint of a file that torchvision, timm or
//! the authors' code wrote, `wrn-dist model export` writes such a file.
//!
//! Files are safetensors; pickles are not read, since reading one runs code. What other programs call a
//! tensor is `model::Naming`'s business. How weights get from a checkpoint into a network, see
//! [`crate::transfer`].

mod export;
mod file;
pub(crate) mod fit;
mod import;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use data_sharding::printable;
use model::{Architecture, Naming, Network};

pub use export::{ExportOptions, export_weights};
pub use file::NumberFormat;
pub use import::{ImportOptions, import_weights};

use crate::checkpoint::RunState;

/// Why weights could not be brought in or out.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
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
    /// Not a file of safetensors, or one that contradicts itself.
    #[error("{} is no safetensors file: {}", path.display(), printable(reason))]
    Format {
        /// Which file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Names or shapes of a file are not those of the network.
    #[error("{} does not fit {network}, so nothing was read from it:\n  {}", path.display(), printed(misfits).join("\n  "))]
    Misfit {
        /// Which file.
        path: PathBuf,
        /// Architecture, classes and naming that were expected.
        network: String,
        /// Every name and shape that does not fit.
        misfits: Vec<String>,
    },
    /// A classifier for another number of classes.
    #[error(
        "the classifier in {} is for {found} classes, expected {expected}; --new-classifier leaves it out, and training \
         then begins with a new one", path.display()
    )]
    Classes {
        /// Which file.
        path: PathBuf,
        /// Classes of the file.
        found: u32,
        /// Classes asked for.
        expected: u32,
    },
    /// Numbers that no trained network has, or that the chosen format cannot hold.
    #[error("{}: {}", path.display(), printable(&reasons.join("; ")))]
    Numbers {
        /// Which file.
        path: PathBuf,
        /// Every tensor with such numbers.
        reasons: Vec<String>,
    },
    /// Nothing to evaluate or export.
    #[error("{} was imported without a classifier; set model.weights to it and train first", path.display())]
    NoClassifier {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A naming in which the network cannot be written.
    #[error("{naming} has no networks like {architecture}; expected one of {known}")]
    Naming {
        /// As given.
        naming: String,
        /// Which network.
        architecture: String,
        /// Namings that exist for it.
        known: String,
    },
}

/// Lines with names of another program's file.
fn printed(lines: &[String]) -> Vec<Cow<'_, str>> {
    lines.iter().map(|line| printable(line)).collect()
}

/// Refuses a checkpoint that was imported without a classifier.
pub(crate) fn require_classifier(state: &RunState, path: &Path) -> Result<(), WeightsError> {
    match &state.imported {
        Some(imported) if !imported.classifier => Err(WeightsError::NoClassifier { path: path.to_owned() }),
        _ => Ok(()),
    }
}

fn require_naming(
    network: &Network,
    architecture: &Architecture,
    naming: Naming,
) -> Result<(), WeightsError> {
    let namings = network.namings();
    if namings.contains(&naming) {
        return Ok(());
    }
    Err(WeightsError::Naming {
        naming: naming.to_string(),
        architecture: architecture.to_string(),
        known: namings.iter().map(Naming::to_string).collect::<Vec<_>>().join(", "),
    })
}
