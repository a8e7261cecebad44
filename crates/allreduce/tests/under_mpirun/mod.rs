//! Tests among real processes: a test binary starts itself under `mpirun`, and each rank plays a scenario.

use std::env;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SCENARIO: &str = "ALLREDUCE_TEST_SCENARIO";
/// Printed by each rank that got through a scenario.
const PASSED: &str = "this rank passed";
/// Longer than any scenario should take; a job that hangs is killed then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The body of each rank, in a test named `rank`; by itself it does nothing.
pub(crate) fn run_scenario(scenarios: &[(&str, fn())]) {
    let Ok(wanted) = env::var(SCENARIO) else { return };
    let (_, scenario) = scenarios.iter().find(|(name, _)| *name == wanted).unwrap();
    scenario();
    println!("{PASSED}");
}

/// How a job ended.
struct Outcome {
    exit_code: Option<i32>,
    output: String,
}

/// Environment variables.
pub(crate) type Environment<'a> = &'a [(&'a str, &'a str)];

/// Runs a scenario under `mpirun`; `None`, with a printed reason, where there is none.
fn mpirun(ranks: usize, scenario: &str, environment: Environment) -> Option<Outcome> {
    let job = Command::new("mpirun")
        .args(["--oversubscribe", "--bind-to", "none", "-np", &ranks.to_string()])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "rank", "--nocapture"])
        .env(SCENARIO, scenario)
        .envs(environment.iter().copied())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut job = match job {
        Ok(job) => job,
        Err(error) => {
            let required =
                env::var("REQUIRE").is_ok_and(|list| list.split(',').any(|word| word.trim() == "mpi"));
            assert!(!required, "REQUIRE names mpi, but mpirun does not start: {error}");
            log_skip(&format!("mpirun does not start: {error}"));
            return None;
        }
    };
    let readers = [collect(job.stdout.take().unwrap()), collect(job.stderr.take().unwrap())];
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = job.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            job.kill().unwrap();
            panic!("'{scenario}' on {ranks} ranks has not ended after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let output = readers.map(|reader| reader.join().unwrap()).concat();
    Some(Outcome { exit_code: status.code(), output })
}

/// Says so where `launch/test.sh` reads it: cargo hides the output of tests that pass.
fn log_skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED mpi: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(log) = env::var_os("WRN_DIST_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Every rank gets through the scenario.
pub(crate) fn all_ranks_pass(scenario: &str, rank_counts: &[usize], environment: Environment) {
    for &ranks in rank_counts {
        let Some(outcome) = mpirun(ranks, scenario, environment) else { return };
        let passed = outcome.output.matches(PASSED).count();
        assert_eq!((outcome.exit_code, passed), (Some(0), ranks), "'{scenario}':\n{}", outcome.output);
    }
}

/// The job ends, with this exit code if any, long before its ranks would by themselves. What it printed; nothing where
/// there is no `mpirun`.
pub(crate) fn job_ends(
    scenario: &str,
    ranks: usize,
    exit_code: Option<i32>,
    environment: Environment,
) -> String {
    let begin = Instant::now();
    let Some(outcome) = mpirun(ranks, scenario, environment) else { return String::new() };
    assert!(begin.elapsed() < Duration::from_secs(20), "'{scenario}' took {:?}", begin.elapsed());
    assert_ne!(outcome.exit_code, Some(0), "'{scenario}':\n{}", outcome.output);
    if exit_code.is_some() {
        assert_eq!(outcome.exit_code, exit_code, "'{scenario}':\n{}", outcome.output);
    }
    outcome.output
}
