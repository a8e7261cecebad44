//! `wrn-dist bench data`: how many images a second the decoder pool delivers as normalised fp32 batches on the host,
//! and where its threads spend their time. No network runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_sharding::{
    Augmentation, Crop, DataSet, EncodedSource, Filter, ImageFiles, ImageSize, Order, Pool, PoolOptions,
    RandomResizedCrop, ReadMode, Sampler, ShardSet, StageTimes,
};
use serde::Serialize;
use tch::Device;

use super::median;
use crate::config::{self, ChannelConstants, NormalizeConfig};
use crate::data::{IMAGENET_MEAN, IMAGENET_STD};
use crate::error::Error;
use crate::input::Input;
use crate::plan::Plan;
use crate::train::next_batch;

/// What is measured.
#[derive(Clone, Debug)]
pub enum DataBenchSource {
    /// The training half of a configuration, with its augmentation; whitening is left out.
    Config {
        /// The file.
        path: PathBuf,
        /// `--set` arguments.
        overrides: Vec<String>,
    },
    /// A folder of shards or of image files: random resized crops and flips, ImageNet's constants.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Side of the crops after scaling.
        image_size: u32,
    },
}

/// What `wrn-dist bench data` was asked to do.
#[derive(Clone, Debug)]
pub struct DataBenchOptions {
    /// What is measured.
    pub source: DataBenchSource,
    /// Decoder threads.
    pub threads: usize,
    /// Images a batch.
    pub batch: usize,
    /// Batches of one round.
    pub batches: usize,
    /// Measured rounds; one more is run before them.
    pub rounds: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct DataBench {
    /// What was measured.
    pub source: String,
    /// Decoder threads.
    pub threads: usize,
    /// Images a batch.
    pub batch: usize,
    /// Shape of a batch, `[N, H, W, C]`.
    pub shape: [usize; 4],
    /// Median over the rounds.
    pub images_per_second: f64,
    /// Of each round.
    pub rounds: Vec<f64>,
    /// Milliseconds an image that a decoder thread spends, by part.
    pub decoder_milliseconds: DecoderTimes,
    /// Milliseconds an image of normalisation, on the consumer's thread.
    pub normalize_milliseconds: f64,
    /// Processor time of the whole process an image, milliseconds; unlike the rate it hardly depends on what else the
    /// machine does.
    pub processor_milliseconds: f64,
    /// What holds the rate down.
    pub limit: String,
}

/// Milliseconds an image.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DecoderTimes {
    /// Getting the bytes of the file.
    pub read: f64,
    /// From bytes to pixels: cut by the seek index, entropy decoding, inverse transform, colours.
    pub decode: f64,
    /// Scaling and mirroring.
    pub resize: f64,
    /// Padded crop, colour operations.
    pub augment: f64,
}

impl DecoderTimes {
    fn sum(&self) -> f64 {
        self.read + self.decode + self.resize + self.augment
    }
}

struct Subject {
    data: DataSet,
    augmentation: Augmentation,
    normalize: NormalizeConfig,
    sampler: Sampler,
}

/// Measures, in this process alone.
///
/// # Errors
/// What is wrong with the configuration or the data.
pub fn bench_data(options: &DataBenchOptions) -> Result<DataBench, Error> {
    // As training does; otherwise the system clears the memory of every batch anew.
    let _ = torch_ext::runtime::keep_freed_memory();
    let subject = match &options.source {
        DataBenchSource::Config { path, overrides } => of_config(path, overrides)?,
        DataBenchSource::Folder { path, image_size } => of_folder(path, *image_size)?,
    };
    let input = Input::new(Some(&subject.normalize), None, subject.augmentation.clone(), Device::Cpu)?;
    let source = subject.data.name().to_owned();
    let (sampler, batch) = (subject.sampler, options.batch);
    let total = (options.rounds + 1) * options.batches;
    let keys = (0..).flat_map(move |epoch| sampler.epoch(epoch).keys(0..sampler.len()));
    let mut keys = keys.peekable();
    let requests = (0..total).map(move |_| {
        // Whole batches across the ends of epochs, all of the epoch in which they begin: one size a batch.
        let epoch = keys.peek().map_or(0, |key| key.epoch);
        keys.by_ref().take(batch).map(|key| data_sharding::SampleKey { epoch, ..key }).collect()
    });
    let pool_options = PoolOptions {
        workers: options.threads,
        batch_size: batch,
        prefetch: 3,
        on_bad_sample: data_sharding::OnBadSample::Error,
    };
    let mut pool = Pool::start(subject.data, subject.augmentation, Box::new(requests), pool_options)?;
    let mut shape = [0; 4];
    let mut rates = Vec::new();
    let mut before = (StageTimes::default(), Duration::ZERO);
    let (mut normalizing, mut waiting, mut measured) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for round in 0..=options.rounds {
        let begin = Instant::now();
        for _ in 0..options.batches {
            let clock = Instant::now();
            let images = next_batch(&mut pool)?;
            let waited = clock.elapsed();
            let clock = Instant::now();
            let _delivered = input.load(&images, None)?;
            shape = images.shape();
            if round > 0 {
                waiting += waited;
                normalizing += clock.elapsed();
            }
        }
        if round == 0 {
            before = (pool.stage_times(), processor_time());
        } else {
            measured += begin.elapsed();
            rates.push((options.batches * batch) as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let stages = pool.stage_times();
    let decoded = (stages.samples - before.0.samples).max(1) as f64;
    let part = |of: fn(&StageTimes) -> Duration| 1e3 * (of(&stages) - of(&before.0)).as_secs_f64() / decoded;
    let decoder = DecoderTimes {
        read: part(|stages| stages.read),
        decode: part(|stages| stages.decode),
        resize: part(|stages| stages.resize),
        augment: part(|stages| stages.augment),
    };
    let delivered = (options.rounds * options.batches * batch).max(1) as f64;
    let busy = decoder.sum() / 1e3 * decoded / (options.threads as f64 * measured.as_secs_f64());
    let waited = waiting.as_secs_f64() / measured.as_secs_f64();
    Ok(DataBench {
        source,
        threads: options.threads,
        batch,
        shape,
        images_per_second: median(rates.iter().copied()),
        rounds: rates,
        decoder_milliseconds: decoder,
        normalize_milliseconds: 1e3 * normalizing.as_secs_f64() / delivered,
        processor_milliseconds: 1e3 * (processor_time() - before.1).as_secs_f64() / delivered,
        limit: limit(&decoder, busy, waited),
    })
}

fn limit(decoder: &DecoderTimes, busy: f64, waited: f64) -> String {
    if waited < 0.05 {
        return format!(
            "normalisation on the consumer's thread: decoder threads are {:.0} % busy, batches are always ready",
            100.0 * busy
        );
    }
    if busy < 0.5 {
        return format!(
            "neither side: decoder threads are {:.0} % busy while the consumer waits {:.0} % of the time; other programs \
             have the processors, or batches are too small to be worth handing over",
            100.0 * busy,
            100.0 * waited
        );
    }
    let parts = [
        ("reading", decoder.read),
        ("decoding", decoder.decode),
        ("scaling", decoder.resize),
        ("augmenting", decoder.augment),
    ];
    let (name, most) = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("decoding", 0.0));
    format!(
        "the decoder threads, which are {:.0} % busy and spend {:.0} % of that {name}; the consumer waits {:.0} % of the \
         time",
        100.0 * busy,
        100.0 * most / decoder.sum().max(f64::MIN_POSITIVE),
        100.0 * waited
    )
}

fn of_config(path: &Path, overrides: &[String]) -> Result<Subject, Error> {
    let plan = Plan::open(&config::load(path, overrides)?, 0, 1)?;
    let constants = |value: f64| vec![value; plan.data.image.channels as usize];
    let normalize = match plan.config.data.normalize {
        Some(normalize @ NormalizeConfig::Channels(_)) => normalize,
        _ => NormalizeConfig::Channels(ChannelConstants { mean: constants(127.5), std: constants(63.75) }),
    };
    Ok(Subject {
        data: plan.data.train,
        augmentation: plan.data.train_augmentation,
        normalize,
        sampler: plan.data.sampler,
    })
}

fn of_folder(path: &Path, image_size: u32) -> Result<Subject, Error> {
    let data: Arc<dyn EncodedSource> = if holds_shards(path) {
        Arc::new(ShardSet::open(path, ReadMode::Read)?)
    } else {
        Arc::new(ImageFiles::open(path)?)
    };
    let data = DataSet::from(data);
    let crop = Crop::RandomResized {
        crop: RandomResizedCrop::default(),
        size: ImageSize::constant(image_size),
        filter: Filter::Bilinear,
    };
    Ok(Subject {
        sampler: Sampler::new(data.len(), 0, Order::Shuffled),
        data,
        augmentation: Augmentation { flip: true, ..Augmentation::of_test(crop) },
        normalize: NormalizeConfig::Channels(ChannelConstants {
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
        }),
    })
}

/// Whether any file of the folder is an archive.
fn holds_shards(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "tar"))
    })
}

/// Of all threads of this process, in user mode and for it.
fn processor_time() -> Duration {
    let ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
        // utime and stime, the 14th and 15th field, behind the name in parentheses.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    });
    // Linux reports in hundredths of a second on all its architectures.
    Duration::from_millis(10 * ticks.unwrap_or(0))
}

impl DataBench {
    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let [n, height, width, channels] = self.shape;
        let mut text = format!(
            "{}: batches of {n} x {height} x {width} x {channels}, {} decoder thread(s)\n",
            self.source, self.threads
        );
        let parts = &self.decoder_milliseconds;
        let rows = [
            ("read", parts.read),
            ("decode", parts.decode),
            ("resize and mirror", parts.resize),
            ("augment", parts.augment),
            ("sum of a decoder thread", parts.sum()),
            ("normalise (consumer)", self.normalize_milliseconds),
            ("processor time, all", self.processor_milliseconds),
        ];
        for (name, milliseconds) in rows {
            text += &format!("{name:<26}{milliseconds:>10.3} ms an image\n");
        }
        text += &format!("{:<26}{:>10.1}\nlimit: {}\n", "images/s", self.images_per_second, self.limit);
        text
    }
}
