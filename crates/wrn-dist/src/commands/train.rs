//! `wrn-dist train`

use std::path::PathBuf;
use std::str::FromStr;

use trainer::{EXIT_STOPPED, Fault, Finish, Resume, StopAfter, TrainOptions};

use super::ConfigArguments;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// The run's folder [default: runs/NAME-OF-THE-CONFIGURATION]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where to go on from: `auto` (the latest checkpoint in the run's folder, if any), `none`, or a path
    #[arg(long, value_name = "auto|none|PATH", default_value = "auto")]
    resume: String,
    /// Save and exit with code 75 after this epoch or step, as epoch:N or step:N; with 0 if the run is that far already
    #[arg(long, value_name = "epoch:N|step:N", value_parser = stop_after)]
    stop_after: Option<StopAfter>,
    /// Rehearse a failure: in this step a rank will panic, kill or stop itself, hang, exit, reorder its buckets,
    /// make a gradient nan, report a loss spike, become slow (its data comes late from then on) or flip-bit a weight
    #[arg(long, value_name = "STEP:RANK:KIND")]
    inject_fault: Option<Fault>,
}

fn stop_after(text: &str) -> Result<StopAfter, String> {
    fn number<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Option<T> {
        text.parse().ok().filter(|number| *number >= T::from(1))
    }
    match text.split_once(':') {
        Some(("epoch", count)) => number(count).map(StopAfter::Epoch),
        Some(("step", count)) => number(count).map(StopAfter::Step),
        _ => None,
    }
    .ok_or_else(|| "expected epoch:N or step:N with N of 1 or more".into())
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    let resume = match arguments.resume.as_str() {
        "auto" => Resume::Auto,
        "none" => Resume::None,
        path => Resume::Path(path.into()),
    };
    let options = TrainOptions {
        config: arguments.config.config,
        overrides: arguments.config.overrides,
        out: arguments.out,
        resume,
        stop_after: arguments.stop_after,
        inject_fault: arguments.inject_fault,
    };
    match trainer::train(&options) {
        Ok(Finish::Completed | Finish::Reached) => 0,
        Ok(Finish::Stopped) => EXIT_STOPPED,
        Err(error) => error.exit_code(),
    }
}
