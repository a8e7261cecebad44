//! Memory that NCCL allocates, so that its fastest paths can use it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use crate::{Error, Library, result};

/// Memory on the current device, from `ncclMemAlloc`. Not initialised.
#[derive(Debug)]
pub struct DeviceMemory {
    library: Library,
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the memory is the value's alone, and NCCL frees it from any thread.
unsafe impl Send for DeviceMemory {}
// SAFETY: a shared value tells only where the memory lies.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// Allocates at least one byte.
    ///
    /// # Errors
    /// When there is no device or not enough memory.
    pub fn new(library: &Library, bytes: usize) -> Result<Self, Error> {
        let mut start = ptr::null_mut();
        // SAFETY: a valid place to write to.
        let _ = unsafe { result::mem_alloc(library, &mut start, bytes.max(1)) }?;
        let start = NonNull::new(start).ok_or_else(|| Error {
            call: "ncclMemAlloc",
            code: 0,
            sentence: format!("it gives no memory for {bytes} bytes"),
        })?;
        Ok(DeviceMemory { library: library.clone(), start, bytes })
    }

    /// Its first byte, aligned for every type; not for the host to read.
    #[must_use]
    pub fn as_ptr(&self) -> *mut c_void {
        self.start.as_ptr()
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: from `ncclMemAlloc`, freed once. Of a failure nothing follows but that the memory stays.
        let _ = unsafe { result::mem_free(&self.library, self.start.as_ptr()) };
    }
}
