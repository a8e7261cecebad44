//! `data:` the images, and what is done to them on their way to the network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AutoOr, defaults};

/// `data:` the images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// `fashion-mnist`, `cifar10` or `cifar100`; or `shards`, what `wrn-dist data prepare` makes.
    pub kind: String,
    /// Folder that holds the data set's files; of shards the folder with `train` and `val` (or `test`).
    pub path: PathBuf,
    /// Side in pixels to which images are padded with zeros, evenly on both sides; not for shards.
    #[serde(default)]
    pub pad_to: Option<u32>,
    /// Number of channels; grey images can be repeated to 3; not for shards, which give 3.
    #[serde(default)]
    pub channels: Option<u32>,
    /// How bytes become the network's numbers; the data set's own constants when absent, of shards those of
    /// ImageNet.
    #[serde(default)]
    pub normalize: Option<NormalizeConfig>,

    /// Which part of a training image is seen: `padded` when absent, of shards `random-resized`.
    #[serde(default)]
    pub crop: Option<CropKind>,
    /// `padded`: training images are padded by this many pixels and cropped back at a random place; 0 is off; 4
    /// when absent.
    #[serde(default)]
    pub crop_padding: Option<u32>,
    /// `padded`: what the padding of the random crop holds.
    #[serde(default)]
    pub crop_padding_mode: CropPadding,
    /// `random-resized`, `random-sized`: smallest and largest share of the image's area.
    #[serde(default = "defaults::crop_area")]
    pub crop_area: [f64; 2],
    /// `random-resized`, `random-sized`: smallest and largest width divided by height.
    #[serde(default = "defaults::crop_aspect")]
    pub crop_aspect: [f64; 2],
    /// Side in pixels of scaled training images: a number, or a table that lets it grow (progressive
    /// resizing); 224 for shards when absent, else the images' own.
    #[serde(default)]
    pub image_size: Option<ImageSizeConfig>,
    /// Pixels to which the shorter side of a test image is scaled; 256/224 of `test_size` when absent.
    #[serde(default)]
    pub test_resize: Option<u32>,
    /// Side of the square that is taken from the middle of a scaled test image; the final `image_size` when
    /// absent.
    #[serde(default)]
    pub test_size: Option<u32>,
    /// How images are scaled.
    #[serde(default)]
    pub filter: FilterKind,
    /// Mirror each training image with probability one half.
    #[serde(default = "defaults::yes")]
    pub flip: bool,
    /// Random brightness, contrast and saturation of training images.
    #[serde(default)]
    pub color_jitter: Option<ColorJitterConfig>,
    /// Standard deviation of the colour noise along ImageNet's principal axes (fb.resnet.torch: 0.1); 0 is off.
    #[serde(default)]
    pub lighting: f64,
    /// TrivialAugment or RandAugment for training images.
    #[serde(default)]
    pub auto_augment: Option<AutoAugmentKind>,
    /// `auto_augment: rand`: operations an image.
    #[serde(default = "defaults::rand_operations")]
    pub rand_operations: u32,
    /// `auto_augment: rand`: strength, 0 to 30.
    #[serde(default = "defaults::rand_magnitude")]
    pub rand_magnitude: u32,
    /// Probability of random erasing; 0 is off.
    #[serde(default)]
    pub erase: f64,
    /// Random erasing: smallest and largest share of the image's area.
    #[serde(default = "defaults::erase_area")]
    pub erase_area: [f64; 2],
    /// Random erasing: smallest and largest height divided by width.
    #[serde(default = "defaults::erase_aspect")]
    pub erase_aspect: [f64; 2],
    /// Parameter of mixup's Beta distribution; 0 is off. With `cutmix` too, each micro batch takes one of them.
    #[serde(default)]
    pub mixup: f64,
    /// Parameter of cutmix's Beta distribution; 0 is off.
    #[serde(default)]
    pub cutmix: f64,

    /// Order of the training samples within an epoch.
    #[serde(default)]
    pub order: SampleOrder,
    /// `order: block`: neighbouring samples that stay together.
    #[serde(default = "defaults::block_samples")]
    pub block_samples: u32,
    /// `order: block`: blocks whose samples are mixed.
    #[serde(default = "defaults::block_buffer")]
    pub block_buffer: u32,
    /// Differently augmented visits of every sample an epoch, one after the other.
    #[serde(default = "defaults::one")]
    pub repetitions: u32,
    /// Share of every class that is trained on.
    #[serde(default = "defaults::whole")]
    pub class_fraction: f64,
    /// What happens when a sample cannot be decoded.
    #[serde(default)]
    pub on_bad_sample: OnBadSampleKind,
    /// How shards are read.
    #[serde(default)]
    pub read: ReadKind,
    /// Decoder threads of this rank.
    #[serde(default)]
    pub workers: AutoOr,
    /// Micro batches decoded ahead of the network. Beside a GPU their memory is pinned, and one of them is copied there
    /// while the batch before it is computed.
    #[serde(default = "defaults::prefetch")]
    pub prefetch: usize,
}

/// `data.normalize:`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `zca`, or a table with `mean` and `std` for each channel, on 0 to 255"
)]
pub enum NormalizeConfig {
    /// Constants a channel.
    Channels(ChannelConstants),
    /// By name.
    Named(NamedNormalization),
}

/// `data.normalize:` per channel, on the scale 0 to 255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelConstants {
    /// Subtracted from each pixel.
    pub mean: Vec<f64>,
    /// Divides the difference.
    pub std: Vec<f64>,
}

/// `data.normalize:` by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedNormalization {
    /// Global contrast normalisation and ZCA whitening as in pylearn2, before the random crop: the paper's
    /// Tables 2 to 4. For images of one size. Fitted once, and kept in `wrn-dist` in the user's cache
    /// (`$XDG_CACHE_HOME`, or `~/.cache`).
    Zca,
}

/// `data.crop:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CropKind {
    /// Padded and cropped back to its own size.
    Padded,
    /// A random part scaled to `image_size`, as torchvision's RandomResizedCrop.
    RandomResized,
    /// The same as fb.resnet.torch's RandomSizedCrop draws it.
    RandomSized,
    /// The middle, as test images.
    Center,
}

/// `data.crop_padding_mode:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CropPadding {
    /// Mirrored at the border without repeating the edge pixel, as the paper's script does.
    #[default]
    Reflect,
    /// Black.
    Zero,
}

/// `data.image_size:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number of pixels, or a table with `from`, `to`, `until_epoch` and `step`"
)]
pub enum ImageSizeConfig {
    /// The same in every epoch.
    Constant(u32),
    /// Growing.
    Growing(GrowingSize),
}

/// `data.image_size:` as a function of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowingSize {
    /// Pixels in the first epoch, at most `to`.
    pub from: u32,
    /// Pixels in epoch `until_epoch` and later.
    pub to: u32,
    /// The first epoch, counted from 1, of the final size; 1 or more.
    pub until_epoch: u32,
    /// Sizes in between are multiples of this many pixels.
    #[serde(default = "defaults::size_step")]
    pub step: u32,
}

/// `data.filter:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterKind {
    /// Triangle, antialiased; torchvision's default.
    #[default]
    Bilinear,
    /// Cubic, antialiased; fb.resnet.torch's.
    Bicubic,
}

/// `data.color_jitter:` each factor is uniform in 1 - strength to 1 + strength.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitterConfig {
    /// Strength of the brightness.
    #[serde(default)]
    pub brightness: f64,
    /// Strength of the contrast.
    #[serde(default)]
    pub contrast: f64,
    /// Strength of the saturation.
    #[serde(default)]
    pub saturation: f64,
}

/// `data.auto_augment:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoAugmentKind {
    /// TrivialAugment, wide.
    TrivialWide,
    /// RandAugment.
    Rand,
}

/// `data.order:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleOrder {
    /// A fresh permutation of the whole training set each epoch.
    #[default]
    Shuffled,
    /// As stored.
    Sequential,
    /// Blocks of neighbours in a fresh order, mixed within a buffer: sequential reads for network disks.
    Block,
}

/// `data.on_bad_sample:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadSampleKind {
    /// The run ends with an error that names it.
    #[default]
    Error,
    /// It is logged and counted; its place in the batch is black and has no part in loss and error. A step, or a test
    /// set, without any sample that can be decoded ends the run all the same.
    SkipAndLog,
}

/// `data.read:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadKind {
    /// By a system call for each image.
    #[default]
    Read,
    /// Mapped into memory: no copy, but a disk that fails ends the process.
    Map,
}
