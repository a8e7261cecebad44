//! `wrn-dist model show`: a network without any tensor or data set, as a table for people or as JSON.

use std::fmt::Write;

use allreduce::Bucket;
use model::{Architecture, Memory, Network, Options};
use serde_json::json;

use crate::config::{CommConfig, Dtype};
use crate::error::Error;
use crate::flat::FlatLayout;

/// The largest networks have thousands.
const BUCKETS_SHOWN: usize = 16;

/// Form of a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The groups of a network with their parameters and multiply-adds, the size of its gradients, the buckets
/// in which they are exchanged by default, and the memory of its activations. Without `classes` and `image_size` (pixels) those that the network
/// was published for.
///
/// # Errors
/// When the architecture does not exist, or the numbers are out of range.
pub fn describe_network(
    architecture: &str,
    classes: Option<u32>,
    image_size: Option<u32>,
    format: Format,
) -> Result<String, Error> {
    let architecture: Architecture = architecture.parse()?;
    let options = Options {
        classes: classes.unwrap_or_else(|| architecture.usual_classes()),
        image_size: image_size.unwrap_or_else(|| architecture.usual_image_size()),
        ..Options::default()
    };
    let network = Network::new(&architecture, &options)?;
    let layout = FlatLayout::new(&network, 1);
    let buckets = layout.buckets(&CommConfig::default());
    Ok(match format {
        Format::Json => json(&architecture, &options, &network, &buckets),
        Format::Table => table(&architecture, &options, &network, &buckets),
    })
}

fn gradient_bytes(network: &Network) -> u64 {
    network.parameter_count() * size_of::<f32>() as u64
}

/// What a training step holds for backward in each memory mode, for one image in fp32.
fn activation_bytes(network: &Network) -> impl Iterator<Item = (Memory, u64)> {
    Memory::ALL.into_iter().map(|memory| (memory, network.activation_bytes(memory, Dtype::Fp32.kind())))
}

fn bucket_bytes(bucket: &Bucket) -> usize {
    bucket.range.len() * size_of::<f32>()
}

fn json(architecture: &Architecture, options: &Options, network: &Network, buckets: &[Bucket]) -> String {
    let stages: Vec<_> = network
        .stages()
        .iter()
        .map(|stage| {
            json!({
                "name": stage.name,
                "output": stage.output,
                "content": stage.content,
                "parameters": stage.parameters,
                "macs": stage.macs,
            })
        })
        .collect();
    let buckets: Vec<_> = buckets
        .iter()
        .map(|bucket| json!({ "parameters": bucket.segments.len(), "bytes": bucket_bytes(bucket) }))
        .collect();
    let activation_bytes: serde_json::Map<_, _> =
        activation_bytes(network).map(|(memory, bytes)| (memory.to_string(), bytes.into())).collect();
    let description = json!({
        "arch": architecture.to_string(),
        "classes": network.classes(),
        "image_size": options.image_size,
        "parameters": network.parameter_count(),
        "macs": network.macs(),
        "convolutions": network.convolutions(),
        "gradient_bytes": gradient_bytes(network),
        "activation_bytes": activation_bytes,
        "buckets": buckets,
        "stages": stages,
    });
    format!("{description:#}\n")
}

fn table(architecture: &Architecture, options: &Options, network: &Network, buckets: &[Bucket]) -> String {
    let width = network.stages().iter().map(|stage| stage.content.len() + 2).max().unwrap_or(0).max(32);
    let side = options.image_size;
    let mut text = format!("{architecture}, {} classes, images of {side}x{side}\n", network.classes());
    let mut row = |cells: [&str; 5]| {
        let [group, output, content, parameters, macs] = cells;
        let _ = writeln!(text, "{group:<10}{output:>8}  {content:<width$}{parameters:>14}{macs:>16}");
    };
    row(["group", "output", "content", "parameters", "multiply-adds"]);
    for stage in network.stages() {
        let output = format!("{0}x{0}", stage.output);
        row([&stage.name, &output, &stage.content, &stage.parameters.to_string(), &stage.macs.to_string()]);
    }
    let convolutions = format!("{} convolutions", network.convolutions());
    row(["", "", &convolutions, &network.parameter_count().to_string(), &network.macs().to_string()]);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let size = |bucket| format!("{:.2}", mib(bucket_bytes(bucket) as f64));
    let mut sizes: Vec<String> = buckets.iter().take(BUCKETS_SHOWN).map(size).collect();
    if buckets.len() > BUCKETS_SHOWN {
        sizes.push("...".into());
    }
    let _ = writeln!(
        text,
        "gradients {:.2} MiB, exchanged in {} buckets of {} MiB",
        mib(gradient_bytes(network) as f64),
        buckets.len(),
        sizes.join(", ")
    );
    let activations: Vec<_> = activation_bytes(network)
        .map(|(memory, bytes)| format!("{memory} {:.2} MiB", mib(bytes as f64)))
        .collect();
    let _ = writeln!(text, "activations of an image in fp32: {}", activations.join(", "));
    text
}
