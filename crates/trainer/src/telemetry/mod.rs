//! What a run tells: a JSON line a step, an epoch and a checkpoint, live metrics, progress on the terminal, curves as a
//! picture. Nothing here influences the run.

mod curves;
mod exporter;
mod metrics_file;
mod progress;
mod records;

pub(crate) use curves::draw as draw_curves;
pub(crate) use exporter::{Exporter, export_checkpoint, export_epoch, export_step, export_straggler};
pub(crate) use metrics_file::MetricsFile;
pub(crate) use progress::{Progress, print_warning};
pub(crate) use records::{CheckpointRecord, EpochRecord, PhaseSeconds, Record, StepRecord, read_epochs};
