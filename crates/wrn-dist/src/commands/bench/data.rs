//! `wrn-dist bench data`

use std::num::NonZeroUsize;
use std::path::PathBuf;

use trainer::{DataBenchOptions, DataBenchSource};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of shards or of image files, with random resized crops and flips
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    folder: Option<PathBuf>,
    /// Instead of a folder, the training data of a configuration with its augmentation
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replace a key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Decoder threads
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Images a batch
    #[arg(long, default_value = "64")]
    batch: NonZeroUsize,
    /// Batches of one round
    #[arg(long, default_value = "20")]
    batches: NonZeroUsize,
    /// Measured rounds
    #[arg(long, default_value = "3")]
    rounds: NonZeroUsize,
    /// Side of the crops of a folder's images
    #[arg(long, default_value = "224", conflicts_with = "config")]
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
        threads: arguments.threads.get(),
        batch: arguments.batch.get(),
        batches: arguments.batches.get(),
        rounds: arguments.rounds.get(),
    });
    super::super::finish(bench.map(|bench| match arguments.json {
        true => format!("{}\n", serde_json::json!(bench)),
        false => bench.table(),
    }))
}
