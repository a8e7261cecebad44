//! `wrn-dist config`

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the configuration with all defaults and overrides written out
    Show(ConfigArguments),
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let Command::Show(config) = &arguments.command;
    let loaded = trainer::config::load(&config.config, &config.overrides);
    super::finish(loaded.map(|loaded| loaded.config.to_yaml()).map_err(Into::into))
}
