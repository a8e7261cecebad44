//! `wrn-dist model`

use std::path::PathBuf;

use clap::ValueEnum;
use trainer::{ExportOptions, ImportOptions, Naming, NumberFormat};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The groups of a network, its parameters, multiply-adds, buckets and memory
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
    arch: String,
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
    let format = match show.format {
        Format::Table => trainer::Format::Table,
        Format::Json => trainer::Format::Json,
    };
    super::finish(trainer::describe_network(&show.arch, show.classes, show.image, format))
}
