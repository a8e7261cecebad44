//! `wrn-dist bench`

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use model::Memory;
use trainer::config::Dtype;
use trainer::{DataBenchOptions, DataBenchSource, EXIT_FAILURE, EXIT_USAGE, ModelBench};

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
    /// Images a second of the decoder pool, as normalised fp32 batches, and where its threads spend their time
    Data(DataArguments),
    /// Memory and time of a training step of a network on the CPU, in each memory mode
    Model(ModelArguments),
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

#[derive(clap::Args)]
struct DataArguments {
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

#[derive(clap::Args)]
struct ModelArguments {
    /// Architecture, for example wrn-28-10
    arch: String,
    /// Images that go through the network at once
    #[arg(long, default_value = "32")]
    batch: NonZeroUsize,
    /// plain, recompute or checkpoint; without it all three, each in a process of its own
    #[arg(long, value_parser = memory)]
    memory: Option<Memory>,
    /// fp32 or bf16
    #[arg(long, value_parser = dtype, default_value = "fp32")]
    dtype: Dtype,
    /// Dropout probability
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// Side of the images in pixels [default: 32, or 224 for the networks of ImageNet]
    #[arg(long)]
    image: Option<u32>,
    /// libtorch's threads [default: all usable cores]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Measured steps
    #[arg(long, default_value = "5")]
    steps: NonZeroU32,
    /// Steps before measuring
    #[arg(long, default_value = "2")]
    warmup: u32,
    /// Print JSON: a list with one entry a mode
    #[arg(long)]
    json: bool,
}

fn memory(text: &str) -> Result<Memory, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

fn dtype(text: &str) -> Result<Dtype, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    match arguments.command {
        Command::Step(step) => run_step(step),
        Command::Data(data) => run_data(data),
        Command::Model(model) => run_model(&model),
    }
}

fn run_data(arguments: DataArguments) -> i32 {
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
    super::finish(bench.map(|bench| match arguments.json {
        true => format!("{}\n", serde_json::json!(bench)),
        false => bench.table(),
    }))
}

fn run_model(arguments: &ModelArguments) -> i32 {
    let rows = match arguments.memory {
        Some(memory) => measure(arguments, memory).map(|row| vec![row]),
        None => Memory::ALL.into_iter().map(measure_apart).collect(),
    };
    match rows {
        Ok(rows) => {
            super::show(&if arguments.json {
                format!("{}\n", serde_json::json!(rows))
            } else {
                ModelBench::table(&rows)
            });
            0
        }
        Err(code) => code,
    }
}

fn measure(arguments: &ModelArguments, memory: Memory) -> Result<ModelBench, i32> {
    let options = trainer::ModelBenchOptions {
        arch: arguments.arch.clone(),
        batch: arguments.batch,
        dtype: arguments.dtype,
        memory,
        dropout: arguments.dropout,
        image_size: arguments.image,
        threads: arguments.threads,
        steps: arguments.steps.get() as usize,
        warmup: arguments.warmup as usize,
    };
    trainer::bench_model(&options).map_err(|error| {
        super::complain(&error.to_string());
        error.exit_code()
    })
}

/// The same command for one mode, in a process whose memory no other mode has touched. It complains itself.
fn measure_apart(memory: Memory) -> Result<ModelBench, i32> {
    let failure = |sentence: String| {
        super::complain(&sentence);
        EXIT_FAILURE
    };
    let program =
        std::env::current_exe().map_err(|error| failure(format!("this program's path: {error}")))?;
    let output = Process::new(program)
        .args(std::env::args_os().skip(1).filter(|argument| argument != "--json"))
        .args(["--json", "--memory", &memory.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failure(format!("cannot start another process: {error}")))?;
    if !output.status.success() {
        return Err(output.status.code().unwrap_or(EXIT_FAILURE));
    }
    let rows: Result<[ModelBench; 1], _> = serde_json::from_slice(&output.stdout);
    rows.map(|[row]| row)
        .map_err(|error| failure(format!("the other process did not print a result: {error}")))
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
