//! A configuration turned into everything that is known before the first step, checked once.
//!
//! Opens the data set; neither touches MPI nor runs the network.

use std::num::NonZeroUsize;

use data_sharding::{BatchLayout, DataSet};
use model::{Architecture, Network, Options};

use crate::config::{AutoOr, Backend, Config, ConfigError, Determinism, Dtype, LoadedConfig, Reduce, ranges};
use crate::data::{self, DataPlan, Kind};
use crate::error::Error;
use crate::imagenet;
use crate::input::Whitening;
use crate::micro_batch;
use crate::optimizer::rule;
use crate::schedule::Schedule;
use crate::synchronization;
use crate::telemetry::Exporter;

/// A run, ready to start.
pub(crate) struct Plan {
    /// The configuration with every derived value written in.
    pub(crate) config: Config,
    pub(crate) architecture: Architecture,
    pub(crate) network: Network,
    pub(crate) data: DataPlan,
    /// Where images are whitened; prepared by all ranks together.
    pub(crate) whitening: Option<Whitening>,
    pub(crate) batches: BatchLayout,
    pub(crate) schedule: Schedule,
    pub(crate) steps_per_epoch: u64,
}

impl Plan {
    /// Checks the configuration, opens the data set and derives the rest.
    ///
    /// # Errors
    /// The first key whose value is impossible, or what is wrong with the data.
    pub(crate) fn open(loaded: &LoadedConfig, rank: usize, world_size: usize) -> Result<Self, Error> {
        Self::open_with(loaded, rank, world_size, None)
    }

    /// As rank 0. Where the data is not there and must be ImageNet's, from the known number of images; nothing but
    /// sizes can be said of such a plan. The second value is whether that was so.
    pub(crate) fn open_or_estimate(loaded: &LoadedConfig, world_size: usize) -> Result<(Self, bool), Error> {
        let config = &loaded.config;
        let must_be_imagenet = config.model.classes.is_none_or(|classes| classes == imagenet::CLASSES);
        let absent = Kind::parse(loaded)? == Kind::Shards && must_be_imagenet && !config.data.path.exists();
        let sets = absent.then(imagenet::known_sizes);
        Ok((Self::open_with(loaded, 0, world_size, sets.as_ref())?, absent))
    }

    fn open_with(
        loaded: &LoadedConfig,
        rank: usize,
        world_size: usize,
        sets: Option<&[DataSet; 2]>,
    ) -> Result<Self, Error> {
        // Again: some values have come from a checkpoint, or were derived, since the file was read.
        ranges::check(loaded)?;
        micro_batch::check(loaded)?;
        if loaded.config.train.micro_batch != Some(AutoOr::Auto) {
            return Self::open_resolved(loaded, rank, world_size, sets);
        }
        // Network and data do not depend on it.
        let mut resolved = loaded.clone();
        resolved.config.train.micro_batch = None;
        let plan = Self::open_resolved(&resolved, rank, world_size, sets)?;
        resolved.config.train.micro_batch = Some(AutoOr::Exactly(micro_batch::choose(loaded, &plan)?));
        drop(plan);
        Self::open_resolved(&resolved, rank, world_size, sets)
    }

    fn open_resolved(
        loaded: &LoadedConfig,
        rank: usize,
        world_size: usize,
        sets: Option<&[DataSet; 2]>,
    ) -> Result<Self, Error> {
        let parts = checked_parts(loaded, rank, world_size)?;
        let mut config = loaded.config.clone();
        let (kind, seed, data) = (parts.kind, config.seed, &mut config.data);
        let data = match sets {
            Some(sets) => DataPlan::of(loaded, kind, seed, data, sets.clone())?,
            None => DataPlan::open(loaded, kind, seed, data)?,
        };
        let classes = data.train.classes().len() as u32;
        let configured = *config.model.classes.get_or_insert(classes);
        if configured < classes {
            return Err(loaded
                .error(
                    "model.classes",
                    format!("{configured}, but {} has {classes} classes", config.data.kind),
                )
                .into());
        }
        config.train.micro_batch = NonZeroUsize::new(parts.batches.micro_batch()).map(AutoOr::Exactly);
        write_defaults(&mut config);

        let steps_per_epoch = parts.batches.steps_per_epoch(data.sampler.len()) as u64;
        if steps_per_epoch == 0 {
            return Err(loaded
                .error(
                    "train.global_batch",
                    format!(
                        "{} is more than the {} training samples",
                        config.train.global_batch,
                        data.sampler.len()
                    ),
                )
                .into());
        }
        let options = Options {
            classes: configured,
            image_size: data.image.height,
            in_channels: data.image.channels,
            ..parts.options
        };
        let network =
            Network::new(&parts.architecture, &options).map_err(|e| loaded.error("model", e.to_string()))?;
        Ok(Plan {
            schedule: Schedule::new(loaded, steps_per_epoch)?,
            architecture: parts.architecture,
            batches: parts.batches,
            config,
            network,
            data,
            whitening: None,
            steps_per_epoch,
        })
    }

    /// What [`Config::meaning`] says of `keys` where nobody writes them; nothing where one of them has to be written.
    pub(crate) fn default_meaning(&self, keys: &[&str]) -> Vec<(String, String)> {
        let Some(mut config) = self.config.without(keys) else { return Vec::new() };
        write_defaults(&mut config);
        let mut meaning = config.meaning();
        meaning.retain(|(key, _)| keys.contains(&key.as_str()));
        meaning
    }

    /// How many there are, for people, and how many of them an epoch takes where that is another number.
    pub(crate) fn training_images(&self) -> String {
        let (all, an_epoch) = (self.data.train.len(), self.data.sampler.len());
        match all == an_epoch {
            true => format!("{all} training images"),
            false => format!("{all} training images, {an_epoch} an epoch"),
        }
    }

    pub(crate) fn total_steps(&self) -> u64 {
        self.steps_per_epoch * u64::from(self.config.train.epochs)
    }

    pub(crate) fn micro_batch(&self) -> usize {
        self.batches.micro_batch()
    }
}

/// Defaults that follow from other keys, once these are known to make sense together.
fn write_defaults(config: &mut Config) {
    synchronization::write_defaults(&mut config.comm);
    if config.precision.dtype == Dtype::Fp16 {
        let _ = config.precision.loss_scale.get_or_insert_default();
    }
}

struct Parts {
    architecture: Architecture,
    options: Options,
    kind: Kind,
    batches: BatchLayout,
}

fn checked_parts(loaded: &LoadedConfig, rank: usize, world_size: usize) -> Result<Parts, ConfigError> {
    let config = &loaded.config;
    let error = |key: &str, message: String| loaded.error(key, message);
    let architecture: Architecture =
        config.model.arch.parse().map_err(|e: model::ModelError| error("model.arch", e.to_string()))?;
    let kind = Kind::parse(loaded)?;
    data::check(loaded, kind)?;
    rule::check(loaded)?;
    let micro_batch = match config.train.micro_batch {
        Some(AutoOr::Exactly(micro_batch)) => Some(micro_batch.get()),
        Some(AutoOr::Auto) | None => None,
    };
    let global_batch = config.train.global_batch;
    let micro_batch = micro_batch.unwrap_or((global_batch / world_size).max(1));
    let batches = BatchLayout::new(global_batch, micro_batch, rank, world_size)
        .map_err(|e| error("train.global_batch", e.to_string()))?;
    let (backend, reduce) = (config.comm.backend, config.comm.reduce);
    if (reduce, backend) == (Reduce::Mpi, Backend::Nccl) {
        return Err(error("comm.reduce", "comm.backend: nccl knows ordered and nccl, not mpi".into()));
    }
    if reduce == Reduce::Nccl && backend != Backend::Nccl {
        let message = format!("nccl needs comm.backend: nccl, not {}", backend.name());
        return Err(error("comm.reduce", message));
    }
    synchronization::check(loaded, &batches)?;
    let mixing = [("data.mixup", config.data.mixup), ("data.cutmix", config.data.cutmix)];
    if let Some((key, _)) = mixing.into_iter().find(|(_, alpha)| *alpha > 0.0 && micro_batch == 1) {
        return Err(error(
            key,
            "partners lie in the same micro batch; expected train.micro_batch above 1".into(),
        ));
    }
    if config.train.determinism == Determinism::World {
        if matches!(config.comm.reduce, Reduce::Mpi | Reduce::Nccl) {
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
    crate::health::check(loaded)?;
    crate::averaging::check(loaded)?;
    crate::loss_scale::check(loaded)?;
    crate::device::check(loaded)?;
    Exporter::check(loaded)?;
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
