//! From files on disk to batches of bytes: data set formats, sample order, augmentation and the prefetching
//! decoder pool. Knows nothing of tensors, devices or ranks' communication; normalisation happens on the
//! device.
//!
//! The way through the crate:
//! 1. [`open`] reads and validates a whole data set and gives a [`Source`], part of a [`DataSet`];
//! 2. [`Sampler::epoch`] gives the one global order of an epoch, [`BatchLayout`] the part of it that a rank
//!    decodes;
//! 3. [`Pool::start`] decodes and augments ([`Augmentation`]) what it is asked for on worker threads and hands
//!    out each [`Batch`] in the order of the requests.
//!
//! All randomness is a pure function of what is drawn (seed, epoch, sample, repetition), never of who draws
//! it, so batches are the same bytes for any number of ranks and workers.

mod atomic;
mod augment;
mod breakdown;
mod cifar;
mod error;
mod fetch;
mod file;
mod files;
mod folders;
mod idx;
mod image_size;
pub mod jpeg;
mod kind;
mod layout;
mod mat;
pub mod own_file;
mod parallel;
mod pool;
mod prepare;
mod progress;
mod published;
mod random;
mod sampler;
mod shards;
mod source;
mod text;
mod verify;

pub use augment::{
    Augmentation, AutoAugment, ColorJitter, Crop, CropVariant, DeviceParameters, Filter, ImageSize, Mix,
    MixDraw, PaddingMode, PasteBox, RandomErasing, RandomResizedCrop, SampleKey,
};
pub use breakdown::{DecodeBreakdown, decode_breakdown};
pub use error::DataError;
pub use fetch::{Address, FetchKind, fetch};
pub use files::ImageFiles;
pub use kind::{SourceFacts, SourceKind, Split};
pub use layout::{BatchLayout, EvaluationBatch, evaluation_batches};
pub use pool::{
    Batch, BatchAllocator, BatchMemory, HeapMemory, OnBadSample, Pool, PoolOptions, Reader, StageTimes,
    default_workers,
};
pub use prepare::{Cap, PrepareKind, PrepareOptions, Side, prepare};
pub use progress::Progress;
pub use sampler::{EpochOrder, Order, Sampler, class_balanced_subset};
pub use shards::{ReadMode, ShardSet, index};
pub use source::{Adapt, DataSet, EncodedSource, ImageShape, Labelled, Source, open};
pub use text::printable;
pub use verify::verify;
