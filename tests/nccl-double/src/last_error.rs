//! The sentence that `ncclGetLastError` gives.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use nccl_rs::sys::ncclResult_t;

static LATEST: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// Keeps `sentence`, for ever since somebody may be reading it, and gives `code` back.
pub(crate) fn fail(code: ncclResult_t, sentence: String) -> ncclResult_t {
    if let Ok(sentence) = CString::new(sentence) {
        LATEST.store(sentence.into_raw(), Ordering::Release);
    }
    code
}

pub(crate) fn latest() -> *const c_char {
    let latest = LATEST.load(Ordering::Acquire).cast_const();
    if latest.is_null() { c"".as_ptr() } else { latest }
}
