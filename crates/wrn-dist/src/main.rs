//! The command `wrn-dist`: reads the command line and calls the trainer. No logic of its own; one file a
//! subcommand.

mod commands;

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Trains Wide Residual Networks data-parallel, one process a GPU (or a CPU slot).
///
/// Started alone, by mpirun, Slurm, torchrun or Kubernetes. Exit codes: 0 done; 2 bad usage or configuration; 75 stopped on
/// request after saving; 1 anything else. RUST_LOG=info shows more than warnings.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a network
    Train(commands::train::Arguments),
    /// Evaluate a checkpoint on the test set, every image once
    Eval(commands::eval::Arguments),
    /// Show what a run will do, before it starts
    Plan(commands::plan::Arguments),
    /// Look at a configuration
    Config(commands::config::Arguments),
    /// Fetch, prepare and check data sets
    Data(commands::data::Arguments),
    /// Look at networks; exchange weights with PyTorch
    Model(commands::model::Arguments),
    /// Measure
    Bench(commands::bench::Arguments),
    /// Show what this machine and this build can do
    Doctor,
}

fn main() -> ExitCode {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        // All ranks have the same command line.
        Err(error) if error.use_stderr() && !trainer::speaks_for_all() => {
            return ExitCode::from(trainer::EXIT_USAGE as u8);
        }
        Err(error) => error.exit(),
    };
    let run = || match command_line.command {
        Command::Train(arguments) => commands::train::run(arguments),
        Command::Eval(arguments) => commands::eval::run(&arguments),
        Command::Plan(arguments) => commands::plan::run(&arguments),
        Command::Config(arguments) => commands::config::run(&arguments),
        Command::Data(arguments) => commands::data::run(&arguments),
        Command::Model(arguments) => commands::model::run(arguments),
        Command::Bench(arguments) => commands::bench::run(arguments),
        Command::Doctor => commands::show(&trainer::doctor()),
    };
    // A panic has been told by then; its exit code is that of any other failure.
    let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(trainer::EXIT_FAILURE);
    // The exit code travels through Slurm and mpirun, whose statuses are a byte.
    ExitCode::from(code as u8)
}
