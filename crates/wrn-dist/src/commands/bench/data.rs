//! `wrn-dist bench data`

use std::path::PathBuf;

use trainer::{DataBenchOptions, DataBenchSource};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a prepared data set, of shards or of image files: with random resized crops and flips
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    folder: Option<PathBuf>,
    /// Instead of a folder, the training data of a configuration with its augmentation
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replace a key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Decoder threads
    #[arg(long, default_value = "1", value_parser = super::super::threads())]
    threads: u16,
    /// Images a batch
    #[arg(long, default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Batches of one round
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batches: u32,
    /// Measured rounds
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Side of the crops of a folder's images
    #[arg(long, default_value = "224", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(1..=8192))]
    image_size: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    let source = match (arguments.folder, arguments.config) {
        (Some(path), _) => DataBenchSource::Folder { path, image_size: arguments.image_size },
        (None, path) => {
            DataBenchSource::Config { path: path.unwrap_or_default(), overrides: arguments.overrides }
        }
    };
    let bench = trainer::bench_data(&DataBenchOptions {
        source,
        threads: arguments.threads.into(),
        batch: arguments.batch as usize,
        batches: arguments.batches as usize,
        rounds: arguments.rounds.into(),
    });
    super::super::finish(bench.map(|bench| match arguments.json {
        true => format!("{}\n", serde_json::json!(bench)),
        false => bench.table(),
    }))
}
