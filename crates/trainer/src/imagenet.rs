//! ImageNet as it is known without its files, for plans of a run before the data is there. Has no images.

use std::sync::Arc;

use data_sharding::{DataError, DataSet, EncodedSource, Labelled};

/// ILSVRC 2012.
const TRAINING_IMAGES: usize = 1_281_167;
const VALIDATION_IMAGES: usize = 50_000;
pub(crate) const CLASSES: u32 = 1000;

struct Absent {
    images: usize,
    classes: Vec<String>,
}

/// Training and validation set. As if every class had the same share of the images, which is nearly so.
pub(crate) fn known_sizes() -> [DataSet; 2] {
    [TRAINING_IMAGES, VALIDATION_IMAGES].map(|images| {
        let classes = (0..CLASSES).map(|class| class.to_string()).collect();
        let set: Arc<dyn EncodedSource> = Arc::new(Absent { images, classes });
        set.into()
    })
}

impl Labelled for Absent {
    fn name(&self) -> &str {
        "ImageNet"
    }

    fn len(&self) -> usize {
        self.images
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> &str {
        ""
    }

    fn label(&self, sample: usize) -> u32 {
        (sample % self.classes.len()) as u32
    }
}

impl EncodedSource for Absent {
    fn read<'a>(&'a self, sample: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], DataError> {
        let expected = "prepared data, which is not there".into();
        Err(DataError::OutOfRange { name: "sample", value: sample as u64, expected })
    }

    fn seek_record(&self, _: usize) -> Option<&[u8]> {
        None
    }

    fn describe(&self, sample: usize) -> String {
        format!("image {sample} of ImageNet")
    }
}
