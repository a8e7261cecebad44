//! `wrn-dist plan`: what can be said of a run before it starts, as text. Computes nothing that
//! [`crate::plan`] does not.

use std::fmt::Write;
use std::path::Path;

use model::Memory;

use crate::config::{self, ScaleRate};
use crate::error::Error;
use crate::flat::FlatLayout;
use crate::micro_batch;
use crate::optimizer::rule::Rule;
use crate::plan::Plan;
use crate::scaling::{Algorithm, Cluster, Link, Load};
use crate::schedule::rate_scale;

/// A schedule that changes every epoch is not printed to its end.
const LEARNING_RATES_SHOWN: usize = 24;

/// Ranks up to which steps are modelled.
const MOST_RANKS: usize = 4096;

/// Describes the run of `config` on `ranks` ranks, and with `scaling` how it would scale on such a cluster, its sums
/// travelling as `comm.reduce` says where no algorithm is given. Needs the data set, unless it is ImageNet, but neither
/// MPI nor a GPU.
///
/// # Errors
/// What is wrong with the configuration or the data.
pub fn describe_plan(
    config: &Path,
    overrides: &[String],
    ranks: usize,
    scaling: Option<(Cluster, Option<Algorithm>)>,
) -> Result<String, Error> {
    let loaded = config::load(config, overrides)?;
    let (plan, is_estimate) = Plan::open_or_estimate(&loaded, ranks)?;
    let layout = FlatLayout::new(&plan.network, ranks);
    let buckets = layout.buckets(&plan.config.comm);
    let mib = |elements: usize| elements as f64 * 4.0 / f64::from(1 << 20);
    let parameters = layout.parameters_len;

    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<22}{value}");
    };
    line(
        "network",
        format!(
            "{}, {} parameters, {:.1} million multiply-adds an image",
            plan.architecture,
            plan.network.parameter_count(),
            plan.network.macs() as f64 / 1e6
        ),
    );
    line(
        "data",
        format!(
            "{}: {}, and {} test images, of {}x{}x{}, {} classes",
            plan.config.data.kind,
            plan.training_images(),
            plan.data.test.len(),
            plan.data.image.height,
            plan.data.image.width,
            plan.data.image.channels,
            plan.network.classes()
        ),
    );
    if is_estimate {
        line(
            "",
            format!(
                "{} not found: planned from the known size of ImageNet; `wrn-dist data prepare imagenet` makes it",
                plan.config.data.path.display()
            ),
        );
    }
    line(
        "global batch",
        format!(
            "{} images = {} micro batches of {}, {} on each of {ranks} rank(s)",
            plan.config.train.global_batch,
            plan.batches.micro_batches(),
            plan.micro_batch(),
            plan.batches.local_micro_batches().len()
        ),
    );
    let left_out =
        plan.data.sampler.len() as u64 - plan.steps_per_epoch * plan.config.train.global_batch as u64;
    line(
        "steps",
        format!(
            "{} an epoch ({left_out} images of each epoch's order are left out), {} in all",
            plan.steps_per_epoch,
            plan.total_steps()
        ),
    );
    let remembered = Rule::new(&plan.config.optimizer).memory().len();
    let sharers = if plan.config.optimizer.shard { ranks } else { 1 };
    line(
        "weights and optimizer",
        format!(
            "{:.2} MiB a rank, {} with {} number{} a weight{}",
            mib(parameters + (micro_batch::remembered(&plan.config, ranks) * parameters as f64) as usize),
            plan.config.optimizer.kind.name(),
            remembered,
            if remembered == 1 { "" } else { "s" },
            if sharers > 1 { format!(", in {sharers} shares") } else { String::new() }
        ),
    );
    line("gradients", format!("{:.2} MiB a rank, exchanged every step", mib(layout.exchange_len())));
    let activations = |memory| {
        let bytes = plan.network.activation_bytes(memory, plan.config.precision.dtype.kind());
        plan.micro_batch() as f64 * bytes as f64 / f64::from(1 << 20)
    };
    let modes: Vec<_> =
        Memory::ALL.iter().map(|&memory| format!("{memory} {:.1}", activations(memory))).collect();
    line(
        "activations",
        format!(
            "{:.1} MiB a rank with train.memory: {} ({})",
            activations(plan.config.train.memory),
            plan.config.train.memory,
            modes.join(", ")
        ),
    );
    line(
        "memory in all",
        format!(
            "about {:.2} GiB a rank with micro batches of {}: weights, gradients, the optimizer's memory, activations, what operations \
             need while they run, and on a CPU what is being saved, beside the program itself",
            micro_batch::bytes(&plan, plan.micro_batch()) / f64::from(1 << 30),
            plan.micro_batch()
        ),
    );
    let averaged = usize::from(plan.config.train.averaging.is_some());
    line(
        "checkpoint",
        format!(
            "about {:.2} MiB, the last {} kept and the best {}",
            mib((1 + averaged + remembered) * parameters),
            plan.config.checkpoint.keep_last,
            plan.config.checkpoint.keep_best
        ),
    );
    let sizes: Vec<String> =
        buckets.iter().take(16).map(|bucket| format!("{:.2}", mib(bucket.range.len()))).collect();
    let more = if buckets.len() > sizes.len() { ", and so on," } else { "" };
    line("buckets", format!("{}: {}{more} MiB", buckets.len(), sizes.join(", ")));
    let scale = rate_scale(&plan.config.schedule, plan.config.train.global_batch);
    if let Some(ScaleRate { reference_batch, .. }) = plan.config.schedule.scale_rate {
        line(
            "rate scale",
            format!(
                "x {scale:.4}, a global batch of {} instead of {reference_batch}",
                plan.config.train.global_batch
            ),
        );
    }
    line("learning rate", "first step of each epoch, where it changes".into());
    let mut last = f64::NAN;
    let mut shown = 0;
    for epoch in 0..u64::from(plan.config.train.epochs) {
        let rate = plan.schedule.rate(epoch * plan.steps_per_epoch);
        if rate != last && shown == LEARNING_RATES_SHOWN {
            let _ = writeln!(text, "  and so on");
            break;
        }
        if rate != last {
            shown += 1;
            let _ = writeln!(text, "  epoch {:<14}{rate:.6}", epoch + 1);
        }
        last = rate;
    }
    if let Some((cluster, algorithm)) = scaling {
        let micro_batches = plan.batches.local_micro_batches().len();
        let comm = &plan.config.comm;
        let algorithm = algorithm.unwrap_or_else(|| Algorithm::configured(comm, cluster.ranks_a_host));
        let load = Load::new(&plan.network, &layout, &plan.config, micro_batches, algorithm);
        let images = plan.config.train.global_batch / ranks;
        let link = |link: Link| {
            format!("{} Gbit/s and {} us", 8e-9 * link.bytes_per_second, 1e6 * link.latency_seconds)
        };
        let _ = writeln!(
            text,
            "{images} images a rank on more ranks, modelled: {} sums, {} rank(s) a host, {} within hosts, {} between them",
            algorithm.name(),
            cluster.ranks_a_host,
            link(cluster.within),
            link(cluster.between)
        );
        text += &cluster.table(&load, images, MOST_RANKS);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_is_planned_without_its_files_and_what_cannot_be_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = "model: {arch: resnet-18}\ndata: {kind: shards, path: nowhere}\ntrain: {epochs: 90, global_batch: 256}\n\
                    schedule: {kind: cosine, rate: 0.1}\n";
        std::fs::write(&path, text).unwrap();
        let described = describe_plan(&path, &[], 8, None).unwrap();
        for part in [
            "1281167 training images, and 50000 test images, of 224x224x3, 1000 classes",
            "nowhere not found: planned from the known size of ImageNet",
            "5004 an epoch",
        ] {
            assert!(described.contains(part), "{described}");
        }
        for set in ["model.classes=10", "data.kind=cifar10"] {
            let refused = describe_plan(&path, &[set.to_owned()], 8, None).unwrap_err().to_string();
            assert!(refused.contains("nowhere") && refused.contains("`wrn-dist data prepare`"), "{refused}");
        }
    }
}
