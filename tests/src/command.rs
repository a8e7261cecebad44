//! Starts programs with a time limit, and says loudly what could not be run.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No command of the quick suite takes longer on two cores.
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// Nor does one of the long tests.
const LONG_TIME_LIMIT: Duration = Duration::from_secs(3600);

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; `None` when it was killed by a signal.
    pub code: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
    /// Wall time.
    pub duration: Duration,
    /// Process id.
    pid: u32,
}

impl Outcome {
    /// The outcome itself, if the exit code is `code`.
    ///
    /// # Panics
    /// Otherwise, with the program's output.
    #[must_use]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The processes that are still there of a program that ran in a session of its own.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.filter_map(|process| alive_in_session(&process.path(), self.pid)).collect()
    }
}

/// The command of a process if it belongs to a session and has not ended.
fn alive_in_session(process: &Path, session: u32) -> Option<String> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // Behind the name, which may hold anything: state, parent, process group, session.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    (!ended && fields.get(3)?.parse() == Ok(session)).then_some(stat)
}

/// The binary under test, built by the same `cargo` profile as this program, in the folder above tests'.
pub(crate) fn binary() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows its own path");
    let mut places = this.ancestors().skip(1).take(2).map(|folder| folder.join("wrn-dist"));
    places.find(|place| place.is_file()).unwrap_or_else(|| {
        panic!("there is no wrn-dist near {}: run `cargo build --release --workspace` first", this.display())
    })
}

/// Runs `wrn-dist` on `ranks` ranks: directly when it is one, else under `mpirun`.
#[must_use]
pub fn wrn_dist(ranks: usize, arguments: &[&str]) -> Outcome {
    run(command(ranks, arguments), TIME_LIMIT)
}

/// As [`wrn_dist`], for the long tests.
#[must_use]
pub fn wrn_dist_for_long(ranks: usize, arguments: &[&str]) -> Outcome {
    run(command(ranks, arguments), LONG_TIME_LIMIT)
}

/// As [`wrn_dist`], in a session of its own, so that [`Outcome::left_behind`] can tell whether it is gone.
#[must_use]
pub fn wrn_dist_in_session(ranks: usize, arguments: &[&str]) -> Outcome {
    wrn_dist_in_environment(ranks, arguments, &[])
}

/// As [`wrn_dist_in_session`], with these environment variables on every rank.
#[must_use]
pub fn wrn_dist_in_environment(ranks: usize, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
    let wanted = command(ranks, arguments);
    let mut command = Command::new("setsid");
    command.arg(wanted.get_program()).args(wanted.get_args());
    command.envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.envs(environment.iter().copied());
    run(command, TIME_LIMIT)
}

fn command(ranks: usize, arguments: &[&str]) -> Command {
    let mut command = if ranks == 1 {
        Command::new(binary())
    } else {
        let mut mpirun = Command::new("mpirun");
        mpirun
            .args(["--oversubscribe", "--bind-to", "none", "-np", &ranks.to_string()])
            .arg(binary())
            // Open MPI refuses root without these; elsewhere they change nothing.
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        mpirun
    };
    command.args(arguments);
    command
}

/// Runs a Python script with the interpreter found by [`python_or_skip`].
#[must_use]
pub fn run_python(script: &Path, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("python3");
    command.arg(script).args(arguments);
    run(command, TIME_LIMIT)
}

/// Runs a command of the quick suite.
pub(crate) fn run_quickly(command: Command) -> Outcome {
    run(command, TIME_LIMIT)
}

fn run(mut command: Command, time_limit: Duration) -> Outcome {
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
    let stdout = read_in_background(child.stdout.take().expect("piped"));
    let stderr = read_in_background(child.stderr.take().expect("piped"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if begin.elapsed() > time_limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} still ran after {time_limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |reader: std::thread::JoinHandle<String>| reader.join().expect("the reader does not panic");
    Outcome {
        code: status.code(),
        stdout: text(stdout),
        stderr: text(stderr),
        duration: begin.elapsed(),
        pid: child.id(),
    }
}

fn read_in_background(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Says that a test did not run for lack of `part`; fails instead when the environment's `REQUIRE` names it.
///
/// # Panics
/// When the part is required.
pub fn skip(part: &str, reason: &str) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == part), "{part} is required, but {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {part}: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(log) = std::env::var_os("WRN_DIST_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        if let Ok(mut file) = file {
            let _ = file.write_all(line.as_bytes());
        }
    }
}

/// Whether `mpirun` is there; says so loudly when it is not.
#[must_use]
pub fn mpirun_or_skip() -> bool {
    let found = Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        skip("mpi", "mpirun is not installed");
    }
    found
}

/// Whether `python3` has PyTorch, numpy and safetensors, which serve as oracle; says so loudly when not.
#[must_use]
pub fn python_or_skip() -> bool {
    python_module_or_skip("numpy")
}

/// Whether `python3` has PyTorch, safetensors and `module`; says so loudly when not.
#[must_use]
pub fn python_module_or_skip(module: &str) -> bool {
    let found = Command::new("python3")
        .args(["-c", &format!("import torch, safetensors, {module}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        skip("python", &format!("python3 lacks torch, safetensors or {module}"));
    }
    found
}
