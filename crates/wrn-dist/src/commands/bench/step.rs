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

pub(crate) fn run(step: Arguments) -> i32 {
    let Ok(delay) = Duration::try_from_secs_f64(step.delay_ms / 1e3) else {
        complain(&format!("--delay-ms {}: expected 0 or more milliseconds", step.delay_ms));
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
            show(&if step.json { format!("{}\n", serde_json::json!(bench)) } else { bench.table() });
            0
        }
        Err(error) => error.exit_code(),
    }
}
