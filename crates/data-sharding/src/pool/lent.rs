//! A slab on its way back, which readers may not be through with: nobody gets it, and its memory is not freed, before
//! they are. `tests/slab_ring.rs` runs this file under loom, together with the slab.

use super::memory::Reader;
use super::slab::Slab;

/// A slab and its readers.
pub(crate) struct Lent {
    /// `None` once it has been taken back.
    slab: Option<Slab>,
    readers: Vec<Box<dyn Reader>>,
}

impl Lent {
    pub(crate) fn new(slab: Slab, readers: Vec<Box<dyn Reader>>) -> Self {
        Lent { slab: Some(slab), readers }
    }

    /// The slab, once nobody reads it any more.
    ///
    /// # Errors
    /// When a reader does not know whether it still reads.
    pub(crate) fn take_back(mut self) -> Result<Slab, String> {
        self.wait()?;
        self.slab.take().ok_or_else(|| "the slab has been taken back".into())
    }

    fn wait(&mut self) -> Result<(), String> {
        let mut outcome = Ok(());
        for mut reader in self.readers.drain(..) {
            outcome = outcome.and(reader.wait());
        }
        if outcome.is_err() {
            // Whoever still reads it reads on.
            std::mem::forget(self.slab.take());
        }
        outcome
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // The memory is freed behind this, or else never.
        let _ = self.wait();
    }
}
