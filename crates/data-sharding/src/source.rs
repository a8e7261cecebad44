//! What a data set is to the rest of the crate, and the one that lies in memory. Formats are in `idx` and `cifar`;
//! order, augmentation and batching are elsewhere.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::error::DataError;
use crate::kind::{SourceKind, Split};
use crate::shards::ShardSet;
use crate::{cifar, idx};

/// Size of every image of a source, stored as `[height, width, channels]`, one byte a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Rows.
    pub height: u32,
    /// Pixels a row.
    pub width: u32,
    /// Values a pixel.
    pub channels: u32,
}

impl ImageShape {
    /// Bytes of an image.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.height as usize * self.row_bytes()
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.width as usize * self.channels as usize
    }
}

/// What every data set knows of its samples, shared by all decoder threads.
pub trait Labelled: Send + Sync {
    /// What the data set is and where it lies, for messages.
    fn name(&self) -> &str;

    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes, by label.
    fn classes(&self) -> &[String];

    /// Hash in hexadecimal of what is stored (pixels or files, labels), whatever form images are given out in.
    fn fingerprint(&self) -> &str;

    /// The class of a sample, below `classes().len()`.
    ///
    /// # Panics
    /// If there is no such sample.
    fn label(&self, sample: usize) -> u32;
}

/// A data set of plain pixels, all images of one size, with random access.
pub trait Source: Labelled {
    /// Size of every decoded image.
    fn image(&self) -> ImageShape;

    /// Writes the image of a sample as `[height, width, channels]` into all of `pixels`.
    ///
    /// # Errors
    /// If there is no such sample, it is damaged, or `pixels` is not as long as an image.
    fn decode(&self, sample: usize, pixels: &mut [u8]) -> Result<(), DataError>;
}

/// A data set of JPEG and PNG files of any size, with random access. Images are given out as RGB.
pub trait EncodedSource: Labelled {
    /// The file of a sample, in `buffer` or where it lies.
    ///
    /// # Errors
    /// If there is no such sample, or the system cannot read it.
    fn read<'a>(&'a self, sample: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], DataError>;

    /// What lets a decoder find its way within the file, if there is such a record.
    fn seek_record(&self, sample: usize) -> Option<&[u8]>;

    /// Where a sample lies, for messages.
    fn describe(&self, sample: usize) -> String;
}

/// Either kind of data set.
#[derive(Clone)]
pub enum DataSet {
    /// Pixels of one size.
    Pixels(Arc<dyn Source>),
    /// Files of any size.
    Encoded(Arc<dyn EncodedSource>),
}

impl DataSet {
    /// The one size of all images, if they have one.
    #[must_use]
    pub fn image(&self) -> Option<ImageShape> {
        match self {
            DataSet::Pixels(source) => Some(source.image()),
            DataSet::Encoded(_) => None,
        }
    }
}

impl Deref for DataSet {
    type Target = dyn Labelled;

    fn deref(&self) -> &(dyn Labelled + 'static) {
        match self {
            DataSet::Pixels(source) => &**source,
            DataSet::Encoded(source) => &**source,
        }
    }
}

impl From<Arc<dyn Source>> for DataSet {
    fn from(source: Arc<dyn Source>) -> Self {
        DataSet::Pixels(source)
    }
}

impl From<Arc<dyn EncodedSource>> for DataSet {
    fn from(source: Arc<dyn EncodedSource>) -> Self {
        DataSet::Encoded(source)
    }
}

impl Labelled for ShardSet {
    fn name(&self) -> &str {
        self.name()
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn classes(&self) -> &[String] {
        self.classes()
    }

    fn fingerprint(&self) -> &str {
        self.fingerprint()
    }

    fn label(&self, sample: usize) -> u32 {
        self.label(sample)
    }
}

impl EncodedSource for ShardSet {
    fn read<'a>(&'a self, sample: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], DataError> {
        self.bytes(sample, buffer)
    }

    fn seek_record(&self, sample: usize) -> Option<&[u8]> {
        self.seek_record(sample)
    }

    fn describe(&self, sample: usize) -> String {
        self.describe(sample).into_owned()
    }
}

/// In which form images are given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapt {
    /// Pad with zeros, equally on all sides, to this height and width.
    pub pad_to: Option<u32>,
    /// Number of channels; grey images can be repeated to 3.
    pub channels: Option<u32>,
}

/// Reads one half of a data set into memory and checks all of it: sizes, counts, labels.
///
/// `root` is the folder with its files, for the CIFARs also the folder around that.
///
/// # Errors
/// The first thing that is wrong with the files, or an `adapt` that is impossible for this kind of images.
pub fn open(kind: SourceKind, root: &Path, split: Split, adapt: Adapt) -> Result<Arc<dyn Source>, DataError> {
    let margin = margin(kind, &adapt)?;
    let channels = channels(kind, &adapt)?;
    let stored = match cifar::archive(kind) {
        Some(archive) => cifar::open(kind, archive, root, split)?,
        None => idx::open(kind, root, split)?,
    };
    let shape = kind.facts().image;
    Ok(Arc::new(InMemory {
        name: format!("{kind} {split} set in {}", root.display()),
        fingerprint: fingerprint(shape, &stored),
        shape,
        image: ImageShape { height: shape.height + 2 * margin, width: shape.width + 2 * margin, channels },
        margin: margin as usize,
        stored,
    }))
}

/// What a format's reader gives: everything in memory, images as `[height, width, channels]`.
pub(crate) struct Stored {
    pub(crate) pixels: Vec<u8>,
    pub(crate) labels: Vec<u8>,
    pub(crate) classes: Vec<String>,
}

struct InMemory {
    name: String,
    fingerprint: String,
    /// As stored.
    shape: ImageShape,
    /// As given out.
    image: ImageShape,
    /// Zeros on each side, pixels.
    margin: usize,
    stored: Stored,
}

impl Labelled for InMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.stored.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.stored.classes
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn label(&self, sample: usize) -> u32 {
        self.stored.labels[sample].into()
    }
}

impl Source for InMemory {
    fn image(&self) -> ImageShape {
        self.image
    }

    fn decode(&self, sample: usize, pixels: &mut [u8]) -> Result<(), DataError> {
        if sample >= self.len() {
            return Err(DataError::NoSuchSample { data_set: self.name.clone(), sample, samples: self.len() });
        }
        if pixels.len() != self.image.bytes() {
            let reason =
                format!("the buffer has {} bytes, an image has {}", pixels.len(), self.image.bytes());
            return Err(DataError::Decode { data_set: self.name.clone(), sample, reason });
        }
        let image = &self.stored.pixels[sample * self.shape.bytes()..][..self.shape.bytes()];
        if self.shape == self.image {
            pixels.copy_from_slice(image);
            return Ok(());
        }
        let channels = self.image.channels as usize;
        let repeats = channels / self.shape.channels as usize;
        if self.margin > 0 {
            pixels.fill(0);
        }
        let rows = pixels.chunks_exact_mut(self.image.row_bytes()).skip(self.margin);
        for (output, row) in rows.zip(image.chunks_exact(self.shape.row_bytes())) {
            let inner = &mut output[self.margin * channels..][..row.len() * repeats];
            if repeats == 1 {
                inner.copy_from_slice(row);
            } else {
                inner.chunks_exact_mut(repeats).zip(row).for_each(|(pixel, &grey)| pixel.fill(grey));
            }
        }
        Ok(())
    }
}

/// Larger images than this are surely a mistake for data sets of 28 to 32 pixels.
const LARGEST_PAD_TO: u32 = 1024;

fn margin(kind: SourceKind, adapt: &Adapt) -> Result<u32, DataError> {
    let size = kind.facts().image.height;
    let Some(pad_to) = adapt.pad_to else { return Ok(0) };
    if (size..=LARGEST_PAD_TO).contains(&pad_to) && (pad_to - size).is_multiple_of(2) {
        return Ok((pad_to - size) / 2);
    }
    let problem = format!(
        "pad_to {pad_to} is impossible, as the margin is equal on all sides; expected an even number of pixels more, \
         {size} to {LARGEST_PAD_TO}"
    );
    Err(impossible(kind, problem))
}

fn channels(kind: SourceKind, adapt: &Adapt) -> Result<u32, DataError> {
    let stored = kind.facts().image.channels;
    match (stored, adapt.channels.unwrap_or(stored)) {
        (1, 3) => Ok(3),
        (stored, wanted) if stored == wanted => Ok(wanted),
        (stored, wanted) => {
            let possible = if stored == 1 { "1 or 3, the grey value repeated" } else { "3" };
            Err(impossible(kind, format!("channels {wanted} is impossible; expected {possible}")))
        }
    }
}

fn impossible(kind: SourceKind, problem: String) -> DataError {
    let image = kind.facts().image;
    DataError::Adapt { kind, size: image.height, channels: image.channels, problem }
}

/// XXH3-128 of height, width, channels and number of samples (each a little-endian `u64`), pixels, labels.
fn fingerprint(shape: ImageShape, stored: &Stored) -> String {
    let mut hash = Xxh3Default::new();
    let sizes = [shape.height, shape.width, shape.channels].map(u64::from);
    for size in sizes.into_iter().chain([stored.labels.len() as u64]) {
        hash.update(&size.to_le_bytes());
    }
    hash.update(&stored.pixels);
    hash.update(&stored.labels);
    format!("{:032x}", hash.digest128())
}
