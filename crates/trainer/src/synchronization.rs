//! Which ways of exchange, of the update and of batch norm over ranks go together with what else a run is told.
//! Decides before the run; does nothing in it.

use data_sharding::BatchLayout;
use model::Memory;

use crate::config::{
    Backend, CommConfig, Compression, Config, ConfigError, Determinism, Dtype, LoadedConfig, OnNan, OnSpike,
    OptimizerKind, Overlap, Reduce,
};

/// `comm.power_sgd_rank` when absent: the one that the paper trains ResNet-18 with to full accuracy.
const POWER_SGD_RANK: usize = 2;
/// `comm.power_sgd_start_step` when absent, as in PyTorch's `powerSGD_hook.py`.
const POWER_SGD_START_STEP: u64 = 1000;

/// A combination that is refused.
struct Refusal {
    applies: bool,
    key: &'static str,
    sentence: &'static str,
}

/// # Errors
/// The first combination that has no meaning.
pub(crate) fn check(loaded: &LoadedConfig, batches: &BatchLayout) -> Result<(), ConfigError> {
    let mut refusals = exchange(&loaded.config).into_iter().chain(batch_norm(&loaded.config, batches));
    match refusals.find(|refusal| refusal.applies) {
        Some(Refusal { key, sentence, .. }) => Err(loaded.error(key, sentence)),
        None => Ok(()),
    }
}

/// Writes what is used and was left to us.
pub(crate) fn write_defaults(comm: &mut CommConfig) {
    if comm.compression == Compression::PowerSgd {
        comm.power_sgd_rank.get_or_insert(POWER_SGD_RANK);
        comm.power_sgd_start_step.get_or_insert(POWER_SGD_START_STEP);
    }
}

fn exchange(config: &Config) -> [Refusal; 13] {
    let Config { comm, train, precision, optimizer, .. } = config;
    let power_sgd = comm.compression == Compression::PowerSgd;
    let sixteen_bits = comm.compression.wire() != allreduce::Wire::Fp32;
    let early_step = comm.overlap == Overlap::ExchangeAndStep;
    // Steps may be left out after their exchange: for a gradient that is not finite, or because a loss scale was too
    // large. The way back to a checkpoint brings back weights and momentum, but not what power-sgd remembers.
    let (skips, scales_loss) =
        (train.on_nan == OnNan::Skip, !matches!(precision.dtype, Dtype::Fp32 | Dtype::Bf16));
    let rolls_back = train.on_nan == OnNan::RollBack || train.loss_spike.action == OnSpike::RollBack;
    [
        Refusal {
            applies: sixteen_bits && comm.reduce == Reduce::Mpi,
            key: "comm.compression",
            sentence: "only the ordered reduction sums compressed gradients; set comm.reduce to ordered, or this to none",
        },
        Refusal {
            applies: comm.compression != Compression::None && train.determinism == Determinism::World,
            key: "comm.compression",
            sentence: "rounds each rank's sum, so the number of ranks changes the result; expected none with \
                       train.determinism: world",
        },
        Refusal {
            applies: !power_sgd && comm.power_sgd_rank.is_some(),
            key: "comm.power_sgd_rank",
            sentence: "is not used; expected comm.compression: power-sgd",
        },
        Refusal {
            applies: !power_sgd && comm.power_sgd_start_step.is_some(),
            key: "comm.power_sgd_start_step",
            sentence: "is not used; expected comm.compression: power-sgd",
        },
        Refusal {
            applies: comm.backend == Backend::Mpi && comm.nccl_max_ctas.is_some(),
            key: "comm.nccl_max_ctas",
            sentence: "is not used; expected comm.backend: nccl or auto",
        },
        Refusal {
            applies: power_sgd && comm.backend == Backend::Nccl,
            key: "comm.compression",
            sentence: "power-sgd works on gradients in the host's memory; expected none, bf16 or fp16 with comm.backend: nccl",
        },
        Refusal {
            applies: early_step && (optimizer.shard || optimizer.clip_norm.is_some()),
            key: "comm.overlap",
            sentence: "sync+step updates each bucket by itself; expected true with optimizer.shard or optimizer.clip_norm",
        },
        Refusal {
            applies: early_step && optimizer.kind != OptimizerKind::Sgd,
            key: "comm.overlap",
            sentence: "sync+step updates each bucket by itself; expected true, or optimizer.kind: sgd",
        },
        Refusal {
            applies: power_sgd && rolls_back,
            key: "comm.compression",
            sentence: "power-sgd remembers steps that a way back to a checkpoint undoes; expected another compression, or \
                       neither train.on_nan nor train.loss_spike.action: roll-back",
        },
        Refusal {
            applies: power_sgd && skips,
            key: "comm.compression",
            sentence: "power-sgd has taken a step into account before it can be left out; expected another compression, \
                       or train.on_nan: stop",
        },
        Refusal {
            applies: power_sgd && scales_loss,
            key: "comm.compression",
            sentence: "power-sgd remembers gradients of earlier steps, which another loss scale would make wrong; expected \
                       another compression, or precision.dtype: bf16 or fp32",
        },
        Refusal {
            applies: early_step && skips,
            key: "comm.overlap",
            sentence: "sync+step has updated weights before it is known whether every gradient is finite; expected true, or \
                       train.on_nan: stop or roll-back",
        },
        Refusal {
            applies: early_step && scales_loss,
            key: "comm.overlap",
            sentence: "sync+step has updated weights before it is known whether the loss scale was too large; expected true, \
                       or precision.dtype: bf16 or fp32",
        },
    ]
}

fn batch_norm(config: &Config, batches: &BatchLayout) -> [Refusal; 6] {
    const KEY: &str = "model.sync_norm";
    let Config { model, train, comm, .. } = config;
    let refusal =
        |applies: bool, sentence| Refusal { applies: model.sync_norm && applies, key: KEY, sentence };
    [
        refusal(
            model.frozen_norm,
            "has no meaning with model.frozen_norm: true, which normalises by fixed statistics",
        ),
        refusal(
            comm.backend == Backend::Nccl,
            "sums statistics in the host's memory; expected comm.backend: mpi",
        ),
        refusal(
            model.stochastic_depth > 0.0,
            "all ranks must run the same layers; expected false with model.stochastic_depth",
        ),
        refusal(
            train.memory != Memory::Plain,
            "layers are not run again in backward, where ranks would wait for each other once more; expected \
             train.memory: plain",
        ),
        refusal(
            train.determinism == Determinism::World,
            "sums over ranks, whose number changes the result; expected false with train.determinism: world",
        ),
        refusal(
            batches.local_micro_batches().len() != 1,
            "normalises over the global batch, so each rank computes its part in one piece; expected no \
             train.micro_batch, or the global batch divided by the number of ranks (--set train.micro_batch=null)",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AutoOr, load};

    fn message(sets: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        let text = "model: {arch: wrn-10-1}\ndata: {kind: cifar10, path: d}\ntrain: {epochs: 1, global_batch: 8}\n\
                    schedule: {kind: constant, rate: 1}\n";
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let loaded = load(&path, &sets).unwrap();
        let micro_batch = match loaded.config.train.micro_batch {
            Some(AutoOr::Exactly(micro_batch)) => micro_batch.get(),
            _ => 4,
        };
        let batches = BatchLayout::new(8, micro_batch, 0, 2).unwrap();
        check(&loaded, &batches).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_its_key() {
        for (sets, key) in [
            (&["comm.compression=bf16", "comm.reduce=mpi"][..], "comm.compression"),
            (&["comm.compression=power-sgd", "train.determinism=world"], "comm.compression"),
            (&["comm.compression=power-sgd", "train.on_nan=skip"], "comm.compression"),
            (&["comm.compression=power-sgd", "train.on_nan=roll-back"], "comm.compression"),
            (&["comm.compression=power-sgd", "train.loss_spike.action=roll-back"], "comm.compression"),
            (&["comm.compression=power-sgd", "precision.dtype=fp16"], "comm.compression"),
            (&["comm.compression=power-sgd", "comm.backend=nccl"], "comm.compression"),
            (&["model.sync_norm=true", "comm.backend=nccl"], "model.sync_norm"),
            (&["comm.overlap=sync+step", "optimizer.shard=true"], "comm.overlap"),
            (&["comm.overlap=sync+step", "optimizer.clip_norm=1"], "comm.overlap"),
            (&["comm.overlap=sync+step", "optimizer.kind=adamw"], "comm.overlap"),
            (&["comm.power_sgd_rank=2"], "comm.power_sgd_rank"),
            (&["comm.compression=bf16", "comm.power_sgd_start_step=0"], "comm.power_sgd_start_step"),
            (&["comm.backend=mpi", "comm.nccl_max_ctas=8"], "comm.nccl_max_ctas"),
            (&["comm.overlap=sync+step", "train.on_nan=skip"], "comm.overlap"),
            (&["comm.overlap=sync+step", "precision.dtype=fp16"], "comm.overlap"),
            (&["model.sync_norm=true", "model.frozen_norm=true"], "model.sync_norm"),
            (&["model.sync_norm=true", "model.stochastic_depth=0.5"], "model.sync_norm"),
            (&["model.sync_norm=true", "train.memory=recompute"], "model.sync_norm"),
            (&["model.sync_norm=true", "train.determinism=world"], "model.sync_norm"),
            (&["model.sync_norm=true", "train.micro_batch=2"], "model.sync_norm"),
        ] {
            let message = message(sets);
            assert!(message.contains(&format!(": {key}")), "{sets:?}: {message}");
        }
        for sets in [
            &["comm.compression=power-sgd", "comm.power_sgd_rank=4", "comm.power_sgd_start_step=0"][..],
            &["comm.compression=power-sgd", "comm.reduce=mpi", "comm.overlap=sync+step"],
            &["comm.overlap=sync+step", "train.memory=checkpoint", "model.stochastic_depth=0.5"],
            &["model.sync_norm=true", "comm.overlap=sync+step", "comm.compression=bf16"],
            &["comm.overlap=sync+step", "train.on_nan=roll-back"],
            &["comm.overlap=sync+step", "comm.backend=nccl"],
            &["optimizer.shard=true", "comm.backend=nccl"],
            &["comm.compression=bf16", "train.on_nan=skip"],
            &["comm.backend=nccl", "comm.nccl_max_ctas=8"],
            &["comm.nccl_max_ctas=8"],
        ] {
            assert_eq!(message(sets), "", "{sets:?}");
        }
    }

    #[test]
    fn defaults_are_written_where_they_are_used() {
        let mut comm = CommConfig::default();
        write_defaults(&mut comm);
        assert_eq!((comm.power_sgd_rank, comm.power_sgd_start_step), (None, None));
        comm.compression = Compression::PowerSgd;
        comm.power_sgd_rank = Some(7);
        write_defaults(&mut comm);
        assert_eq!((comm.power_sgd_rank, comm.power_sgd_start_step), (Some(7), Some(POWER_SGD_START_STEP)));
    }
}
