//! The exchange of gradients goes on while backward does. Durations are `wrn-dist bench step`'s business;
//! here only what must hold on any machine is asserted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use end_to_end::{Experiment, FashionMnist, mpirun_or_skip, wrn_dist};
use serde_json::Value;

const DELAY_MS: f64 = 10.0;

fn bench(experiment: &Experiment, more: &[&str]) -> Value {
    let mut arguments =
        vec!["bench", "step", "--json", "--steps", "9", "--warmup", "2", "--config", experiment.config()];
    arguments.extend(["--set", "comm.first_bucket_kib=16", "--set", "comm.bucket_kib=16"]);
    arguments.extend(more);
    let outcome = wrn_dist(2, &arguments).expect_code(0);
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
}

fn number(bench: &Value, kind: &str, key: &str) -> f64 {
    bench[kind][key].as_f64().unwrap_or_else(|| panic!("{kind}.{key} in {bench:#}"))
}

#[test]
fn the_first_bucket_leaves_early_and_backward_hides_a_slow_network() {
    if !mpirun_or_skip() {
        return;
    }
    let experiment = Experiment::new(
        FashionMnist { train: 128, test: 10 },
        "model: {arch: wrn-16-1}
train: {epochs: 1, global_batch: 64, threads: 1}
schedule: {kind: constant, rate: 0.1}
",
    );
    let delay = DELAY_MS.to_string();
    let hidden = bench(&experiment, &["--delay-ms", &delay]);
    let exposed = bench(&experiment, &["--delay-ms", &delay, "--set", "comm.overlap=false"]);

    let buckets = number(&hidden, "with_exchange", "buckets");
    assert!(buckets >= 10.0, "{buckets} buckets");
    let share = |bench| number(bench, "with_exchange", "first_exchange_at_share_of_backward");
    assert!(
        share(&hidden) < 1.0,
        "with overlap the first all-reduce starts within backward: {}",
        share(&hidden)
    );
    assert!(share(&exposed) >= 1.0, "without, after it: {}", share(&exposed));

    let all_delays = buckets * DELAY_MS / 1e3;
    let communication = |bench| number(bench, "with_exchange", "exposed_communication");
    assert!(communication(&exposed) >= all_delays, "{} < {all_delays}", communication(&exposed));
    assert!(communication(&hidden) < all_delays, "{} >= {all_delays}", communication(&hidden));
    assert!(number(&hidden, "without_exchange", "exposed_communication") < DELAY_MS / 1e3);
}
