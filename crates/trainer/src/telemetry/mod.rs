//! What a run tells: a JSON line a step and an epoch, live metrics, progress on the terminal, curves as a
//! picture. Nothing here influences the run.

mod curves;
mod exporter;
mod progress;
mod records;

pub(crate) use curves::draw as draw_curves;
pub(crate) use exporter::{Exporter, export_epoch, export_step, export_straggler};
pub(crate) use progress::Progress;
pub(crate) use records::{EpochRecord, MetricsFile, PhaseSeconds, StepRecord, read_epochs};
