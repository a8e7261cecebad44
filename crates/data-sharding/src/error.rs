//! Everything that can be wrong with data or with how it is asked for, one sentence each.

use std::io;
use std::path::PathBuf;

use crate::kind::SourceKind;
use crate::text::{printable, shown};

/// Why data cannot be opened, cut into batches or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A name that is no [`SourceKind`], no [`PrepareKind`](crate::PrepareKind) or no
    /// [`FetchKind`](crate::FetchKind).
    #[error("`{}` is no known data set; expected one of {known}", printable(name))]
    UnknownKind {
        /// The name as given.
        name: String,
        /// The names there are.
        known: String,
    },

    /// None of the accepted files is there.
    #[error("{}: no file with the {content} found; expected {expected} ({origin})", shown(folder))]
    MissingFile {
        /// Where it was looked for.
        folder: PathBuf,
        /// What the file would hold.
        content: String,
        /// The accepted names.
        expected: String,
        /// Where such files come from.
        origin: &'static str,
    },

    /// The operating system refuses to read a file.
    #[error("{}: cannot be read: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// The operating system refuses to write a file.
    #[error("{}: cannot be written: {source}", shown(path))]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// A file that does not hold what it should.
    #[error("{}: {}; expected {}", shown(path), printable(problem), printable(expected))]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// What would be right.
        expected: String,
    },

    /// A decoder that cannot be made.
    #[error("no image decoder can be made: {reason}")]
    Decoder {
        /// What the library says.
        reason: String,
    },

    /// A file that cannot be downloaded.
    #[error("{}: {}", printable(url), printable(problem))]
    Fetch {
        /// Its address.
        url: String,
        /// What went wrong.
        problem: String,
    },

    /// A gzip file whose stream does not decode.
    #[error("{}: corrupt gzip stream after {decoded} decoded bytes: {source}", shown(path))]
    Gzip {
        /// The file.
        path: PathBuf,
        /// Bytes decoded before the fault.
        decoded: usize,
        /// What the decoder says.
        source: io::Error,
    },

    /// The first four bytes are not those of the expected kind of IDX file.
    #[error(
        "{}: starts with 0x{found:08x}; expected 0x{expected:08x}, the mark of an IDX file of unsigned bytes with \
         {dimensions} dimension(s)",
        shown(path)
    )]
    Magic {
        /// The file.
        path: PathBuf,
        /// Big-endian mark in the file.
        found: u32,
        /// Big-endian mark that belongs there.
        expected: u32,
        /// Number of dimensions of the expected kind.
        dimensions: u32,
    },

    /// Images of another size than the data set has.
    #[error(
        "{}: images are {}x{} (height x width); expected {}x{}",
        shown(path), found[0], found[1], expected[0], expected[1]
    )]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Height and width in the file.
        found: [u32; 2],
        /// Height and width of the data set.
        expected: [u32; 2],
    },

    /// A file whose length does not fit what it should hold.
    #[error("{}: {problem}: expected {expected}, found {found}", shown(path))]
    Length {
        /// The file.
        path: PathBuf,
        /// In short: truncated, too long or cut inside a record.
        problem: &'static str,
        /// The right length in bytes and why.
        expected: String,
        /// The length in bytes that is there.
        found: String,
    },

    /// A file without a single sample.
    #[error("{}: holds no samples; expected at least one", shown(path))]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// A label that names no class.
    #[error(
        "{}: {label} {value} of sample {sample} is out of range; expected 0 to {}",
        shown(path), classes - 1
    )]
    LabelRange {
        /// The file.
        path: PathBuf,
        /// Which of a sample's labels.
        label: &'static str,
        /// Index of the sample in the file, from 0.
        sample: usize,
        /// The label in the file.
        value: u8,
        /// Number of classes.
        classes: usize,
    },

    /// As many labels as images are needed.
    #[error(
        "{} has {image_count} images but {} has {label_count} labels; expected equal counts",
        shown(images),
        shown(labels)
    )]
    CountMismatch {
        /// File of images.
        images: PathBuf,
        /// File of labels.
        labels: PathBuf,
        /// Images in the one.
        image_count: usize,
        /// Labels in the other.
        label_count: usize,
    },

    /// A list of class names that does not fit the data set.
    #[error("{}: {}; expected {expected} class names, one a line, in UTF-8", shown(path), printable(found))]
    ClassNames {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
        /// Number of classes.
        expected: usize,
    },

    /// Images cannot be brought into the wanted form.
    #[error("{kind} images are {size}x{size} with {channels} channel(s): {problem}")]
    Adapt {
        /// The data set.
        kind: SourceKind,
        /// Height and width as stored, pixels.
        size: u32,
        /// Channels as stored.
        channels: u32,
        /// What was wanted and what is possible.
        problem: String,
    },

    /// The global batch cannot be cut into equal shares.
    #[error(
        "a global batch of {global_batch} is no multiple of micro batch {micro_batch} x {world_size} rank(s); \
         nearest valid global batch: {nearest}"
    )]
    GlobalBatch {
        /// Samples a step over all ranks.
        global_batch: usize,
        /// Samples of one forward pass.
        micro_batch: usize,
        /// Number of ranks.
        world_size: usize,
        /// What would do.
        nearest: String,
    },

    /// A number outside the range in which it makes sense.
    #[error("{name} is {value}; expected {expected}")]
    OutOfRange {
        /// Name of the setting.
        name: &'static str,
        /// As given.
        value: u64,
        /// The range in words.
        expected: String,
    },

    /// Batch buffers that do not fit into memory.
    #[error(
        "{buffers} batch buffers of {batch_size} images of {image_bytes} bytes do not fit into memory ({reason}); \
         lower prefetch or the batch size"
    )]
    Memory {
        /// Number of buffers.
        buffers: usize,
        /// Images in each.
        batch_size: usize,
        /// Bytes of an image.
        image_bytes: usize,
        /// What the allocator says.
        reason: String,
    },

    /// Something outside the pool that reads batches failed.
    #[error("whoever reads a batch's memory does not know whether it still does: {reason}")]
    Reader {
        /// What it says.
        reason: String,
    },

    /// A worker thread that cannot be started.
    #[error("decoder thread {thread} cannot be started: {source}; lower the number of workers")]
    Thread {
        /// Its name.
        thread: String,
        /// What the system says.
        source: io::Error,
    },

    /// A request with no samples, or with more than a batch buffer holds.
    #[error(
        "request {request} asks for {samples} samples; expected 1 to {batch_size}, the size of a batch buffer"
    )]
    RequestSize {
        /// Index of the request, from 0.
        request: u64,
        /// Samples asked for.
        samples: usize,
        /// Samples a buffer holds.
        batch_size: usize,
    },

    /// The iterator of requests panicked.
    #[error("the list of requests failed at request {request}: {message}")]
    Requests {
        /// Index of the request, from 0.
        request: u64,
        /// The panic's message.
        message: String,
    },

    /// A sample that does not exist.
    #[error("{}: sample {sample} does not exist; expected 0 to {}", printable(data_set), samples.saturating_sub(1))]
    NoSuchSample {
        /// Name of the source.
        data_set: String,
        /// As asked for.
        sample: usize,
        /// Number of samples.
        samples: usize,
    },

    /// A sample that cannot be decoded.
    #[error("{}: sample {sample} cannot be decoded: {}", printable(data_set), printable(reason))]
    Decode {
        /// Name of the source.
        data_set: String,
        /// Index of the sample.
        sample: usize,
        /// The decoder's error, or the message of its panic.
        reason: String,
    },

    /// An augmentation that does not fit the images.
    #[error("augmentation: {0}")]
    Augmentation(&'static str),

    /// A request whose images have different sizes.
    #[error("request {request} mixes epochs whose images have different sizes; expected one size a batch")]
    MixedSizes {
        /// Index of the request, from 0.
        request: u64,
    },
}
