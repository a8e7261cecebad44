//! A configuration turned into everything that is known before the first step, checked once.
//!
//! Opens the data set; neither touches MPI nor runs the network.

use std::sync::Arc;

use data_sharding::{
    Adapt, BatchLayout, DataError, Order, PaddingMode, Sampler, Source, SourceKind, Split, Transform,
};
use model::{Architecture, Network, Options};

use crate::config::{
    AutoOr, Compression, Config, ConfigError, CropPadding, Determinism, LoadedConfig, Reduce, SampleOrder,
};
use crate::error::Error;
use crate::schedule::Schedule;

/// No run is longer; a larger number is a slip of the pen.
pub(crate) const MOST_EPOCHS: u32 = 1_000_000;

/// A run, ready to start.
pub(crate) struct Plan {
    /// The configuration with every derived value written in.
    pub(crate) config: Config,
    pub(crate) architecture: Architecture,
    pub(crate) network: Network,
    pub(crate) train: Arc<dyn Source>,
    pub(crate) test: Arc<dyn Source>,
    pub(crate) batches: BatchLayout,
    pub(crate) sampler: Sampler,
    pub(crate) transform: Transform,
    pub(crate) schedule: Schedule,
    pub(crate) steps_per_epoch: u64,
}

impl Plan {
    /// Checks the configuration, opens the data set and derives the rest.
    ///
    /// # Errors
    /// The first key whose value is impossible, or what is wrong with the data.
    pub(crate) fn open(loaded: &LoadedConfig, rank: usize, world_size: usize) -> Result<Self, Error> {
        let parts = checked_parts(loaded, rank, world_size)?;
        let data = &loaded.config.data;
        let adapt = Adapt { pad_to: data.pad_to, channels: data.channels };
        let open = |split| {
            data_sharding::open(parts.kind, &data.path, split, adapt.clone()).map_err(|problem| match problem
            {
                DataError::Adapt { problem: ref option, .. } => {
                    let key = if option.starts_with("pad_to") { "data.pad_to" } else { "data.channels" };
                    Error::from(loaded.error(key, problem.to_string()))
                }
                problem => problem.into(),
            })
        };
        let train = open(Split::Train)?;
        let test = open(Split::Test)?;

        let mut config = loaded.config.clone();
        let classes = train.classes().len() as u32;
        let configured = *config.model.classes.get_or_insert(classes);
        if configured < classes {
            return Err(loaded
                .error("model.classes", format!("{configured}, but {} has {classes} classes", data.kind))
                .into());
        }
        let image = train.image();
        if image.height != image.width {
            return Err(loaded
                .error(
                    "data.pad_to",
                    format!("images are {}x{}; networks here take square ones", image.height, image.width),
                )
                .into());
        }
        config.train.micro_batch = Some(parts.batches.micro_batch());
        let facts = parts.kind.facts();
        let channels = image.channels as usize;
        let normalize = config.data.normalize.get_or_insert_with(|| crate::config::NormalizeConfig {
            mean: spread(facts.mean, channels),
            std: spread(facts.std, channels),
        });
        if normalize.mean.len() != channels || normalize.std.len() != channels {
            return Err(loaded
                .error(
                    "data.normalize",
                    format!("expected {channels} means and {channels} standard deviations"),
                )
                .into());
        }
        if normalize.mean.iter().any(|mean| !(0.0..=255.0).contains(mean)) {
            return Err(loaded.error("data.normalize.mean", "expected numbers from 0 to 255").into());
        }
        if normalize.std.iter().any(|std| !(1e-3..=1e6).contains(std)) {
            return Err(loaded.error("data.normalize.std", "expected numbers from 0.001 to 1000000").into());
        }
        if config.data.crop_padding >= image.height {
            return Err(loaded
                .error(
                    "data.crop_padding",
                    format!(
                        "{} is not less than the image's {} pixels",
                        config.data.crop_padding, image.height
                    ),
                )
                .into());
        }

        let steps_per_epoch = parts.batches.steps_per_epoch(train.len()) as u64;
        if steps_per_epoch == 0 {
            return Err(loaded
                .error(
                    "train.global_batch",
                    format!(
                        "{} is more than the {} training samples",
                        config.train.global_batch,
                        train.len()
                    ),
                )
                .into());
        }
        let options = Options {
            classes: configured,
            image_size: image.height,
            in_channels: image.channels,
            ..parts.options
        };
        let network =
            Network::new(&parts.architecture, &options).map_err(|e| loaded.error("model", e.to_string()))?;
        let order = match config.data.order {
            SampleOrder::Shuffled => Order::Shuffled,
            SampleOrder::Sequential => Order::Sequential,
        };
        let padding_mode = match config.data.crop_padding_mode {
            CropPadding::Reflect => PaddingMode::Reflect,
            CropPadding::Zero => PaddingMode::Zero,
        };
        Ok(Plan {
            schedule: Schedule::new(loaded, steps_per_epoch)?,
            sampler: Sampler::new(train.len(), config.seed, order),
            transform: Transform {
                seed: config.seed,
                flip: config.data.flip,
                crop_padding: config.data.crop_padding,
                padding_mode,
            },
            architecture: parts.architecture,
            batches: parts.batches,
            config,
            network,
            train,
            test,
            steps_per_epoch,
        })
    }

    pub(crate) fn total_steps(&self) -> u64 {
        self.steps_per_epoch * u64::from(self.config.train.epochs)
    }

    pub(crate) fn micro_batch(&self) -> usize {
        self.batches.micro_batch()
    }
}

struct Parts {
    architecture: Architecture,
    options: Options,
    kind: SourceKind,
    batches: BatchLayout,
}

fn checked_parts(loaded: &LoadedConfig, rank: usize, world_size: usize) -> Result<Parts, ConfigError> {
    let config = &loaded.config;
    let error = |key: &str, message: String| loaded.error(key, message);
    let share = |key: &str, value: f64| {
        (0.0..1.0)
            .contains(&value)
            .then_some(())
            .ok_or_else(|| error(key, format!("{value} is outside 0 to 1 (1 excluded)")))
    };
    let architecture: Architecture =
        config.model.arch.parse().map_err(|e: model::ModelError| error("model.arch", e.to_string()))?;
    let kind: SourceKind =
        config.data.kind.parse().map_err(|e: data_sharding::DataError| error("data.kind", e.to_string()))?;
    share("model.dropout", config.model.dropout)?;
    share("model.shortcut_dropout", config.model.shortcut_dropout)?;
    share("model.stochastic_depth", config.model.stochastic_depth)?;
    share("optimizer.momentum", config.optimizer.momentum)?;
    share("optimizer.dampening", config.optimizer.dampening)?;
    if !(config.model.norm_momentum > 0.0 && config.model.norm_momentum <= 1.0) {
        return Err(error(
            "model.norm_momentum",
            format!("{} is outside 0 to 1 (0 excluded)", config.model.norm_momentum),
        ));
    }
    let decay = config.optimizer.weight_decay;
    if !(decay.is_finite() && decay >= 0.0) {
        return Err(error("optimizer.weight_decay", format!("{decay} is out of range; expected 0 or more")));
    }
    if config.optimizer.nesterov && config.optimizer.momentum == 0.0 {
        return Err(error("optimizer.momentum", "optimizer.nesterov: true needs a momentum above 0".into()));
    }
    if config.optimizer.nesterov && config.optimizer.dampening != 0.0 {
        return Err(error("optimizer.dampening", "optimizer.nesterov: true needs a dampening of 0".into()));
    }
    let workers = match config.data.workers {
        AutoOr::Auto => 1,
        AutoOr::Exactly(workers) => workers.get(),
    };
    let bounds = [
        ("train.epochs", config.train.epochs as usize, MOST_EPOCHS as usize),
        ("train.global_batch", config.train.global_batch, 1 << 24),
        ("train.micro_batch", config.train.micro_batch.unwrap_or(1), 1 << 20),
        ("train.evaluate_every_epochs", config.train.evaluate_every_epochs as usize, usize::MAX),
        ("data.workers", workers, 1024),
        ("data.prefetch", config.data.prefetch, 1024),
        ("comm.first_bucket_kib", config.comm.first_bucket_kib, 1 << 30),
        ("comm.bucket_kib", config.comm.bucket_kib, 1 << 30),
        ("comm.timeout_s", config.comm.timeout_s as usize, 7 * 24 * 3600),
        ("checkpoint.every_epochs", config.checkpoint.every_epochs as usize, usize::MAX),
        ("checkpoint.keep_last", config.checkpoint.keep_last, usize::MAX),
        ("model.classes", config.model.classes.unwrap_or(1) as usize, 1 << 20),
    ];
    for (key, value, largest) in bounds {
        if value == 0 || value > largest {
            let expected = if largest == usize::MAX { "1 or more".into() } else { format!("1 to {largest}") };
            return Err(error(key, format!("{value} is out of range; expected {expected}")));
        }
    }
    let global_batch = config.train.global_batch;
    let micro_batch = config.train.micro_batch.unwrap_or((global_batch / world_size).max(1));
    let batches = BatchLayout::new(global_batch, micro_batch, rank, world_size)
        .map_err(|e| error("train.global_batch", e.to_string()))?;
    if config.comm.compression != Compression::None {
        if config.comm.reduce == Reduce::Mpi {
            return Err(error(
                "comm.compression",
                "only the ordered reduction sums compressed gradients; set comm.reduce to ordered, or this to none"
                    .into(),
            ));
        }
        if config.train.determinism == Determinism::World {
            return Err(error(
                "comm.compression",
                "rounds each rank's sum, so the number of ranks changes the result; expected none with train.determinism: world"
                    .into(),
            ));
        }
    }
    if config.train.determinism == Determinism::World {
        if config.comm.reduce == Reduce::Mpi {
            return Err(error(
                "comm.reduce",
                "train.determinism: world needs the order of sums fixed; expected ordered".into(),
            ));
        }
        if config.train.threads == AutoOr::Auto {
            return Err(error(
                "train.threads",
                "train.determinism: world needs a number, since libtorch's sums depend on its threads".into(),
            ));
        }
        let local = batches.local_micro_batches().len();
        if !local.is_power_of_two() {
            return Err(error(
                "train.determinism",
                format!(
                    "world needs a power of two of micro batches a rank, not {local}; change micro_batch or the number of ranks"
                ),
            ));
        }
    }
    Schedule::check(loaded)?;
    crate::train::initial::check(loaded)?;
    let options = Options {
        conv_init: config.model.conv_init,
        gamma_init: config.model.gamma_init,
        shortcut_input: config.model.shortcut_input,
        projection: config.model.projection,
        zero_init_residual: config.model.zero_init_residual,
        dropout: config.model.dropout,
        shortcut_dropout: config.model.shortcut_dropout,
        stochastic_depth: config.model.stochastic_depth,
        ..Options::default()
    };
    Ok(Parts { architecture, options, kind, batches })
}

/// One constant for all channels where the data set has one and the images were given more.
fn spread(values: &[f64], channels: usize) -> Vec<f64> {
    if values.len() == 1 { vec![values[0]; channels] } else { values.to_vec() }
}
