//! Progress for a person, on rank 0: a bar when the output is a terminal, else a line now and then.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::records::{EpochRecord, StepRecord};

/// Pause between lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// The display of one run; silent on ranks other than 0.
pub(crate) struct Progress {
    display: Display,
    epochs: u32,
    steps_per_epoch: u64,
}

enum Display {
    Silent,
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    pub(crate) fn new(speaks: bool, epochs: u32, steps_per_epoch: u64) -> Self {
        let display = if !speaks {
            Display::Silent
        } else if std::io::stderr().is_terminal() {
            Display::Bar(
                ProgressBar::new(steps_per_epoch).with_style(
                    ProgressStyle::with_template("{prefix} {bar:32} {pos}/{len} {msg} {eta}")
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                ),
            )
        } else {
            Display::Lines { last: Instant::now() }
        };
        Progress { display, epochs, steps_per_epoch }
    }

    /// A sentence of its own.
    pub(crate) fn say(&self, sentence: &str) {
        match &self.display {
            Display::Silent => {}
            Display::Bar(bar) => bar.suspend(|| print_line(sentence)),
            Display::Lines { .. } => print_line(sentence),
        }
    }

    /// Something went wrong that does not end the run.
    pub(crate) fn warn(&self, sentence: &str) {
        let print = || print_warning(sentence);
        match &self.display {
            Display::Silent => {}
            Display::Bar(bar) => bar.suspend(print),
            Display::Lines { .. } => print(),
        }
    }

    pub(crate) fn step(&mut self, record: &StepRecord) {
        let within = record.step - u64::from(record.epoch - 1) * self.steps_per_epoch;
        let loss = record.loss.map_or_else(|| "not finite".into(), |loss| format!("{loss:.4}"));
        let text = format!("loss {loss}  {:.0} images/s", record.images_per_second);
        match &mut self.display {
            Display::Silent => {}
            Display::Bar(bar) => {
                bar.set_prefix(format!("epoch {}/{}", record.epoch, self.epochs));
                bar.set_message(text);
                bar.set_position(within);
            }
            Display::Lines { last } => {
                if last.elapsed() >= LINE_INTERVAL {
                    *last = Instant::now();
                    print_line(&format!(
                        "epoch {}/{}  step {within}/{}  {text}",
                        record.epoch, self.epochs, self.steps_per_epoch
                    ));
                }
            }
        }
    }

    pub(crate) fn epoch(&self, record: &EpochRecord) {
        let mut test = match (record.test_loss, record.test_top1_error) {
            (Some(loss), Some(error)) => format!("test loss {loss:.4} error {:.2} %", 100.0 * error),
            _ => "not evaluated".into(),
        };
        if let Some(error) = record.averaged_test_top1_error {
            test += &format!(" ({:.2} % with averaged weights)", 100.0 * error);
        }
        let train = match (record.train_loss, record.train_top1_error) {
            (Some(loss), Some(error)) => format!("train loss {loss:.4} error {:.2} %", 100.0 * error),
            _ => "all steps were left out".into(),
        };
        let skipped = match record.skipped_samples + record.test_skipped_samples.unwrap_or(0) {
            0 => String::new(),
            skipped => format!("  {skipped} images could not be decoded"),
        };
        self.say(&format!(
            "epoch {}/{}  {train}  {test}  {:.0} images/s{skipped}",
            record.epoch, self.epochs, record.images_per_second
        ));
    }

    /// Takes the bar off the terminal.
    pub(crate) fn finish(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

/// To standard error, whether or not anybody reads it; for what has no [`Progress`].
pub(crate) fn print_warning(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {sentence}");
}

/// A reader that has gone away, as `head` does, is no reason to end a run.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
