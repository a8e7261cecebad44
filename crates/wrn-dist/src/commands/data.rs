//! `wrn-dist data`

use std::path::PathBuf;

use data_sharding::{Address, Cap, DataError, FetchKind, PrepareKind, PrepareOptions, Progress, Side};
use trainer::EXIT_FAILURE;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Download the archives of a data set; interrupted, the same command goes on
    Fetch {
        /// Data set: cifar10, cifar100 or svhn
        kind: FetchKind,
        /// Folder for the archives
        destination: PathBuf,
        /// Folder of another server that has the same files
        #[arg(long, value_name = "URL")]
        from: Option<Address>,
    },
    /// Make a data set that can be trained on from the files that its authors publish
    ///
    /// Interrupted at any moment, the same command goes on; the result has the same bytes.
    Prepare(PrepareArguments),
    /// Draw training images as the network gets them: cropped, coloured, erased and mixed
    Show(super::data_show::Arguments),
    /// Add what a data set lacks of its indices, also over WebDataset shards made elsewhere
    Index {
        /// Folder of the data set, or of one half of it
        dir: PathBuf,
    },
    /// Check every byte of a prepared data set and name everything that is wrong; exit code 1 if anything is
    Verify {
        /// Folder of the data set, or of one half of it
        dir: PathBuf,
    },
}

#[derive(clap::Args)]
struct PrepareArguments {
    /// Data set: imagenet, imagefolder, cifar10, cifar100, svhn, svhn-without-extra or fashion-mnist
    kind: PrepareKind,
    /// Folder with the published files; for imagefolder, with train and val, each with a folder a class
    source: PathBuf,
    /// Folder to make
    destination: PathBuf,
    /// Refuse archives that are not the published ones, instead of warning
    #[arg(long)]
    strict: bool,
    /// Leave out files that are no JPEG or PNG or cannot be decoded, with a warning each, instead of stopping at the first
    #[arg(long)]
    skip_bad: bool,
    /// Size of source files at which a new shard is begun, in MiB
    #[arg(long, value_name = "MIB", default_value = "512", value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    shard_mib: u64,
    /// Decides the order in which samples lie in the shards
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Make images whose shorter side is longer than this smaller; all others stay as they are, to the byte
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=65_500))]
    cap_shorter: Option<u32>,
    /// The same for the longer side
    #[arg(long, value_name = "PIXELS", conflicts_with = "cap_shorter", value_parser = clap::value_parser!(u32).range(1..=65_500))]
    cap_longer: Option<u32>,
    /// JPEG quality of images that are made smaller
    #[arg(long, default_value = "90", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Leave out the seek index, which takes about 2 KB an image and makes random crops faster
    #[arg(long)]
    no_seek_index: bool,
    /// Threads [default: as many as cores]
    #[arg(long, value_parser = super::threads())]
    threads: Option<u16>,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let progress = Progress::visible();
    let result = match &arguments.command {
        Command::Prepare(arguments) => prepare(arguments, &progress)
            .map(|()| super::show(&format!("{}: ready\n", arguments.destination.display()))),
        Command::Show(arguments) => return super::data_show::run(arguments),
        Command::Fetch { kind, destination, from } => {
            data_sharding::fetch(*kind, destination, from.as_ref(), &progress).map(|()| 0)
        }
        Command::Index { dir } => data_sharding::index(dir, &progress).map(|()| 0),
        Command::Verify { dir } => data_sharding::verify(dir, &progress).map(|problems| {
            problems.iter().for_each(|problem| super::complain(problem));
            if problems.is_empty() {
                return super::show(&format!("{}: every byte is as it was prepared\n", dir.display()));
            }
            EXIT_FAILURE
        }),
    };
    result.unwrap_or_else(|error| {
        super::complain(&error.to_string());
        EXIT_FAILURE
    })
}

fn prepare(arguments: &PrepareArguments, progress: &Progress) -> Result<(), DataError> {
    let sides = [(Side::Shorter, arguments.cap_shorter), (Side::Longer, arguments.cap_longer)];
    let cap = sides
        .into_iter()
        .find_map(|(side, pixels)| Some(Cap { side, pixels: pixels?, quality: arguments.quality }));
    let mut options = PrepareOptions {
        seed: arguments.seed,
        shard_bytes: arguments.shard_mib << 20,
        strict: arguments.strict,
        skip_bad: arguments.skip_bad,
        cap,
        seek_index: !arguments.no_seek_index,
        ..PrepareOptions::default()
    };
    options.threads = arguments.threads.map_or(options.threads, usize::from);
    data_sharding::prepare(arguments.kind, &arguments.source, &arguments.destination, &options, progress)
}
