//! What can go wrong, in sentences.

use std::path::PathBuf;

use crate::library::{NCCL_PATH_VARIABLE, Version};
use crate::sys::ncclResult_t;

/// A call that NCCL did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {sentence} (NCCL error {code})")]
pub struct Error {
    /// The function.
    pub call: &'static str,
    /// What it returned.
    pub code: ncclResult_t,
    /// NCCL's sentence for the code, and that of its last error where it has one.
    pub sentence: String,
}

/// Why there is no NCCL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No library by that name.
    #[error(
        "libnccl.so.2 is not on this machine ({0}); it comes with a CUDA build of PyTorch, or set {NCCL_PATH_VARIABLE} to where \
         it lies"
    )]
    Absent(String),
    /// The file that the environment names cannot be loaded.
    #[error("{NCCL_PATH_VARIABLE} names {}, which cannot be loaded: {reason}", path.display())]
    Unloadable {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// An old version.
    #[error("{} is NCCL {found}; NCCL {wanted} or newer is needed", path.display())]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest version that has all that is called.
        wanted: Version,
    },
    /// Something else under this name.
    #[error("{} is no NCCL: it has no {missing}", path.display())]
    Incomplete {
        /// The library.
        path: PathBuf,
        /// The first function that it lacks.
        missing: &'static str,
    },
    /// The library does not even tell its version.
    #[error("{} does not tell its version (NCCL error {code})", path.display())]
    NoVersion {
        /// The library.
        path: PathBuf,
        /// What `ncclGetVersion` returned.
        code: ncclResult_t,
    },
}
