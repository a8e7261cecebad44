//! `wrn-dist data show`

use std::path::PathBuf;

use trainer::ShowOptions;

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Samples, one a row
    #[arg(long, default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    samples: u16,
    /// Epochs whose augmentation is shown, one a column
    #[arg(long, default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    epochs: u16,
    /// The first of these epochs
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    first_epoch: u32,
    /// PNG file to write
    #[arg(long, default_value = "samples.png", value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    super::finish(trainer::show_samples(&ShowOptions {
        config: arguments.config.config.clone(),
        overrides: arguments.config.overrides.clone(),
        samples: arguments.samples.into(),
        epochs: arguments.epochs.into(),
        first_epoch: arguments.first_epoch,
        out: arguments.out.clone(),
    }))
}
