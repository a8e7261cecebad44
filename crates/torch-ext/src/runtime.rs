//! Process-wide switches of libtorch, and what this libtorch is.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};

use crate::error::{Error, check};
use crate::sys;

/// Threads within an operation, and between independent operations. Call before the first operation.
///
/// # Errors
/// When libtorch has already started its threads with another number.
pub fn set_threads(intra_op: usize, inter_op: usize) -> Result<(), Error> {
    let number = |count: usize| {
        c_int::try_from(count)
            .map_err(|_| Error::Argument(format!("{count} threads are more than libtorch can count")))
    };
    // SAFETY: plain values.
    check(unsafe { sys::torch_ext_set_threads(number(intra_op)?, number(inter_op)?) })
}

/// Lets the C library keep freed memory for the next step instead of giving it back to the system, which
/// would hand it out again page by page, each cleared first. On a CPU that makes a training step about a
/// quarter faster; the process stays as large as its largest step. Returns whether this C library knows the
/// switch (glibc does).
pub fn keep_freed_memory() -> bool {
    // SAFETY: no arguments.
    unsafe { sys::torch_ext_keep_freed_memory() }
}

/// Threads within an operation.
#[must_use]
pub fn threads() -> usize {
    // SAFETY: no arguments.
    unsafe { sys::torch_ext_threads() as usize }
}

/// From now on operations that the calling thread runs use no other thread. For a thread beside the one that trains,
/// whose cores it would otherwise take away.
///
/// # Errors
/// When this libtorch does not let itself be told.
pub fn use_one_thread_here() -> Result<(), Error> {
    // SAFETY: no arguments.
    check(unsafe { sys::torch_ext_use_one_thread_here() })
}

/// Whether operations without a deterministic algorithm are refused.
///
/// # Errors
/// When libtorch refuses.
pub fn set_deterministic(on: bool) -> Result<(), Error> {
    // SAFETY: a plain value.
    check(unsafe { sys::torch_ext_set_deterministic(on) })
}

/// Whether cuDNN tries its algorithms and keeps the fastest, which may vary from run to run.
///
/// # Errors
/// When libtorch refuses.
pub fn set_cudnn_benchmark(on: bool) -> Result<(), Error> {
    // SAFETY: a plain value.
    check(unsafe { sys::torch_ext_set_cudnn_benchmark(on) })
}

/// Whether fp32 convolutions and products on a GPU may use TF32.
///
/// # Errors
/// When libtorch refuses.
pub fn set_tf32(on: bool) -> Result<(), Error> {
    // SAFETY: a plain value.
    check(unsafe { sys::torch_ext_set_tf32(on) })
}

/// Gives memory of GPUs that no tensor holds, but libtorch keeps for the next ones, back to the system. Without a GPU
/// there is none.
///
/// # Errors
/// When libtorch was built without CUDA, or refuses.
pub fn free_cached_device_memory() -> Result<(), Error> {
    // SAFETY: no arguments.
    check(unsafe { sys::torch_ext_free_cached_device_memory() })
}

/// What this build is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// libtorch's version.
    pub torch: String,
    /// CUDA runtime whose headers were used, for example `13.0`.
    pub cuda: Option<String>,
    /// Whether libtorch_cuda is loaded in this process; without it no GPU is found.
    pub cuda_linked: bool,
    /// Whether streams and events are compiled in.
    pub cuda_headers: bool,
}

/// What this build is made of.
#[must_use]
pub fn versions() -> Versions {
    // SAFETY: the version is a static text; the others return plain values.
    let (torch, cuda, cuda_linked) = unsafe {
        (
            CStr::from_ptr(sys::torch_ext_torch_version()).to_string_lossy().into_owned(),
            sys::torch_ext_cuda_version(),
            sys::torch_ext_cuda_linked(),
        )
    };
    let version = format!("{}.{}", cuda / 1000, cuda % 1000 / 10);
    Versions { torch, cuda: (cuda > 0).then_some(version), cuda_linked, cuda_headers: cfg!(cuda_headers) }
}

/// Number of GPUs that libtorch finds.
#[must_use]
pub fn device_count() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}
