//! A decoded batch in the consumer's hands.

use crossbeam::channel::Sender;

use super::FilledSlab;
use super::lent::Lent;
use super::memory::Reader;
use crate::augment::DeviceParameters;
use crate::error::DataError;

/// A decoded batch. Its buffer goes back to the pool when it is dropped.
pub struct Batch {
    /// `None` only while it is dropped.
    filled: Option<FilledSlab>,
    readers: Vec<Box<dyn Reader>>,
    free: Sender<Lent>,
}

impl Batch {
    /// The label of a sample that could not be decoded and was skipped.
    pub const SKIPPED: i64 = -100;

    pub(super) fn new(filled: FilledSlab, free: Sender<Lent>) -> Self {
        Batch { filled: Some(filled), readers: Vec::new(), free }
    }

    /// Promises `reader` the pixels for as long as it needs them: when the batch is dropped, its buffer is neither filled
    /// again nor freed before the reader is through. The one who drops the batch does not wait for that, unless the
    /// pool has ended.
    pub fn read_by(&mut self, reader: Box<dyn Reader>) {
        self.readers.push(reader);
    }

    fn filled(&self) -> &FilledSlab {
        self.filled.as_ref().unwrap_or_else(|| unreachable!("a batch has its slab until it is dropped"))
    }

    /// All pixels as `[len, height, width, channels]`.
    #[must_use]
    pub fn images(&self) -> &[u8] {
        let filled = self.filled();
        filled.slab.pixels(filled.len * filled.image.bytes())
    }

    /// The class of each image; [`SKIPPED`](Self::SKIPPED) where there is none.
    #[must_use]
    pub fn labels(&self) -> &[i64] {
        self.filled().slab.labels(self.len())
    }

    /// What the device adds to and blanks in each image.
    #[must_use]
    pub fn device_parameters(&self) -> &[DeviceParameters] {
        self.filled().slab.device(self.len())
    }

    /// Why samples were skipped ([`OnBadSample::Skip`](super::OnBadSample::Skip)), in the order of their places.
    #[must_use]
    pub fn skipped(&self) -> &[DataError] {
        &self.filled().skipped
    }

    /// Number of images, 1 or more.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A batch is never empty.
    pub fn len(&self) -> usize {
        self.filled().len
    }

    /// `[len, height, width, channels]` of [`images`](Self::images).
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        let FilledSlab { len, image, .. } = self.filled();
        [*len, image.height as usize, image.width as usize, image.channels as usize]
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(filled) = self.filled.take() {
            // Nobody takes it when the pool has ended; then the memory is freed.
            let _ = self.free.send(Lent::new(filled.slab, std::mem::take(&mut self.readers)));
        }
    }
}
