//! `wrn-dist model`

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use model::{Architecture, Naming, Network, Options};
use serde_json::json;
use trainer::{EXIT_USAGE, ExportOptions, ImportOptions, NumberFormat};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The groups of a network, its parameters and its multiply-adds
    Show(ShowArguments),
    /// Turn weights of PyTorch (safetensors) into a checkpoint: for eval --checkpoint, and as model.weights
    Import(ImportArguments),
    /// Write a checkpoint's weights as safetensors with the names of PyTorch's state dictionaries
    Export(ExportArguments),
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

#[derive(clap::Args)]
struct ImportArguments {
    /// Architecture, for example wrn-50-2-bottleneck for torchvision's wide_resnet50_2
    #[arg(long)]
    arch: Architecture,
    /// Number of classes [default: those of the file]
    #[arg(long)]
    classes: Option<u32>,
    /// Channels of the images
    #[arg(long, default_value = "3")]
    channels: u32,
    /// Whose names the file has: auto, torchvision, timm, wrn-official or own
    #[arg(long, value_name = "NAMING", default_value = AUTO, value_parser = naming)]
    from: AutoNaming,
    /// Leave the classifier out; training then begins with a new one, for its own number of classes
    #[arg(long)]
    new_classifier: bool,
    /// A safetensors file
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Folder of the new checkpoint
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct ExportArguments {
    /// Whose names to write: auto (the first that there are), torchvision, timm, wrn-official or own
    #[arg(long, value_name = "NAMING", default_value = AUTO, value_parser = naming)]
    to: AutoNaming,
    /// Format of the numbers
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// A checkpoint, its weights.safetensors, or a run's folder for its latest checkpoint
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The safetensors file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

const AUTO: &str = "auto";

/// A naming, or `auto`.
#[derive(Clone, Copy)]
struct AutoNaming(Option<Naming>);

fn naming(text: &str) -> Result<AutoNaming, String> {
    match text {
        AUTO => Ok(AutoNaming(None)),
        text => text.parse().map(|naming| AutoNaming(Some(naming))),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    match arguments.command {
        Command::Show(arguments) => show(&arguments),
        Command::Import(arguments) => super::finish(trainer::import_weights(&ImportOptions {
            architecture: arguments.arch,
            classes: arguments.classes,
            channels: arguments.channels,
            naming: arguments.from.0,
            new_classifier: arguments.new_classifier,
            input: arguments.input,
            output: arguments.output,
        })),
        Command::Export(arguments) => super::finish(trainer::export_weights(&ExportOptions {
            input: arguments.input,
            output: arguments.output,
            naming: arguments.to.0,
            format: match arguments.dtype {
                Dtype::F32 => NumberFormat::F32,
                Dtype::F16 => NumberFormat::F16,
                Dtype::Bf16 => NumberFormat::BF16,
            },
        })),
    }
}

fn show(show: &ShowArguments) -> i32 {
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
            let description = json!({
                "arch": architecture.to_string(),
                "classes": network.classes(),
                "parameters": network.parameter_count(),
                "macs": network.macs(),
                "convolutions": network.convolutions(),
                "gradient_bytes": 4 * network.parameter_count(),
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
            text
        }
    }
}
