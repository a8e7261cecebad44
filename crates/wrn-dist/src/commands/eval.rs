//! `wrn-dist eval`

use std::path::PathBuf;

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// A checkpoint, or a run's folder for its latest one
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Look at four corners and the middle of each image, and at the same mirrored, and sum the logits
    #[arg(long)]
    ten_crop: bool,
}

pub(crate) fn run(arguments: &Arguments) -> i32 {
    let result = trainer::evaluate_checkpoint(
        &arguments.config.config,
        &arguments.config.overrides,
        &arguments.checkpoint,
        if arguments.ten_crop { trainer::Views::Ten } else { trainer::Views::One },
    );
    match result {
        Ok(None) => 0,
        Ok(Some(evaluation)) => {
            let top5 = match evaluation.top5_error() {
                Some(error) => format!(", top-5 error {:.2} %", 100.0 * error),
                None => String::new(),
            };
            let skipped = match evaluation.skipped {
                0 => String::new(),
                skipped => format!(", {skipped} of which could not be decoded"),
            };
            super::show(&format!(
                "{} test images{skipped}: loss {:.4}, top-1 error {:.2} % ({} right){top5}\n",
                evaluation.samples,
                evaluation.loss(),
                100.0 * evaluation.top1_error(),
                evaluation.top1_correct,
            ))
        }
        Err(error) => error.exit_code(),
    }
}
