//! One module a subcommand, and the arguments that several share.

pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod data_show;
pub(crate) mod eval;
pub(crate) mod model;
pub(crate) mod plan;
pub(crate) mod train;

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use trainer::EXIT_FAILURE;

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

/// Prints what a command was asked for to standard output, and gives its exit code. A reader that has gone away, as `head`
/// does, is no error.
pub(crate) fn show(text: &str) -> i32 {
    let mut output = std::io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("the result cannot be written to standard output: {error}"));
            EXIT_FAILURE
        }
        _ => 0,
    }
}

/// `--threads`
pub(crate) fn threads() -> impl clap::builder::TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(1..=1024)
}

/// Prints an error to standard error.
pub(crate) fn complain(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "error: {sentence}");
}

/// Exit code of a command of one process, whose error is still to be printed.
pub(crate) fn finish(result: Result<String, trainer::Error>) -> i32 {
    match result {
        Ok(text) => show(&text),
        Err(error) => {
            complain(&error.to_string());
            error.exit_code()
        }
    }
}
