//! `train.micro_batch: auto`: the largest micro batch whose memory stays within `train.memory_limit_gib`, from the same
//! estimate that `plan` prints, on a GPU too. Nothing is tried out, so every rank comes to the same answer; a run that
//! goes on from a checkpoint keeps its answer, since the micro batch is part of what a run means.

use std::num::NonZeroUsize;

use crate::config::{AutoOr, Compression, Config, ConfigError, Determinism, LoadedConfig};
use crate::error::Error;
use crate::flat::FlatLayout;
use crate::optimizer::rule::Rule;
use crate::plan::Plan;
use crate::session::Session;

/// What operations need while they run, as a share of the activations (measured on WRN-28-10 and WRN-40-4: 0.27 to 0.5).
const WORKSPACE: f64 = 0.5;
const GIB: f64 = (1_u64 << 30) as f64;

/// Refuses a limit that is missing or says nothing.
pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
    let train = &loaded.config.train;
    let limit = train.memory_limit_gib;
    if let Some(limit) = limit.filter(|limit| !(limit.is_finite() && *limit > 0.0)) {
        return Err(
            loaded.error("train.memory_limit_gib", format!("{limit} is out of range; expected more than 0"))
        );
    }
    if train.micro_batch == Some(AutoOr::Auto) && limit.is_none() {
        return Err(loaded.error("train.micro_batch", "auto needs train.memory_limit_gib"));
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
    let (config, layout) = (&plan.config, FlatLayout::new(&plan.network));
    let ranks = plan.batches.world_size();
    let local = config.train.global_batch / ranks / micro_batch;
    let partial_sums = match config.train.determinism {
        Determinism::World => local.max(1).ilog2() as usize,
        Determinism::Run | Determinism::Off => 0,
    };
    let averaged = usize::from(config.train.averaging.is_some());
    let left_out = usize::from(config.comm.compression == Compression::PowerSgd);
    let remembered = remembered(config, ranks) * layout.parameters_len as f64;
    let copies_of_weights = (1 + averaged + left_out) * layout.parameters_len;
    let fixed = 4.0 * (remembered + (copies_of_weights + (1 + partial_sums) * layout.exchange_len()) as f64);
    let image = plan.data.image;
    let input = 4 * u64::from(image.height) * u64::from(image.width) * u64::from(image.channels);
    let activations = plan.network.activation_bytes(config.train.memory, config.precision.dtype.kind());
    fixed + micro_batch as f64 * (input as f64 + (1.0 + WORKSPACE) * activations as f64)
}

/// The largest micro batch of `plan` that fits.
pub(crate) fn choose(loaded: &LoadedConfig, plan: &Plan) -> Result<NonZeroUsize, ConfigError> {
    let limit = loaded.config.train.memory_limit_gib.unwrap_or(f64::INFINITY);
    let share = plan.config.train.global_batch / plan.batches.world_size();
    let fits = |micro_batch: usize| bytes(plan, micro_batch) <= limit * GIB;
    let allowed = |micro_batch: usize| {
        let local = share / micro_batch;
        plan.config.train.determinism != Determinism::World || local.is_power_of_two()
    };
    let divisors = (1..=share).rev().filter(|micro_batch| share.is_multiple_of(*micro_batch));
    divisors
        .filter(|&micro_batch| allowed(micro_batch) && fits(micro_batch))
        .find_map(NonZeroUsize::new)
        .ok_or_else(|| {
            let least = bytes(plan, 1) / GIB;
            let message =
                format!("{limit} is too little: even micro batches of one image need {least:.2} GiB a rank");
            loaded.error("train.memory_limit_gib", message)
        })
}
