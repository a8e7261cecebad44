//! `wrn-dist model`

use std::fmt::Write;

use clap::ValueEnum;
use model::{Architecture, Memory, Network, Options};
use serde_json::json;
use trainer::EXIT_USAGE;
use trainer::config::Dtype;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The groups of a network, its parameters and its multiply-adds
    Show(ShowArguments),
}

#[derive(clap::Args)]
struct ShowArguments {
    /// Architecture, for example wrn-28-10 or wrn-50-2-bottleneck
    arch: String,
    /// Number of classes [default: 10, or 1000 for the networks of ImageNet]
    #[arg(long)]
    classes: Option<u32>,
    /// Side of the images in pixels [default: 32, or 224 for the networks of ImageNet]
    #[arg(long)]
    image: Option<u32>,
    /// Form of the output
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let Command::Show(show) = &arguments.command;
    let network = show.arch.parse::<Architecture>().and_then(|architecture| {
        let options = Options {
            classes: show.classes.unwrap_or_else(|| architecture.usual_classes()),
            image_size: show.image.unwrap_or_else(|| architecture.usual_image_size()),
            ..Options::default()
        };
        Network::new(&architecture, &options).map(|network| (architecture, network))
    });
    match network {
        Ok((architecture, network)) => {
            super::show(&describe(&architecture, &network, show.format));
            0
        }
        Err(error) => {
            super::complain(&error.to_string());
            EXIT_USAGE
        }
    }
}

/// What a training step holds for backward in each memory mode, for one sample in fp32.
fn activation_bytes(network: &Network) -> impl Iterator<Item = (Memory, u64)> {
    Memory::ALL.into_iter().map(|memory| (memory, network.activation_bytes(memory, Dtype::Fp32.kind())))
}

fn describe(architecture: &Architecture, network: &Network, format: Format) -> String {
    match format {
        Format::Json => {
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
            let activation_bytes: serde_json::Map<_, _> =
                activation_bytes(network).map(|(memory, bytes)| (memory.to_string(), bytes.into())).collect();
            let description = json!({
                "arch": architecture.to_string(),
                "classes": network.classes(),
                "parameters": network.parameter_count(),
                "macs": network.macs(),
                "convolutions": network.convolutions(),
                "gradient_bytes": 4 * network.parameter_count(),
                "activation_bytes": activation_bytes,
                "stages": stages,
            });
            format!("{description:#}\n")
        }
        Format::Table => {
            let width =
                network.stages().iter().map(|stage| stage.content.len() + 2).max().unwrap_or(0).max(32);
            let mut text = format!("{architecture}, {} classes\n", network.classes());
            let _ = writeln!(
                text,
                "{:<10}{:>8}  {:<width$}{:>14}{:>16}",
                "group", "output", "content", "parameters", "multiply-adds"
            );
            for stage in network.stages() {
                let side = format!("{0}x{0}", stage.output);
                let _ = writeln!(
                    text,
                    "{:<10}{side:>8}  {:<width$}{:>14}{:>16}",
                    stage.name, stage.content, stage.parameters, stage.macs
                );
            }
            let total = format!("{} convolutions", network.convolutions());
            let _ = writeln!(
                text,
                "{:<20}{total:<width$}{:>14}{:>16}",
                "",
                network.parameter_count(),
                network.macs()
            );
            let _ = write!(text, "activations a sample in fp32:");
            for (memory, bytes) in activation_bytes(network) {
                let _ = write!(text, " {memory} {:.2} MiB", bytes as f64 / f64::from(1 << 20));
            }
            text + "\n"
        }
    }
}
