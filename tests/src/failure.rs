//! What all failures of a rank have in common: the job ends within moments with an exit code that is not 0 and one
//! sentence, and leaves no process. Which sentence is the test's business.

use std::time::{Duration, Instant};

use crate::command::Outcome;

/// Start, three steps, a time-out of a few seconds and the end of all ranks, on a busy machine too.
pub const MOMENTS: Duration = Duration::from_secs(30);
/// A killed process may still be on its way out.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Checks how `what` ended, and gives the one sentence about it with the lines that belong to it.
///
/// # Panics
/// When it did not end as failures do.
#[must_use]
pub fn expect_failure(what: &str, outcome: &Outcome) -> String {
    let Outcome { code, stderr, duration, .. } = outcome;
    assert_ne!(*code, Some(0), "{what}:\n{stderr}");
    assert!(*duration < MOMENTS, "{what} took {duration:?}:\n{stderr}");
    expect_gone(what, || outcome.left_behind());
    the_sentence(what, stderr)
}

/// No process is left, or will be within a moment.
///
/// # Panics
/// When one is.
pub fn expect_gone(what: &str, left_behind: impl Fn() -> Vec<String>) {
    let begin = Instant::now();
    while !left_behind().is_empty() {
        assert!(begin.elapsed() < GONE_WITHIN, "{what} left {:?}", left_behind());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The one sentence about a failure with the lines that belong to it.
///
/// # Panics
/// When there is none, or more than one.
#[must_use]
pub fn the_sentence(what: &str, stderr: &str) -> String {
    // Open MPI has a line of prose that begins with the same word.
    let is_sentence = |line: &&str| line.starts_with("error:") || line.starts_with("error (");
    let sentences: Vec<_> = stderr.lines().filter(is_sentence).collect();
    assert_eq!(sentences.len(), 1, "{what}, printed once:\n{stderr}");
    let lines = stderr.lines().skip_while(|line| !is_sentence(line));
    let of_sentence = lines.enumerate().take_while(|(index, line)| *index == 0 || line.starts_with("  "));
    of_sentence.map(|(_, line)| format!("{line}\n")).collect()
}

/// The sentence has all of these parts.
///
/// # Panics
/// When it lacks one.
pub fn expect_parts(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "`{sentence}` lacks `{part}`");
    }
}
