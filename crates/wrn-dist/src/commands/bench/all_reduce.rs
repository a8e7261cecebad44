//! `wrn-dist bench allreduce`

use clap::ValueEnum;
use trainer::{AllReduceOptions, EXIT_FAILURE, EXIT_USAGE, config};

use super::super::{complain, show};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Smallest size
    #[arg(long, value_name = "KIB", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    min_kib: u32,
    /// Largest size; each is four times the one before
    #[arg(long, value_name = "KIB", default_value = "65536", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_kib: u32,
    /// What carries the sums; auto: NCCL between GPUs, else MPI
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
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
    Nccl,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Auto,
    Mpi,
    Nccl,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compression {
    None,
    Bf16,
    Fp16,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let options = AllReduceOptions {
        min_bytes: 1024 * arguments.min_kib as usize,
        max_bytes: 1024 * arguments.max_kib as usize,
        backend: match arguments.backend {
            Backend::Auto => config::Backend::Auto,
            Backend::Mpi => config::Backend::Mpi,
            Backend::Nccl => config::Backend::Nccl,
        },
        reduce: match arguments.reduce {
            Reduce::Ordered => config::Reduce::Ordered,
            Reduce::FlatOrdered => config::Reduce::FlatOrdered,
            Reduce::Mpi => config::Reduce::Mpi,
            Reduce::Nccl => config::Reduce::Nccl,
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
        complain("--min-kib is larger than --max-kib");
        return EXIT_USAGE;
    }
    if options.reduce == config::Reduce::Mpi && options.compression != config::Compression::None {
        complain("--compression needs --reduce ordered: MPI sums no 16-bit floats");
        return EXIT_USAGE;
    }
    match (options.reduce, options.backend) {
        (config::Reduce::Nccl, config::Backend::Auto | config::Backend::Mpi) => {
            complain("--reduce nccl needs --backend nccl");
            return EXIT_USAGE;
        }
        (config::Reduce::Mpi, config::Backend::Nccl) => {
            complain("--backend nccl knows --reduce ordered and nccl, not mpi");
            return EXIT_USAGE;
        }
        _ => {}
    }
    match trainer::bench_all_reduce(options) {
        Ok(None) => 0,
        Ok(Some(bench)) => {
            let code =
                show(&if arguments.json { format!("{}\n", serde_json::json!(bench)) } else { bench.table() });
            if bench.rows.iter().any(|row| row.wrong > 0) { EXIT_FAILURE } else { code }
        }
        Err(error) => error.exit_code(),
    }
}
