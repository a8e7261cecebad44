//! `wrn-dist bench step`

use std::num::NonZeroU32;
use std::time::Duration;

use trainer::EXIT_USAGE;

use super::super::{ConfigArguments, complain, show};

#[derive(clap::Args)]
pub(crate) struct Arguments {
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

/// No network takes longer for a bucket.
const LONGEST_DELAY_MS: f64 = 10_000.0;

pub(crate) fn run(step: Arguments) -> i32 {
    if !(0.0..=LONGEST_DELAY_MS).contains(&step.delay_ms) {
        complain(&format!("--delay-ms {}: expected 0 to {LONGEST_DELAY_MS} milliseconds", step.delay_ms));
        return EXIT_USAGE;
    }
    let options = trainer::BenchOptions {
        config: step.config.config,
        overrides: step.config.overrides,
        steps: step.steps.get() as usize,
        warmup: step.warmup as usize,
        delay: Duration::from_secs_f64(step.delay_ms / 1e3),
    };
    match trainer::bench_step(&options) {
        Ok(None) => 0,
        Ok(Some(bench)) => {
            show(&if step.json { format!("{}\n", serde_json::json!(bench)) } else { bench.table() })
        }
        Err(error) => error.exit_code(),
    }
}
