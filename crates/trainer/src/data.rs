//! The data half of a plan: data sets, augmentation, sample order and mixing, each key of `data:` checked. Opens data
//! sets; decodes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_sharding::{
    Adapt, Augmentation, AutoAugment, ColorJitter, Crop, CropVariant, DataError, DataSet, EncodedSource,
    Filter, ImageShape, ImageSize, Mix, OnBadSample, Order, PaddingMode, PoolOptions, RandomErasing,
    RandomResizedCrop, ReadMode, Sampler, ShardSet, SourceKind, Split, class_balanced_subset,
};

use crate::config::ranges::LARGEST_SIDE;
use crate::config::{
    AutoAugmentKind, ChannelConstants, ConfigError, CropKind, CropPadding, DataConfig, FilterKind,
    ImageSizeConfig, LoadedConfig, NamedNormalization, NormalizeConfig, OnBadSampleKind, ReadKind,
    SampleOrder,
};
use crate::error::Error;

/// `data.kind` of prepared data sets.
const SHARDS: &str = "shards";
/// Folders of a prepared data set, by [`Split`]; the first that exists.
const TRAIN_FOLDERS: &[&str] = &["train"];
const TEST_FOLDERS: &[&str] = &["val", "test"];

/// ImageNet's constants, on 0 to 255.
pub(crate) const IMAGENET_MEAN: [f64; 3] = [123.675, 116.28, 103.53];
pub(crate) const IMAGENET_STD: [f64; 3] = [58.395, 57.12, 57.375];

/// Pixels of a training image of shards, and of a test image before and after its middle is taken (the usual sizes
/// of ImageNet).
const USUAL_SIZE: u32 = 224;
const USUAL_RESIZE: u32 = 256;

/// Where images come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In memory, all of one size.
    Pixels(SourceKind),
    /// JPEG and PNG files of any size.
    Shards,
}

/// Everything about the data that is known before the first step.
pub(crate) struct DataPlan {
    pub(crate) train: DataSet,
    pub(crate) test: DataSet,
    pub(crate) train_augmentation: Augmentation,
    pub(crate) test_augmentation: Augmentation,
    pub(crate) sampler: Sampler,
    pub(crate) mix: Mix,
    /// Training images of the last epoch.
    pub(crate) image: ImageShape,
    on_bad_sample: OnBadSample,
}

impl Kind {
    pub(crate) fn parse(loaded: &LoadedConfig) -> Result<Self, ConfigError> {
        let name = &loaded.config.data.kind;
        if name == SHARDS {
            return Ok(Kind::Shards);
        }
        name.parse().map(Kind::Pixels).map_err(|error: DataError| {
            loaded.error("data.kind", format!("{error}, or {SHARDS} for a prepared data set"))
        })
    }
}

impl DataPlan {
    /// Opens both halves and checks everything that depends on them. Writes what was derived into `data`.
    pub(crate) fn open(
        loaded: &LoadedConfig,
        kind: Kind,
        seed: u64,
        data: &mut DataConfig,
    ) -> Result<Self, Error> {
        require_folder(loaded)?;
        let sets = [open(loaded, kind, Split::Train)?, open(loaded, kind, Split::Test)?];
        Self::of(loaded, kind, seed, data, sets)
    }

    /// The same of data sets that are open, of training and of test.
    pub(crate) fn of(
        loaded: &LoadedConfig,
        kind: Kind,
        seed: u64,
        data: &mut DataConfig,
        [train, test]: [DataSet; 2],
    ) -> Result<Self, Error> {
        if train.classes() != test.classes() {
            let (train, test) = (train.classes().len(), test.classes().len());
            let problem = format!(
                "the classes of the halves differ, {train} of training and {test} of test, so their labels mean \
                 different things; expected the same names in both"
            );
            return Err(loaded.error("data.path", problem).into());
        }
        let stored = train.image();
        if let Some(stored) = stored.filter(|stored| stored.height != stored.width) {
            let problem =
                format!("images are {}x{}; networks here take square ones", stored.height, stored.width);
            return Err(loaded.error("data.pad_to", problem).into());
        }
        let channels = stored.map_or(3, |stored| stored.channels) as usize;
        resolve_normalization(loaded, kind, channels, data)?;
        let framing = resolve_crop(loaded, stored, data)?;
        let colored = [
            ("data.color_jitter", data.color_jitter.is_some()),
            ("data.lighting", data.lighting > 0.0),
            ("data.auto_augment", data.auto_augment.is_some()),
        ];
        if let Some((key, _)) = colored.into_iter().find(|(_, on)| *on).filter(|_| channels != 3) {
            let problem = format!("images have {channels} channel(s); colours need 3 (data.channels)");
            return Err(loaded.error(key, problem).into());
        }
        let train_augmentation = Augmentation {
            seed,
            flip: data.flip,
            auto: data.auto_augment.map(|auto| match auto {
                AutoAugmentKind::TrivialWide => AutoAugment::TrivialWide,
                AutoAugmentKind::Rand => AutoAugment::Rand {
                    operations: data.rand_operations as usize,
                    magnitude: data.rand_magnitude,
                },
            }),
            color_jitter: data.color_jitter.map(|jitter| ColorJitter {
                brightness: jitter.brightness,
                contrast: jitter.contrast,
                saturation: jitter.saturation,
            }),
            lighting: data.lighting,
            erase: (data.erase > 0.0).then(|| RandomErasing {
                probability: data.erase,
                area: data.erase_area.into(),
                aspect: data.erase_aspect.into(),
            }),
            crop_on_device: whitens(data),
            ..Augmentation::of_test(framing.train)
        };
        let order = match data.order {
            SampleOrder::Shuffled => Order::Shuffled,
            SampleOrder::Sequential => Order::Sequential,
            SampleOrder::Block => Order::Block { block: data.block_samples, buffer: data.block_buffer },
        };
        let mut sampler = Sampler::new(train.len(), seed, order).repeated(data.repetitions);
        if data.class_fraction < 1.0 {
            let labels = (0..train.len()).map(|sample| train.label(sample));
            let subset = class_balanced_subset(labels, train.classes().len(), data.class_fraction, seed);
            sampler = sampler.within(subset);
        }
        let side = framing.size.to;
        Ok(DataPlan {
            train_augmentation,
            test_augmentation: Augmentation::of_test(framing.test),
            sampler,
            mix: Mix { mixup: data.mixup, cutmix: data.cutmix },
            image: ImageShape { height: side, width: side, channels: channels as u32 },
            on_bad_sample: match data.on_bad_sample {
                OnBadSampleKind::Error => OnBadSample::Error,
                OnBadSampleKind::SkipAndLog => OnBadSample::Skip,
            },
            train,
            test,
        })
    }

    /// As the test images of a ten-crop evaluation; `None` where test images are not scaled and have no margins.
    pub(crate) fn ten_crop(&self) -> Option<Augmentation> {
        match self.test_augmentation.crop {
            Crop::Center { shorter, size, filter } => {
                Some(Augmentation::of_test(Crop::Ten { shorter, size, filter }))
            }
            _ => None,
        }
    }

    pub(crate) fn pool_options(&self, workers: usize, batch_size: usize, prefetch: usize) -> PoolOptions {
        PoolOptions { workers, batch_size, prefetch, on_bad_sample: self.on_bad_sample }
    }
}

/// Whether images are whitened, which comes before the crop, so that both happen on the device.
pub(crate) fn whitens(data: &DataConfig) -> bool {
    matches!(data.normalize, Some(NormalizeConfig::Named(NamedNormalization::Zca)))
}

/// That there is nothing where the configuration says is the configuration's fault, unlike what may be wrong with the
/// files.
fn require_folder(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let path = &loaded.config.data.path;
    let problem: String = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => "is no folder".into(),
        Err(error) => format!("cannot be opened: {error}"),
    };
    let expected = "expected the data set's folder, which `wrn-dist data prepare` makes of archives (`wrn-dist data fetch` \
                    brings those of the small sets)";
    Err(loaded.error("data.path", format!("{} {problem}; {expected}", path.display())))
}

fn open(loaded: &LoadedConfig, kind: Kind, split: Split) -> Result<DataSet, Error> {
    let data = &loaded.config.data;
    match kind {
        Kind::Shards => {
            let folders = if split == Split::Train { TRAIN_FOLDERS } else { TEST_FOLDERS };
            let folder = half(&data.path, folders).ok_or_else(|| {
                loaded.error(
                    "data.path",
                    format!("{} has no folder `{}`", data.path.display(), folders.join("` or `")),
                )
            })?;
            let mode = match data.read {
                ReadKind::Map => ReadMode::Map,
                ReadKind::Read => ReadMode::Read,
            };
            let shards: Arc<dyn EncodedSource> = Arc::new(ShardSet::open(&folder, mode)?);
            Ok(shards.into())
        }
        Kind::Pixels(kind) => {
            let adapt = Adapt { pad_to: data.pad_to, channels: data.channels };
            let source =
                data_sharding::open(kind, &data.path, split, adapt).map_err(|problem| match problem {
                    DataError::Adapt { problem: ref option, .. } => {
                        let key = if option.starts_with("pad_to") { "data.pad_to" } else { "data.channels" };
                        Error::from(loaded.error(key, problem.to_string()))
                    }
                    problem => problem.into(),
                })?;
            Ok(source.into())
        }
    }
}

fn half(root: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| root.join(name)).find(|folder| folder.is_dir())
}

fn resolve_normalization(
    loaded: &LoadedConfig,
    kind: Kind,
    channels: usize,
    data: &mut DataConfig,
) -> Result<(), ConfigError> {
    let normalize = data.normalize.get_or_insert_with(|| {
        let (mean, std) = match kind {
            Kind::Pixels(kind) => (kind.facts().mean, kind.facts().std),
            Kind::Shards => (&IMAGENET_MEAN[..], &IMAGENET_STD[..]),
        };
        NormalizeConfig::Channels(ChannelConstants {
            mean: spread(mean, channels),
            std: spread(std, channels),
        })
    });
    let NormalizeConfig::Channels(ChannelConstants { mean, std }) = normalize else { return Ok(()) };
    if mean.len() != channels || std.len() != channels {
        let problem = format!("expected {channels} means and {channels} standard deviations");
        return Err(loaded.error("data.normalize", problem));
    }
    Ok(())
}

/// One constant for all channels where the data set has one and the images were given more.
fn spread(values: &[f64], channels: usize) -> Vec<f64> {
    if values.len() == 1 { vec![values[0]; channels] } else { values.to_vec() }
}

/// What is seen of training and test images.
struct Crops {
    train: Crop,
    test: Crop,
    size: ImageSize,
}

/// Fills in `crop`, `crop_padding` or `image_size`, `test_resize` and `test_size`.
fn resolve_crop(
    loaded: &LoadedConfig,
    stored: Option<ImageShape>,
    data: &mut DataConfig,
) -> Result<Crops, ConfigError> {
    let usual = if stored.is_some() { CropKind::Padded } else { CropKind::RandomResized };
    let kind = *data.crop.get_or_insert(usual);
    if kind == CropKind::Padded {
        return resolve_padded(loaded, stored, data);
    }
    if data.crop_padding.is_some() {
        return Err(loaded.error("data.crop_padding", "only data.crop: padded has a padding"));
    }
    let native = stored.map_or(USUAL_SIZE, |stored| stored.height);
    let size = match *data.image_size.get_or_insert(ImageSizeConfig::Constant(native)) {
        ImageSizeConfig::Constant(side) => ImageSize::constant(side),
        ImageSizeConfig::Growing(growing) => ImageSize {
            from: growing.from,
            to: growing.to,
            until: u64::from(growing.until_epoch.saturating_sub(1)),
            step: growing.step,
        },
    };
    if let Some(ImageSizeConfig::Growing(growing)) = data.image_size
        && growing.from > growing.to
    {
        let problem = format!("{} is more than `to`, {}; expected sizes that grow", growing.from, growing.to);
        return Err(loaded.error("data.image_size.from", problem));
    }
    let test_size = *data.test_size.get_or_insert(size.to);
    let margin = match stored {
        Some(_) => test_size,
        None => usual_resize(test_size),
    };
    let shorter = *data.test_resize.get_or_insert(margin);
    if shorter < test_size {
        let problem =
            format!("{shorter} is less than data.test_size; expected {test_size} to {LARGEST_SIDE}");
        return Err(loaded.error("data.test_resize", problem));
    }
    let filter = match data.filter {
        FilterKind::Bilinear => Filter::Bilinear,
        FilterKind::Bicubic => Filter::Bicubic,
    };
    let random = |variant| Crop::RandomResized {
        crop: RandomResizedCrop { area: data.crop_area.into(), aspect: data.crop_aspect.into(), variant },
        size,
        filter,
    };
    let train = match kind {
        CropKind::Center if size.from != size.to => {
            return Err(loaded.error("data.image_size", "data.crop: center needs one size for all epochs"));
        }
        CropKind::Center => Crop::Center { shorter: shorter.max(size.to), size: size.to, filter },
        CropKind::RandomSized => random(CropVariant::FbResnet),
        CropKind::RandomResized | CropKind::Padded => random(CropVariant::Torchvision),
    };
    if whitens(data) {
        return Err(
            loaded.error("data.normalize", "zca needs images of one size: expected data.crop: padded")
        );
    }
    Ok(Crops { train, test: Crop::Center { shorter, size: test_size, filter }, size })
}

/// The side to which test images are scaled of which a square of `size` is taken.
fn usual_resize(size: u32) -> u32 {
    let side = (f64::from(size) * f64::from(USUAL_RESIZE) / f64::from(USUAL_SIZE)).round() as u32;
    side.min(LARGEST_SIDE)
}

fn resolve_padded(
    loaded: &LoadedConfig,
    stored: Option<ImageShape>,
    data: &mut DataConfig,
) -> Result<Crops, ConfigError> {
    let Some(stored) = stored else {
        let problem = "padded is for images of one size; expected random-resized, random-sized or center";
        return Err(loaded.error("data.crop", problem));
    };
    let scaling = [
        ("data.image_size", data.image_size.is_some()),
        ("data.test_size", data.test_size.is_some()),
        ("data.test_resize", data.test_resize.is_some()),
    ];
    if let Some((key, _)) = scaling.into_iter().find(|(_, set)| *set) {
        let problem =
            "images are not scaled with data.crop: padded; expected random-resized, random-sized or center";
        return Err(loaded.error(key, problem));
    }
    let padding = *data.crop_padding.get_or_insert(USUAL_PADDING);
    if padding >= stored.height {
        let problem = format!("{padding} is not less than the image's {} pixels", stored.height);
        return Err(loaded.error("data.crop_padding", problem));
    }
    let mode = match data.crop_padding_mode {
        CropPadding::Reflect => PaddingMode::Reflect,
        CropPadding::Zero => PaddingMode::Zero,
    };
    let recolored = [
        ("data.color_jitter", data.color_jitter.is_some()),
        ("data.auto_augment", data.auto_augment.is_some()),
        ("data.lighting", data.lighting > 0.0),
    ];
    if let Some((key, _)) = recolored.into_iter().find(|(_, on)| *on).filter(|_| whitens(data)) {
        return Err(loaded
            .error(key, "data.normalize: zca whitens before anything else; expected no colour operation"));
    }
    Ok(Crops {
        train: Crop::Padded { padding, mode },
        test: Crop::Padded { padding: 0, mode: PaddingMode::Zero },
        size: ImageSize::constant(stored.height),
    })
}

/// The paper's.
const USUAL_PADDING: u32 = 4;

/// Checks what needs no data set to be open.
pub(crate) fn check(loaded: &LoadedConfig, kind: Kind) -> Result<(), ConfigError> {
    let data = &loaded.config.data;
    if kind == Kind::Shards {
        for (key, set) in [("data.pad_to", data.pad_to.is_some()), ("data.channels", data.channels.is_some())]
        {
            if set {
                return Err(loaded.error(key, "not for shards, whose images are scaled and have 3 channels"));
            }
        }
    }
    let ranges = [
        ("data.crop_area", data.crop_area),
        ("data.crop_aspect", data.crop_aspect),
        ("data.erase_area", data.erase_area),
        ("data.erase_aspect", data.erase_aspect),
    ];
    for (key, [low, high]) in ranges {
        if low > high {
            return Err(
                loaded.error(key, format!("[{low}, {high}] is no range; expected two ascending numbers"))
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_images_have_the_usual_margin_where_there_is_room_for_one() {
        for (size, resize) in [(224, 256), (320, 366), (1, 1), (7168, 8192), (7169, 8192), (8192, 8192)] {
            assert_eq!(usual_resize(size), resize, "{size}");
        }
    }
}
