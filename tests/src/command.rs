//! Starts programs with a time limit, and says loudly what could not be run.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
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
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary() -> PathBuf {
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

fn run(command: Command, time_limit: Duration) -> Outcome {
    Running::start(command).wait_within(time_limit)
}

/// Starts `wrn-dist` on `ranks` ranks and leaves it running. `environment` has more variables for it.
#[must_use]
pub fn start_wrn_dist(ranks: usize, arguments: &[&str], environment: &[(&str, String)]) -> Running {
    let mut command = command(ranks, arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    Running::start(command)
}

/// As [`start_wrn_dist`], by `launch/mpirun/one-host.sh`.
#[must_use]
pub fn start_one_host_script(ranks: usize, arguments: &[&str]) -> Running {
    // Where the tests run in the background of a shell, Ctrl-C is ignored, which bash would inherit for good.
    let mut command = Command::new("env");
    command
        .args(["--default-signal=INT", "bash"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../launch/mpirun/one-host.sh"))
        .arg(ranks.to_string())
        .args(arguments)
        .env("BINARY", binary());
    Running::start(command)
}

/// A program that has been started. Dropped before its end, it is killed.
pub struct Running {
    child: Child,
    begin: Instant,
    command: String,
    stdout: Output,
    stderr: Output,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let begin = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
        let stdout = Output::read(child.stdout.take().expect("piped"));
        let stderr = Output::read(child.stderr.take().expect("piped"));
        Running { child, begin, command: format!("{command:?}"), stdout, stderr }
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr_so_far(&self) -> String {
        self.stderr.text()
    }

    /// Process ids of its ranks, in their order: its own where it is the only one, else those of `mpirun`'s children.
    #[must_use]
    pub fn rank_ids(&self) -> Vec<u32> {
        let mut ranks: Vec<(usize, u32)> = std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|it| self.rank(&it.path()))
            .collect();
        ranks.sort_unstable();
        match ranks.is_empty() {
            true => vec![self.child.id()],
            false => ranks.into_iter().map(|(_, id)| id).collect(),
        }
    }

    /// Rank and id of a process that is a rank of this job.
    fn rank(&self, process: &Path) -> Option<(usize, u32)> {
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let environment =
            std::fs::read(process.join("environ")).ok().filter(|_| parent == self.child.id())?;
        let mut variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        let rank = variables.find_map(|it| it.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok())?;
        Some((rank, process.file_name()?.to_str()?.parse().ok()?))
    }

    /// Sends `signal`, such as `USR1`, to one rank.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn signal_rank(&self, rank: usize, signal: &str) {
        send(signal, self.rank_ids()[rank]);
    }

    /// Sends `signal` to the program that was started.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: &str) {
        send(signal, self.child.id());
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// When the program ends before, or after two minutes.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !condition(self) {
            let ended = self.child.try_wait().expect("a child can be waited for");
            assert!(
                ended.is_none(),
                "it ended before {what}:\n{}\n{}",
                self.stdout.text(),
                self.stderr.text()
            );
            assert!(begin.elapsed() < Duration::from_secs(120), "never {what}:\n{}", self.stderr.text());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes longer than any command of the quick suite.
    #[must_use]
    pub fn wait(self) -> Outcome {
        self.wait_within(TIME_LIMIT)
    }

    fn wait_within(mut self, time_limit: Duration) -> Outcome {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(self.begin.elapsed() <= time_limit, "{} still ran after {time_limit:?}", self.command);
            std::thread::sleep(Duration::from_millis(5));
        };
        Outcome {
            code: status.code(),
            stdout: self.stdout.whole(),
            stderr: self.stderr.whole(),
            duration: self.begin.elapsed(),
            pid: self.child.id(),
        }
    }
}

fn send(signal: &str, id: u32) {
    let sent = Command::new("kill").args([format!("-{signal}"), id.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill -{signal} {id}");
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program writes, read as it comes.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(len @ 1..) = pipe.read(&mut chunk) {
                shared.lock().expect("no reader panics").extend_from_slice(&chunk[..len]);
            }
        });
        Output { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    /// Everything, once the pipe is closed.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        self.text()
    }
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
