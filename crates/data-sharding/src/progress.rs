//! What a long command tells its user while it works: a bar on a terminal, and warnings. Measures nothing.

use std::borrow::Cow;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::text::printable;

/// Shows how far a long operation is. Bars appear on standard error, and only where that is a terminal;
/// warnings are lines on standard error anywhere.
pub struct Progress {
    bar: ProgressBar,
    silent: bool,
}

impl Progress {
    /// Shows bars and warnings.
    #[must_use]
    pub fn visible() -> Self {
        Progress { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()), silent: false }
    }

    /// Shows nothing.
    #[must_use]
    pub fn silent() -> Self {
        Progress { bar: ProgressBar::hidden(), silent: true }
    }

    /// Starts a stage of `bytes` bytes.
    pub(crate) fn stage(&self, what: impl Into<Cow<'static, str>>, bytes: u64) {
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} [{wide_bar:.cyan}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.bar.reset();
        self.bar.set_length(bytes);
        self.bar.set_message(what);
    }

    /// So many bytes of the stage are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// So many bytes of the stage are done in all.
    pub(crate) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Ends the last stage.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Tells the user of something that does not stop the work.
    pub(crate) fn warn(&self, sentence: &str) {
        if !self.silent {
            self.bar.suspend(|| eprintln!("warning: {}", printable(sentence)));
        }
    }
}
