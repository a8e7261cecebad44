//! `train.micro_batch: auto`: the largest micro batch whose memory stays within `train.memory_limit_gib`, from the same
//! estimate that `plan` prints, so that every rank comes to the same answer; without a limit, on a GPU, the largest one
//! with which a step runs ([`trial`]). A run that goes on from a checkpoint keeps its answer, since the micro batch
//! is part of what a run means.

pub(crate) mod trial;

use std::num::NonZeroUsize;

use crate::config::{AutoOr, Compression, Config, ConfigError, Determinism, LoadedConfig};
use crate::device;
use crate::error::Error;
use crate::flat::FlatLayout;
use crate::optimizer::rule::Rule;
use crate::plan::Plan;
use crate::session::Session;

/// What operations need while they run, as a share of the activations (measured on WRN-28-10 and WRN-40-4: 0.27 to 0.5).
const WORKSPACE: f64 = 0.5;
const GIB: f64 = (1_u64 << 30) as f64;

/// Refuses `auto` without the limit that it needs.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let train = &loaded.config.train;
    let limit = train.memory_limit_gib;
    if train.micro_batch == Some(AutoOr::Auto) && limit.is_none() {
        let message = "auto needs train.memory_limit_gib, but for training on GPUs, where it is found out";
        return Err(loaded.error("train.micro_batch", message));
    }
    Ok(())
}

/// Collective: where `auto` was resolved by the run that this one goes on with, whose micro batch rank 0 knows as
/// `before`, the same number again.
pub(crate) fn keep(
    session: &Session,
    loaded: &mut LoadedConfig,
    before: impl FnOnce() -> Option<NonZeroUsize>,
) -> Result<(), Error> {
    let kept = if session.is_leader() { before() } else { None };
    let kept = session.leaders(kept.map_or(Vec::new(), |kept| kept.to_string().into_bytes()))?;
    if loaded.config.train.micro_batch == Some(AutoOr::Auto)
        && let Ok(kept) = String::from_utf8_lossy(&kept).parse()
    {
        loaded.config.train.micro_batch = Some(AutoOr::Exactly(kept));
    }
    Ok(())
}

/// Numbers that the optimizer of one of `ranks` ranks remembers, a weight.
pub(crate) fn remembered(config: &Config, ranks: usize) -> f64 {
    let sharers = if config.optimizer.shard { ranks } else { 1 };
    Rule::new(&config.optimizer).memory().len() as f64 / sharers as f64
}

/// Bytes of a rank of `plan` with micro batches of so many images.
pub(crate) fn bytes(plan: &Plan, micro_batch: usize) -> f64 {
    let (config, ranks) = (&plan.config, plan.batches.world_size());
    let layout = FlatLayout::new(&plan.network, ranks);
    let local = config.train.global_batch / ranks / micro_batch;
    let partial_sums = match config.train.determinism {
        Determinism::World => local.max(1).ilog2() as usize,
        Determinism::Run | Determinism::Off => 0,
    };
    let averaged = usize::from(config.train.averaging.is_some());
    let left_out = usize::from(config.comm.compression == Compression::PowerSgd);
    // Rank 0 writes a copy of all that a checkpoint holds, which is in host memory.
    let saved = match device::expects_gpu(config) {
        true => 0.0,
        false => (1 + averaged) as f64 + remembered(config, 1),
    };
    let remembered = (remembered(config, ranks) + saved) * layout.parameters_len as f64;
    let copies_of_weights = (1 + averaged + left_out) * layout.parameters_len;
    let fixed = 4.0 * (remembered + (copies_of_weights + (1 + partial_sums) * layout.exchange_len()) as f64);
    let image = plan.data.image;
    let input = 4 * u64::from(image.height) * u64::from(image.width) * u64::from(image.channels);
    let activations = plan.network.activation_bytes(config.train.memory, config.precision.dtype.kind());
    fixed + micro_batch as f64 * (input as f64 + (1.0 + WORKSPACE) * activations as f64)
}

/// The micro batches that `plan` allows, the largest first.
fn candidates(plan: &Plan) -> Vec<NonZeroUsize> {
    let share = plan.config.train.global_batch / plan.batches.world_size();
    let allowed = |micro_batch: &usize| {
        share.is_multiple_of(*micro_batch)
            && (plan.config.train.determinism != Determinism::World
                || (share / micro_batch).is_power_of_two())
    };
    (1..=share).rev().filter(allowed).filter_map(NonZeroUsize::new).collect()
}

/// The largest micro batch of `plan` that fits.
pub(crate) fn choose(loaded: &LoadedConfig, plan: &Plan) -> Result<NonZeroUsize, ConfigError> {
    let limit = loaded.config.train.memory_limit_gib.unwrap_or(f64::INFINITY);
    let fits = |micro_batch: &NonZeroUsize| bytes(plan, micro_batch.get()) <= limit * GIB;
    candidates(plan).into_iter().find(fits).ok_or_else(|| {
        let least = bytes(plan, 1) / GIB;
        let message =
            format!("{limit} is too little: even micro batches of one image need {least:.2} GiB a rank");
        loaded.error("train.memory_limit_gib", message)
    })
}
