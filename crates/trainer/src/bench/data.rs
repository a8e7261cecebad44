//! `wrn-dist bench data`: how many images a second the decoder pool delivers as normalised fp32 batches on the host,
//! and where its threads spend their time. No network runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_sharding::{
    Augmentation, Crop, DataSet, DecodeBreakdown, EncodedSource, Filter, ImageFiles, ImageShape, ImageSize,
    Order, PoolOptions, RandomResizedCrop, ReadMode, SampleKey, Sampler, ShardSet, StageTimes,
    decode_breakdown,
};
use serde::Serialize;
use tch::Device;

use super::median;
use crate::config::{self, ChannelConstants, NormalizeConfig};
use crate::data::{IMAGENET_MEAN, IMAGENET_STD};
use crate::error::Error;
use crate::feed::Feed;
use crate::input::Input;
use crate::plan::Plan;

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
    /// `decode` of these in its own parts; absent where the images are no files.
    pub decode_milliseconds: Option<DecodeTimes>,
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
    /// From bytes to pixels.
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

    /// Each with what it is called and what it is to do it.
    fn parts(&self) -> [(&'static str, &'static str, f64); 4] {
        [
            ("read", "reading", self.read),
            ("decode", "decoding", self.decode),
            ("resize and mirror", "scaling", self.resize),
            ("augment", "augmenting", self.augment),
        ]
    }
}

/// Milliseconds an image of the parts of decoding. Their shares are measured on some of the images by one thread
/// alone, see [`decode_breakdown`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DecodeTimes {
    /// Headers and tables, and the way to the region by the seek record.
    pub open: f64,
    /// Entropy decoding of the region; without a seek record also of what lies before it.
    pub entropy: f64,
    /// Inverse transform, upsampling and colours.
    pub reconstruct: f64,
    /// Images whose decoding is not divided: PNGs, progressive JPEGs and the like.
    pub undivided: f64,
}

impl DecodeTimes {
    /// Divides `milliseconds` as the sample's time is.
    fn new(of_sample: &DecodeBreakdown, milliseconds: f64) -> Self {
        let whole = of_sample.sum().as_secs_f64().max(f64::MIN_POSITIVE);
        let share = |part: Duration| milliseconds * part.as_secs_f64() / whole;
        DecodeTimes {
            open: share(of_sample.open),
            entropy: share(of_sample.entropy),
            reconstruct: share(of_sample.reconstruct),
            undivided: share(of_sample.undivided),
        }
    }

    fn parts(&self) -> [(&'static str, f64); 4] {
        [
            ("headers and seek record", self.open),
            ("entropy decoding", self.entropy),
            ("inverse transform, colours", self.reconstruct),
            ("other formats", self.undivided),
        ]
    }
}

struct Subject {
    data: DataSet,
    augmentation: Augmentation,
    normalize: NormalizeConfig,
    sampler: Sampler,
    /// The largest images after scaling.
    image: ImageShape,
}

/// Images whose decoding is divided into its parts.
const DIVIDED: usize = 100;
/// Batch buffers of the pool, and their memory beyond which a size must be a slip of the pen.
const BUFFERS: usize = 3;
const MOST_BUFFER_BYTES: usize = 8 << 30;

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
    let bytes = options.batch.saturating_mul(subject.image.bytes()).saturating_mul(BUFFERS);
    if bytes > MOST_BUFFER_BYTES {
        return Err(Error::Usage(format!(
            "{BUFFERS} batches of {} images of {} bytes are more than {} GiB; expected a smaller batch or smaller images",
            options.batch,
            subject.image.bytes(),
            MOST_BUFFER_BYTES >> 30
        )));
    }
    let divided: Vec<SampleKey> = subject.sampler.epoch(0).keys(0..subject.sampler.len().min(DIVIDED));
    let of_sample = decode_breakdown(&subject.data, &subject.augmentation, &divided)?;
    let input = Input::new(Some(&subject.normalize), None, subject.augmentation.clone(), Device::Cpu)?;
    let source = subject.data.name().to_owned();
    let (sampler, batch) = (subject.sampler, options.batch);
    let total = (options.rounds + 1) * options.batches;
    let keys = (0..).flat_map(move |epoch| sampler.epoch(epoch).keys(0..sampler.len()));
    let mut keys = keys.peekable();
    let requests = (0..total).map(move |_| {
        // Whole batches across the ends of epochs, all of the epoch in which they begin: one size a batch.
        let epoch = keys.peek().map_or(0, |key| key.epoch);
        keys.by_ref().take(batch).map(|key| SampleKey { epoch, ..key }).collect()
    });
    let pool_options = PoolOptions {
        workers: options.threads,
        batch_size: batch,
        prefetch: BUFFERS,
        on_bad_sample: data_sharding::OnBadSample::Error,
    };
    let mut feed =
        Feed::start(Device::Cpu, subject.data, subject.augmentation, Box::new(requests), pool_options)?;
    let mut shape = [0; 4];
    let mut rates = Vec::new();
    let mut before = (StageTimes::default(), Duration::ZERO);
    let (mut normalizing, mut waiting, mut measured) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for round in 0..=options.rounds {
        let begin = Instant::now();
        for _ in 0..options.batches {
            let clock = Instant::now();
            let mut images = feed.next()?;
            let waited = clock.elapsed();
            let clock = Instant::now();
            let _delivered = input.load(&mut images, None)?;
            shape = images.batch().shape();
            if round > 0 {
                waiting += waited;
                normalizing += clock.elapsed();
            }
        }
        if round == 0 {
            before = (feed.stage_times(), processor_time());
        } else {
            measured += begin.elapsed();
            rates.push((options.batches * batch) as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let stages = feed.stage_times();
    let decoded = (stages.samples - before.0.samples).max(1) as f64;
    let part = |of: fn(&StageTimes) -> Duration| 1e3 * (of(&stages) - of(&before.0)).as_secs_f64() / decoded;
    let decoder = DecoderTimes {
        read: part(|stages| stages.read),
        decode: part(|stages| stages.decode),
        resize: part(|stages| stages.resize),
        augment: part(|stages| stages.augment),
    };
    let delivered = (options.rounds * options.batches * batch).max(1) as f64;
    // The sums hold up to a sample a thread that was begun before the measurement.
    let busy = (decoder.sum() / 1e3 * decoded / (options.threads as f64 * measured.as_secs_f64())).min(1.0);
    let decode_parts = of_sample.map(|of_sample| DecodeTimes::new(&of_sample, decoder.decode));
    let waited = waiting.as_secs_f64() / measured.as_secs_f64();
    Ok(DataBench {
        source,
        threads: options.threads,
        batch,
        shape,
        images_per_second: median(rates.iter().copied()),
        rounds: rates,
        decoder_milliseconds: decoder,
        decode_milliseconds: decode_parts,
        normalize_milliseconds: 1e3 * normalizing.as_secs_f64() / delivered,
        processor_milliseconds: 1e3 * (processor_time() - before.1).as_secs_f64() / delivered,
        limit: limit(&decoder, decode_parts.as_ref(), busy, waited),
    })
}

fn limit(decoder: &DecoderTimes, decode: Option<&DecodeTimes>, busy: f64, waited: f64) -> String {
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
    let largest = decoder.parts().into_iter().max_by(|a, b| a.2.total_cmp(&b.2));
    let (_, name, most) = largest.unwrap_or(("decode", "decoding", 0.0));
    let within = decode.filter(|_| name == "decoding").and_then(|decode| {
        let (part, most) = decode.parts().into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(format!(" ({part}: {:.0} %)", 100.0 * most / decoder.sum().max(f64::MIN_POSITIVE)))
    });
    format!(
        "the decoder threads, which are {:.0} % busy and spend {:.0} % of that {name}{}; the consumer waits {:.0} % of \
         the time",
        100.0 * busy,
        100.0 * most / decoder.sum().max(f64::MIN_POSITIVE),
        within.unwrap_or_default(),
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
        image: plan.data.image,
    })
}

/// `path` may also be the folder of a prepared data set, of which the training half is taken.
fn of_folder(path: &Path, image_size: u32) -> Result<Subject, Error> {
    let places = [path.to_owned(), path.join("train")];
    let data: Arc<dyn EncodedSource> = match places.iter().find(|place| holds_shards(place)) {
        Some(shards) => Arc::new(ShardSet::open(shards, ReadMode::Read)?),
        None => Arc::new(ImageFiles::open(path)?),
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
        image: ImageShape { height: image_size, width: image_size, channels: 3 },
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
        let mut row = |name: &str, milliseconds: f64| {
            text += &format!("{name:<32}{milliseconds:>10.3} ms an image\n");
        };
        for (name, _, milliseconds) in self.decoder_milliseconds.parts() {
            row(name, milliseconds);
            if let Some(decode) = self.decode_milliseconds.filter(|_| name == "decode") {
                let parts = decode.parts().into_iter().filter(|(_, milliseconds)| *milliseconds > 0.0);
                parts.for_each(|(name, milliseconds)| row(&format!("  {name}"), milliseconds));
            }
        }
        row("sum of a decoder thread", self.decoder_milliseconds.sum());
        row("normalise (consumer)", self.normalize_milliseconds);
        row("processor time, all", self.processor_milliseconds);
        text += &format!("{:<32}{:>10.1}\nlimit: {}\n", "images/s", self.images_per_second, self.limit);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_decoding_sum_up_to_it_and_the_largest_is_named() {
        let of_sample = DecodeBreakdown {
            open: Duration::from_micros(10),
            entropy: Duration::from_micros(60),
            reconstruct: Duration::from_micros(30),
            undivided: Duration::ZERO,
        };
        let decoder = DecoderTimes { read: 0.1, decode: 0.5, resize: 0.3, augment: 0.1 };
        let decode = DecodeTimes::new(&of_sample, decoder.decode);
        let sum: f64 = decode.parts().iter().map(|(_, milliseconds)| milliseconds).sum();
        assert!((sum - 0.5).abs() < 1e-9 && (decode.entropy - 0.3).abs() < 1e-9, "{decode:?}");
        let limit = limit(&decoder, Some(&decode), 0.98, 0.6);
        assert!(
            limit.contains("98 % busy and spend 50 % of that decoding (entropy decoding: 30 %)"),
            "{limit}"
        );
    }
}
