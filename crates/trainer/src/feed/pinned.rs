//! Batch buffers in memory from which a GPU copies without the host's help.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use data_sharding::{BatchAllocator, BatchMemory};
use torch_ext::copy::pinned_bytes;
use torch_ext::cuda::set_device;

/// Pinned for one GPU.
pub(super) struct PinnedMemory {
    pub(super) gpu: usize,
}

impl BatchAllocator for PinnedMemory {
    fn allocate(&self, bytes: usize) -> Result<BatchMemory, String> {
        let memory = set_device(self.gpu).and_then(|()| pinned_bytes(bytes));
        let memory = memory.map_err(|error| format!("memory cannot be pinned: {error}"))?;
        let start = NonNull::new(memory.data_ptr().cast::<u8>()).ok_or("there is no pinned memory")?;
        // SAFETY: the bytes of a tensor of zeros, which lives as long as its owner and which nobody else knows.
        Ok(unsafe { BatchMemory::new(start, bytes, memory) })
    }
}
