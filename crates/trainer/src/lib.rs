//! The training engine: a configuration becomes a plan, a plan becomes a run on all ranks.
//!
//! Joins the crates that do not know each other: `model` (the network), `data-sharding` (batches) and
//! `allreduce` (the exchange of gradients). Reading order: [`config`] → `plan` → `train` → `engine`;
//! `session` is how ranks begin, agree and end together; `flat`, `state`, `memory` are the layout of tensors;
//! `health` is what is watched meanwhile; `checkpoint`, `transfer`, `run_dir`, `telemetry` are what is written; `weights` is the exchange with other
//! programs.

mod averaging;
mod backend;
mod bench;
mod bucket_hook;
mod checkpoint;
pub mod config;
mod data;
mod delayed;
mod device;
mod doctor;
mod engine;
mod error;
mod evaluate;
mod exchange_memory;
mod fault;
mod feed;
mod files;
mod flat;
mod gpu;
mod health;
mod imagenet;
mod input;
mod loss_scale;
mod memory;
mod micro_batch;
mod network_overview;
mod optimizer;
mod overview;
mod plan;
mod power_sgd;
mod run_dir;
mod scaling;
mod schedule;
mod session;
mod show;
mod skip;
mod state;
mod sync_norm;
mod synchronization;
mod telemetry;
mod tensor_device;
mod train;
mod transfer;
mod weights;

pub use model::Naming;

pub use bench::{
    AllReduceBench, AllReduceOptions, BenchOptions, DataBench, DataBenchOptions, DataBenchSource,
    DecodeTimes, DecoderTimes, ModelBench, ModelBenchOptions, StepBench, bench_all_reduce, bench_data,
    bench_model, bench_step,
};
pub use checkpoint::{CheckpointError, NotFiniteTensor};
pub use doctor::doctor;
pub use error::{EXIT_FAILURE, EXIT_STOPPED, EXIT_USAGE, Error};
pub use evaluate::{Evaluation, Views};
pub use fault::Fault;
pub use network_overview::{Format, describe_network};
pub use overview::describe_plan;
pub use scaling::{Algorithm, Cluster, Link};
pub use session::speaks_for_all;
pub use show::{ShowOptions, show_samples};
pub use train::{Finish, Resume, StopAfter, TrainOptions, evaluate_checkpoint, train};
pub use weights::{ExportOptions, ImportOptions, NumberFormat, WeightsError, export_weights, import_weights};
