//! `wrn-dist bench`

use std::num::NonZeroU32;
use std::time::Duration;

use clap::ValueEnum;
use trainer::{AllReduceOptions, EXIT_FAILURE, EXIT_USAGE, config};

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
    /// The sum over all ranks by itself, for a range of sizes
    Allreduce(AllReduceArguments),
}

#[derive(clap::Args)]
struct AllReduceArguments {
    /// Smallest size
    #[arg(long, value_name = "KIB", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    min_kib: u32,
    /// Largest size; each is four times the one before
    #[arg(long, value_name = "KIB", default_value = "65536", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_kib: u32,
    /// Who decides the order of the sum
    #[arg(long, value_enum, default_value = "ordered")]
    reduce: Reduce,
    /// How values travel
    #[arg(long, value_enum, default_value = "none")]
    compression: Compression,
    /// Measured all-reduces of each size
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    iterations: u32,
    /// All-reduces of each size before measuring
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    warmup: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Reduce {
    Ordered,
    FlatOrdered,
    Mpi,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compression {
    None,
    Bf16,
    Fp16,
}

#[derive(clap::Args)]
struct StepArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Measured steps of each kind
    #[arg(long, default_value = "20")]
    steps: NonZeroU32,
    /// Steps of each kind before measuring
    #[arg(long, default_value = "3")]
    warmup: u32,
    /// Milliseconds that each bucket's all-reduce takes longer, to see how much of a slower network would be
    /// hidden
    #[arg(long, default_value_t = 0.0)]
    delay_ms: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    match arguments.command {
        Command::Step(step) => run_step(step),
        Command::Allreduce(arguments) => run_all_reduce(&arguments),
    }
}

fn run_all_reduce(arguments: &AllReduceArguments) -> i32 {
    let options = AllReduceOptions {
        min_bytes: 1024 * arguments.min_kib as usize,
        max_bytes: 1024 * arguments.max_kib as usize,
        reduce: match arguments.reduce {
            Reduce::Ordered => config::Reduce::Ordered,
            Reduce::FlatOrdered => config::Reduce::FlatOrdered,
            Reduce::Mpi => config::Reduce::Mpi,
        },
        compression: match arguments.compression {
            Compression::None => config::Compression::None,
            Compression::Bf16 => config::Compression::Bf16,
            Compression::Fp16 => config::Compression::Fp16,
        },
        iterations: arguments.iterations as usize,
        warmup: arguments.warmup as usize,
    };
    if options.min_bytes > options.max_bytes {
        super::complain("--min-kib is larger than --max-kib");
        return EXIT_USAGE;
    }
    if options.reduce == config::Reduce::Mpi && options.compression != config::Compression::None {
        super::complain("--compression needs --reduce ordered: MPI sums no 16-bit floats");
        return EXIT_USAGE;
    }
    match trainer::bench_all_reduce(options) {
        Ok(None) => 0,
        Ok(Some(bench)) => {
            super::show(&if arguments.json {
                format!("{}\n", serde_json::json!(bench))
            } else {
                bench.table()
            });
            if bench.rows.iter().any(|row| row.wrong > 0) { EXIT_FAILURE } else { 0 }
        }
        Err(error) => error.exit_code(),
    }
}

fn run_step(step: StepArguments) -> i32 {
    let Ok(delay) = Duration::try_from_secs_f64(step.delay_ms / 1e3) else {
        super::complain(&format!("--delay-ms {}: expected 0 or more milliseconds", step.delay_ms));
        return EXIT_USAGE;
    };
    let options = trainer::BenchOptions {
        config: step.config.config,
        overrides: step.config.overrides,
        steps: step.steps.get() as usize,
        warmup: step.warmup as usize,
        delay,
    };
    match trainer::bench_step(&options) {
        Ok(None) => 0,
        Ok(Some(bench)) => {
            super::show(&if step.json { format!("{}\n", serde_json::json!(bench)) } else { bench.table() });
            0
        }
        Err(error) => error.exit_code(),
    }
}
