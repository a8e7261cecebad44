//! `wrn-dist plan`

use std::num::NonZeroUsize;

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Number of ranks
    #[arg(long, default_value = "1")]
    ranks: NonZeroUsize,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let config = &arguments.config;
    super::finish(trainer::describe_plan(&config.config, &config.overrides, arguments.ranks.get()))
}
