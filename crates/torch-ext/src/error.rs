//! Errors of libtorch as values.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

use crate::sys;

/// libtorch refused something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An exception of libtorch; its first line says what is wrong, the rest where it was thrown.
    #[error("{}", .0.lines().next().unwrap_or(.0))]
    Libtorch(String),
    /// An error of tch.
    #[error("{}", first_line(.0))]
    Tch(#[from] tch::TchError),
    /// An argument that libtorch would misunderstand.
    #[error("{0}")]
    Argument(String),
}

/// What is wrong, without the list of C++ frames that libtorch appends.
#[must_use]
pub fn first_line(error: &tch::TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Takes over the text of a shim function.
pub(crate) fn check(text: *mut c_char) -> Result<(), Error> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: a text that is not null was made by strdup in the shim and is ours.
    let message = unsafe {
        let message = CStr::from_ptr(text).to_string_lossy().into_owned();
        sys::torch_ext_free(text);
        message
    };
    Err(Error::Libtorch(message))
}
