//! `wrn-dist bench`

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The parts of a training step, with the exchange of gradients and without
    Step(StepArguments),
}

#[derive(clap::Args)]
struct StepArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Measured steps of each kind
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Steps of each kind before measuring
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    let Command::Step(step) = arguments.command;
    let options = trainer::BenchOptions {
        config: step.config.config,
        overrides: step.config.overrides,
        steps: step.steps,
        warmup: step.warmup,
    };
    match trainer::bench_step(&options) {
        Ok(None) => 0,
        Ok(Some(bench)) => {
            if step.json {
                println!("{}", serde_json::json!(bench));
            } else {
                print!("{}", bench.table());
            }
            0
        }
        Err(error) => error.exit_code(),
    }
}
