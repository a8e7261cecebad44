//! Where the pixels of batches lie, and who may still read them. The pool only asks for memory and gives it back; kinds of
//! memory that a device copies from without the host's help are the caller's to provide.

#![allow(unsafe_code)]

use std::any::Any;
use std::ptr::NonNull;

/// Gives a pool the memory for its batch buffers, once, when it starts.
pub trait BatchAllocator {
    /// At least `bytes` bytes, zero or more of them.
    ///
    /// # Errors
    /// A sentence about what is missing.
    fn allocate(&self, bytes: usize) -> Result<BatchMemory, String>;
}

/// Bytes that a pool has to itself, freed with their owner.
pub struct BatchMemory {
    start: NonNull<u8>,
    len: usize,
    owner: Box<dyn Any + Send>,
}

impl BatchMemory {
    /// The `len` bytes from `start` on.
    ///
    /// # Safety
    /// They are initialised, stay where they are and can be read and written from any thread until `owner` is dropped,
    /// and nobody else reaches them.
    pub unsafe fn new(start: NonNull<u8>, len: usize, owner: impl Any + Send) -> Self {
        BatchMemory { start, len, owner: Box::new(owner) }
    }

    pub(super) fn into_parts(self) -> (NonNull<u8>, usize, Box<dyn Any + Send>) {
        (self.start, self.len, self.owner)
    }
}

/// The process's ordinary memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapMemory;

impl BatchAllocator for HeapMemory {
    fn allocate(&self, bytes: usize) -> Result<BatchMemory, String> {
        let mut memory: Vec<u8> = Vec::new();
        memory.try_reserve_exact(bytes).map_err(|error| error.to_string())?;
        memory.resize(bytes, 0);
        let start = NonNull::new(memory.as_mut_ptr()).unwrap_or(NonNull::dangling());
        // SAFETY: the bytes of a vector that nobody touches any more.
        Ok(unsafe { BatchMemory::new(start, bytes, memory) })
    }
}

/// Somebody who reads a batch's pixels and may not be through when the batch is dropped: a copy to a device.
/// See [`Batch::read_by`](super::Batch::read_by).
pub trait Reader: Send {
    /// Waits until it is through. Called from a thread of the pool, or from whichever drops the batch.
    ///
    /// # Errors
    /// When nobody knows whether it still reads. The memory is then never used again.
    fn wait(&mut self) -> Result<(), String>;
}
