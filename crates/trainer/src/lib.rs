//! The training engine: a configuration becomes a plan, a plan becomes a run on all ranks.
//!
//! Joins the crates that do not know each other: `model` (the network), `data-sharding` (batches) and
//! `allreduce` (the exchange of gradients). Reading order: [`config`] → `plan` → `train` → `engine`;
//! `session` is how ranks begin, agree and end together; `flat`, `state`, `memory` are the layout of tensors;
//! `checkpoint`, `transfer`, `run_dir`, `telemetry` are what is written.

mod bench;
mod checkpoint;
pub mod config;
mod data;
mod delayed;
mod device;
mod doctor;
mod engine;
mod error;
mod evaluate;
mod flat;
mod input;
mod memory;
mod optimizer;
mod overview;
mod plan;
mod run_dir;
mod schedule;
mod session;
mod show;
mod state;
mod telemetry;
mod train;
mod transfer;

pub use bench::{
    BenchOptions, DataBench, DataBenchOptions, DataBenchSource, DecoderTimes, ModelBench, ModelBenchOptions,
    StepBench, bench_data, bench_model, bench_step,
};
pub use checkpoint::CheckpointError;
pub use doctor::doctor;
pub use error::{EXIT_FAILURE, EXIT_STOPPED, EXIT_USAGE, Error};
pub use evaluate::{Evaluation, Views};
pub use overview::describe_plan;
pub use show::{ShowOptions, show_samples};
pub use train::{Finish, Resume, StopAfter, TrainOptions, evaluate_checkpoint, train};
