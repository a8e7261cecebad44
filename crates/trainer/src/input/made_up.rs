//! Images for tests: bytes of one shape in memory, each of a class of its own.

use std::sync::Arc;

use data_sharding::{DataError, DataSet, ImageShape, Labelled, Source};

struct MadeUp {
    shape: ImageShape,
    bytes: Vec<u8>,
}

/// The data set of images that lie behind one another in `bytes`, each `[height, width, channels]`.
pub(crate) fn data_set(shape: ImageShape, bytes: Vec<u8>) -> DataSet {
    let source: Arc<dyn Source> = Arc::new(MadeUp { shape, bytes });
    source.into()
}

impl Labelled for MadeUp {
    fn name(&self) -> &str {
        "made-up images"
    }

    fn len(&self) -> usize {
        self.bytes.len() / self.shape.bytes()
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> &str {
        "f"
    }

    fn label(&self, sample: usize) -> u32 {
        sample as u32
    }
}

impl Source for MadeUp {
    fn image(&self) -> ImageShape {
        self.shape
    }

    fn decode(&self, sample: usize, pixels: &mut [u8]) -> Result<(), DataError> {
        pixels.copy_from_slice(&self.bytes[sample * self.shape.bytes()..][..self.shape.bytes()]);
        Ok(())
    }
}
