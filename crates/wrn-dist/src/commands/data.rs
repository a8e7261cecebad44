//! `wrn-dist data`

use std::path::PathBuf;

use data_sharding::{DataError, PrepareKind, PrepareOptions, Progress};
use trainer::EXIT_FAILURE;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a data set that can be trained on from the files that its authors publish
    ///
    /// Interrupted at any moment, the same command goes on; the result has the same bytes.
    Prepare(PrepareArguments),
    /// Draw training images as the network gets them: cropped, coloured, erased and mixed
    Show(super::data_show::Arguments),
    /// Check every byte of a prepared data set and name everything that is wrong; exit code 1 if anything is
    Verify {
        /// Folder of the data set, or of one half of it
        dir: PathBuf,
    },
}

#[derive(clap::Args)]
struct PrepareArguments {
    /// Data set
    kind: PrepareKind,
    /// Folder with the published files
    source: PathBuf,
    /// Folder to make
    destination: PathBuf,
    /// Refuse archives that are not the published ones, instead of warning
    #[arg(long)]
    strict: bool,
    /// Leave out files that are no JPEG or PNG, with a warning each, instead of stopping at the first
    #[arg(long)]
    skip_bad: bool,
    /// Size at which a new shard is begun, in MiB
    #[arg(long, value_name = "MIB", default_value = "512", value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    shard_mib: u64,
    /// Decides the order in which samples lie in the shards
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Threads [default: as many as cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let progress = Progress::visible();
    let result = match &arguments.command {
        Command::Prepare(arguments) => prepare(arguments, &progress).map(|()| 0),
        Command::Show(arguments) => return super::data_show::run(arguments),
        Command::Verify { dir } => data_sharding::verify(dir, &progress).map(|problems| {
            problems.iter().for_each(|problem| super::complain(problem));
            if problems.is_empty() { 0 } else { EXIT_FAILURE }
        }),
    };
    result.unwrap_or_else(|error| {
        super::complain(&error.to_string());
        EXIT_FAILURE
    })
}

fn prepare(arguments: &PrepareArguments, progress: &Progress) -> Result<(), DataError> {
    let mut options = PrepareOptions {
        seed: arguments.seed,
        shard_bytes: arguments.shard_mib << 20,
        strict: arguments.strict,
        skip_bad: arguments.skip_bad,
        ..PrepareOptions::default()
    };
    options.threads = arguments.threads.map_or(options.threads, usize::from);
    data_sharding::prepare(arguments.kind, &arguments.source, &arguments.destination, &options, progress)
}
