//! Everything that can end a run, each a sentence for the user, and the exit code that goes with it.

use std::path::{Path, PathBuf};

use allreduce::{Agreed, CommError, Failure};
use model::ModelError;

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::weights::WeightsError;

/// Exit code of bad usage and bad configuration.
pub const EXIT_USAGE: i32 = 2;
/// Exit code of a run that saved and stopped on request, and may be started again.
pub const EXIT_STOPPED: i32 = 75;
/// Exit code of any other failure.
pub const EXIT_FAILURE: i32 = 1;

/// Why a command ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data set is wrong.
    #[error(transparent)]
    Data(#[from] data_sharding::DataError),
    /// The architecture is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A checkpoint is damaged or belongs to another run.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Weights could not be imported or exported.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch refused an operation.
    #[error("libtorch: {}", torch_ext::first_line(.0))]
    Tch(#[from] tch::TchError),
    /// libtorch refused an operation of ours.
    #[error("libtorch: {0}")]
    TorchExt(#[from] torch_ext::Error),
    /// Ranks could not talk to each other.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A file of the run directory could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Ten crops of images that are not scaled.
    #[error(
        "--ten-crop looks at corners of scaled test images, but these are not scaled; expected data.crop: random-resized, \
         random-sized or center, and data.test_resize above data.test_size"
    )]
    NoMargins,
    /// The command line asks for something that this run does not have.
    #[error("{0}")]
    Usage(String),
    /// A sentence that belongs to no other kind.
    #[error("{0}")]
    Other(String),
    /// All ranks know that one of them failed, and how.
    #[error("{}", .0.failure.sentence)]
    Agreed(Agreed),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::File { action, path, source }
    }

    /// The code with which the process ends.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Config(_)
            | Error::NoMargins
            | Error::Usage(_)
            | Error::Comm(CommError::Environment(_) | CommError::NoLibrary { .. })
            | Error::Model(ModelError::Architecture { .. } | ModelError::Option(_))
            | Error::Checkpoint(CheckpointError::Absent { .. })
            | Error::Weights(WeightsError::Naming { .. }) => EXIT_USAGE,
            Error::Agreed(agreed) => agreed.failure.exit_code,
            _ => EXIT_FAILURE,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { exit_code: error.exit_code(), sentence: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_what_cannot_be_from_what_went_wrong() {
        let path = || PathBuf::from("run");
        let not_found = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let cases: [(Error, i32); 8] = [
            (ConfigError::Unreadable { path: path(), source: not_found() }.into(), EXIT_USAGE),
            (Error::Usage(String::new()), EXIT_USAGE),
            (Error::NoMargins, EXIT_USAGE),
            (CheckpointError::Absent { path: path() }.into(), EXIT_USAGE),
            (CheckpointError::Damaged { path: path(), reason: String::new() }.into(), EXIT_FAILURE),
            (CheckpointError::Foreign { path: path(), reason: String::new() }.into(), EXIT_FAILURE),
            (Error::file("read", &path())(not_found()), EXIT_FAILURE),
            (Error::Other(String::new()), EXIT_FAILURE),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
