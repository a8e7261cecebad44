//! `wrn-dist model`

use clap::ValueEnum;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The groups of a network, its parameters, multiply-adds, buckets and memory
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
    let format = match show.format {
        Format::Table => trainer::Format::Table,
        Format::Json => trainer::Format::Json,
    };
    super::finish(trainer::describe_network(&show.arch, show.classes, show.image, format))
}
