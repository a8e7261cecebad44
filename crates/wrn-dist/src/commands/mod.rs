//! One module a subcommand, and the arguments that several share.

pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod data_show;
pub(crate) mod eval;
pub(crate) mod model;
pub(crate) mod plan;
pub(crate) mod train;

use std::io::Write;
use std::path::PathBuf;

/// The configuration of a run.
#[derive(clap::Args, Clone)]
pub(crate) struct ConfigArguments {
    /// The run's configuration, a YAML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Replace a key of the configuration, for example --set train.epochs=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

/// Prints to standard output. A reader that has gone away, as `head` does, is no error.
pub(crate) fn show(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints an error to standard error.
pub(crate) fn complain(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "error: {sentence}");
}

/// Exit code of a command of one process, whose error is still to be printed.
pub(crate) fn finish(result: Result<String, trainer::Error>) -> i32 {
    match result {
        Ok(text) => {
            show(&text);
            0
        }
        Err(error) => {
            complain(&error.to_string());
            error.exit_code()
        }
    }
}
