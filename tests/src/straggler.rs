//! A rank that is slower than the others: a run of many equal steps, and what it has to say about such a rank.

use serde_json::Value;

use crate::command::Outcome;
use crate::dataset::FashionMnist;
use crate::run::Experiment;

/// A rank is named within so many steps.
const NAMED_WITHIN: u64 = 20;

/// So many steps of 64 images, which nothing comes between.
#[must_use]
pub fn steady_experiment(steps: usize) -> Experiment {
    Experiment::new(
        FashionMnist { train: steps * 64, test: 2 },
        "model: {arch: wrn-10-1}
train: {epochs: 1, global_batch: 64, threads: 1}
schedule: {kind: constant, rate: 0.05}
",
    )
}

/// Checks that `victim`, slow from the step `slow_from` on, was named in time, with one of `phases`, and no other rank
/// ever. Gives what the steps' lines say of it.
///
/// # Panics
/// When it was not so.
#[must_use]
pub fn expect_straggler(
    outcome: &Outcome,
    metrics: &[Value],
    victim: usize,
    slow_from: u64,
    phases: &[&str],
) -> Vec<Value> {
    let mut named_at = None;
    let mut found = Vec::new();
    for step in metrics.iter().filter(|line| line["kind"] == "step") {
        for straggler in step["stragglers"].as_array().into_iter().flatten() {
            assert_eq!(straggler["rank"], victim, "{step}");
            let phase = straggler["phase"].as_str().unwrap_or_default();
            assert!(phases.contains(&phase), "{phase:?} is none of {phases:?}: {step}");
            let _ = named_at.get_or_insert(step["step"].as_u64().unwrap_or_default());
            found.push(straggler.clone());
        }
    }
    let in_time = named_at.is_some_and(|step| (slow_from..=slow_from + NAMED_WITHIN).contains(&step));
    assert!(in_time, "rank {victim} is slow from step {slow_from} on, named at {named_at:?}");
    let said = format!("rank {victim} on ");
    let sentences = outcome.stdout.lines().filter(|line| line.contains(" is slow: "));
    assert!(sentences.clone().all(|sentence| sentence.starts_with(&said)), "{}", outcome.stdout);
    assert!(sentences.count() > 0, "{}", outcome.stdout);
    found
}
