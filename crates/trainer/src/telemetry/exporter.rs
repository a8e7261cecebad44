//! Live metrics through the `metrics` facade, served for Prometheus where the configuration names an address.

use std::net::SocketAddr;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use super::records::{CheckpointRecord, EpochRecord, StepRecord};
use crate::config::{ConfigError, LoadedConfig};
use crate::error::Error;

/// Upper bounds of the histograms of times, in seconds.
const SECONDS: &[f64] = &[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// Serves the metrics as long as the process lives.
pub(crate) struct Exporter;

impl Exporter {
    /// Refuses a port that the system would choose: nobody could know it.
    pub(crate) fn check(loaded: &LoadedConfig) -> Result<(), ConfigError> {
        match loaded.config.telemetry.prometheus {
            Some(address) if address.port() == 0 => Err(loaded.error(
                "telemetry.prometheus",
                format!("{address} has no port that a scraper could name; expected 1 to 65535"),
            )),
            _ => Ok(()),
        }
    }

    /// Each rank of a host takes a port of its own: the configured one plus its local rank.
    pub(crate) fn start(address: SocketAddr, local_rank: usize, rank: usize) -> Result<SocketAddr, Error> {
        let failed = |reason: String| {
            Error::Other(format!("telemetry.prometheus: cannot serve metrics at {address}: {reason}"))
        };
        let port = u16::try_from(usize::from(address.port()) + local_rank)
            .map_err(|_| failed(format!("no port is left for local rank {local_rank}")))?;
        let address = SocketAddr::new(address.ip(), port);
        PrometheusBuilder::new()
            .with_http_listener(address)
            .add_global_label("rank", rank.to_string())
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
            .and_then(PrometheusBuilder::install)
            .map_err(|error| failed(error.to_string()))?;
        describe_counter!("wrn_dist_steps_total", "Optimizer steps");
        describe_counter!(
            "wrn_dist_skipped_steps_total",
            "Steps left out, since their gradient was not finite"
        );
        describe_counter!(
            "wrn_dist_skipped_samples_total",
            "Training images that could not be decoded, over all ranks"
        );
        describe_counter!("wrn_dist_images_total", "Training images, over all ranks");
        describe_gauge!("wrn_dist_epoch", "Epoch under way, counted from 1");
        describe_gauge!("wrn_dist_loss", "Mean loss of the last global batch");
        describe_gauge!("wrn_dist_learning_rate", "Learning rate of the last step");
        describe_gauge!("wrn_dist_images_per_second", "Training speed of the last step, over all ranks");
        describe_gauge!("wrn_dist_test_top1_error", "Share of wrong predictions on the test set, 0 to 1");
        describe_gauge!("wrn_dist_test_loss", "Mean loss on the test set");
        describe_gauge!(
            "wrn_dist_averaged_test_top1_error",
            "Share of wrong predictions of the averaged weights on the test set, 0 to 1"
        );
        describe_gauge!("wrn_dist_loss_scale", "What the loss is multiplied by under fp16");
        describe_counter!("wrn_dist_loss_spikes_total", "Steps whose loss was far above those before");
        describe_gauge!(
            "wrn_dist_straggler_times_slower",
            "Work of a slow rank on a step as a multiple of the other ranks' median; 0 when it keeps up again"
        );
        describe_histogram!("wrn_dist_step_seconds", "Wall time of a step");
        describe_histogram!("wrn_dist_phase_seconds", "Wall time of each part of a step on this rank");
        describe_counter!("wrn_dist_checkpoints_total", "Checkpoints saved");
        describe_counter!("wrn_dist_failed_checkpoints_total", "Checkpoints that could not be saved");
        describe_histogram!(
            "wrn_dist_checkpoint_stall_seconds",
            "Time for which training stood still for a save"
        );
        Ok(address)
    }
}

/// Publishes a step of this rank.
pub(crate) fn export_step(record: &StepRecord, images: usize) {
    counter!("wrn_dist_steps_total").increment(1);
    counter!("wrn_dist_skipped_steps_total").increment(record.skipped.into());
    counter!("wrn_dist_skipped_samples_total").increment(record.skipped_samples);
    counter!("wrn_dist_images_total").increment(images as u64);
    gauge!("wrn_dist_epoch").set(record.epoch);
    if let Some(loss) = record.loss {
        gauge!("wrn_dist_loss").set(loss);
    }
    gauge!("wrn_dist_learning_rate").set(record.learning_rate);
    counter!("wrn_dist_loss_spikes_total").increment(record.loss_spike.into());
    if let Some(loss_scale) = record.loss_scale {
        gauge!("wrn_dist_loss_scale").set(loss_scale);
    }
    gauge!("wrn_dist_images_per_second").set(record.images_per_second);
    histogram!("wrn_dist_step_seconds").record(record.seconds.step);
    for (phase, seconds) in [
        ("data_wait", record.seconds.data_wait),
        ("input", record.seconds.input),
        ("forward", record.seconds.forward),
        ("backward", record.seconds.backward),
        ("exposed_communication", record.seconds.exposed_communication),
        ("optimizer", record.seconds.optimizer),
    ] {
        histogram!("wrn_dist_phase_seconds", "phase" => phase).record(seconds);
    }
}

/// Publishes that a rank is so many times slower than the others; 0 when it no longer is.
pub(crate) fn export_straggler(rank: usize, times_slower: f64) {
    gauge!("wrn_dist_straggler_times_slower", "straggler" => rank.to_string()).set(times_slower);
}

/// Publishes an epoch's evaluation.
pub(crate) fn export_epoch(record: &EpochRecord) {
    if let (Some(loss), Some(error)) = (record.test_loss, record.test_top1_error) {
        gauge!("wrn_dist_test_loss").set(loss);
        gauge!("wrn_dist_test_top1_error").set(error);
    }
    if let Some(error) = record.averaged_test_top1_error {
        gauge!("wrn_dist_averaged_test_top1_error").set(error);
    }
}

/// Publishes a save of rank 0.
pub(crate) fn export_checkpoint(record: &CheckpointRecord) {
    counter!("wrn_dist_checkpoints_total").increment(record.error.is_none().into());
    counter!("wrn_dist_failed_checkpoints_total").increment(record.error.is_some().into());
    histogram!("wrn_dist_checkpoint_stall_seconds").record(record.stall_seconds);
}
