//! `wrn-dist bench model`

use std::num::{NonZeroU32, NonZeroUsize};
use std::process::{Command, Stdio};

use trainer::config::{Dtype, Memory};
use trainer::{EXIT_FAILURE, ModelBench};

use super::super::{complain, show, threads};

#[derive(clap::Args)]
pub(crate) struct Arguments {
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
    #[arg(long, value_parser = threads())]
    threads: Option<u16>,
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
    match serde_json::from_value(text.into()) {
        Ok(dtype @ (Dtype::Fp32 | Dtype::Bf16)) => Ok(dtype),
        _ => Err("expected fp32 or bf16".into()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let rows = match arguments.memory {
        Some(memory) => measure(arguments, memory).map(|row| vec![row]),
        None => Memory::ALL.into_iter().map(measure_apart).collect(),
    };
    match rows {
        Ok(rows) if arguments.json => show(&format!("{}\n", serde_json::json!(rows))),
        Ok(rows) => show(&ModelBench::table(&rows)),
        Err(code) => code,
    }
}

fn measure(arguments: &Arguments, memory: Memory) -> Result<ModelBench, i32> {
    let options = trainer::ModelBenchOptions {
        arch: arguments.arch.clone(),
        batch: arguments.batch,
        dtype: arguments.dtype,
        memory,
        dropout: arguments.dropout,
        image_size: arguments.image,
        threads: arguments.threads.and_then(|threads| NonZeroUsize::new(threads.into())),
        steps: arguments.steps.get() as usize,
        warmup: arguments.warmup as usize,
    };
    trainer::bench_model(&options).map_err(|error| {
        complain(&error.to_string());
        error.exit_code()
    })
}

/// The same command for one mode, in a process whose memory no other mode has touched. It complains itself.
fn measure_apart(memory: Memory) -> Result<ModelBench, i32> {
    let failure = |sentence: String| {
        complain(&sentence);
        EXIT_FAILURE
    };
    let program =
        std::env::current_exe().map_err(|error| failure(format!("this program's path: {error}")))?;
    let output = Command::new(program)
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
