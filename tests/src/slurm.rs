//! A real Slurm on this machine, with two nodes: `tests/slurm/cluster.sh` started and stopped, jobs submitted by the
//! scripts of `launch/slurm`, and what Slurm says of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command::{Outcome, binary, run_quickly, skip};
use crate::launchers::free_port;

/// Within this time a job must come to the state that is waited for.
const PATIENCE: Duration = Duration::from_secs(240);
/// Exit code of the script where a machine cannot have a cluster.
const CANNOT: i32 = 3;

/// The cluster, which ends with this value.
pub struct SlurmCluster {
    folder: TempDir,
    binary: String,
}

/// A job, by its number or an array's number and the task's.
#[derive(Clone, Debug)]
pub struct SlurmJob(String);

impl SlurmCluster {
    /// Starts the daemons; `None`, said loudly, where that cannot be.
    ///
    /// # Panics
    /// When a cluster could be, but does not start.
    #[must_use]
    pub fn start_or_skip() -> Option<SlurmCluster> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let cluster = SlurmCluster { folder, binary: binary().display().to_string() };
        let mut start = Command::new("bash");
        start.arg(script()).arg("start").arg(cluster.folder.path());
        start.args((0..3).map(|_| free_port().to_string()));
        // Its daemons keep standard output and error open.
        let log = fs::File::create(cluster.path("start.log")).expect("the temporary folder is writable");
        let status =
            start.stdin(std::process::Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let code = status.status().expect("bash can be started").code();
        let said = fs::read_to_string(cluster.path("start.log")).unwrap_or_default();
        match code {
            Some(0) => Some(cluster),
            Some(CANNOT) => {
                skip("slurm", said.trim());
                None
            }
            _ => panic!("the cluster does not start: {said}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program under test.
    #[must_use]
    pub fn binary(&self) -> &str {
        &self.binary
    }

    /// Runs a command of Slurm, or another that needs the cluster.
    #[must_use]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("SLURM_CONF", self.path("slurm.conf"))
            .env("BINARY", &self.binary)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        run_quickly(command)
    }

    /// Submits a script of `launch/slurm` for `wrn-dist` with `arguments`; `options` are those of `sbatch`.
    ///
    /// # Panics
    /// When Slurm does not take it.
    #[must_use]
    pub fn submit(&self, script: &str, options: &[&str], arguments: &[&str]) -> SlurmJob {
        let script = format!("launch/slurm/{script}");
        let output = format!("--output={}", self.path("job-%j.log").display());
        let fixed = ["--parsable", &output, "--time=10", "--cpus-per-task=1"];
        let submitted =
            self.run("sbatch", &[&fixed[..], options, &[&script], arguments].concat()).expect_code(0);
        SlurmJob(submitted.stdout.trim().to_owned())
    }

    /// A field of what Slurm knows of a job, such as `JobState`.
    ///
    /// # Panics
    /// When it knows nothing of the job.
    #[must_use]
    pub fn field(&self, job: &SlurmJob, name: &str) -> String {
        let shown = self.run("scontrol", &["--oneliner", "show", "job", &job.0]).expect_code(0);
        let fields = shown.stdout.split_whitespace().filter_map(|field| field.split_once('='));
        let value = fields.into_iter().find(|(field, _)| *field == name).map(|(_, value)| value.to_owned());
        value.unwrap_or_else(|| panic!("no {name} in {}", shown.stdout))
    }

    /// Waits until `done`, which is asked again and again.
    ///
    /// # Panics
    /// When it takes too long, with what is known of the job.
    pub fn wait(&self, job: &SlurmJob, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            if begin.elapsed() > PATIENCE {
                let shown = self.run("scontrol", &["show", "job", &job.0]);
                panic!("{what} not within {PATIENCE:?}: {}\n{}", shown.stdout, self.log(job));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of a job, which must be a good one.
    ///
    /// # Panics
    /// Otherwise, with its log.
    pub fn wait_for_success(&self, job: &SlurmJob) {
        let over =
            || matches!(&*self.field(job, "JobState"), "COMPLETED" | "FAILED" | "CANCELLED" | "TIMEOUT");
        self.wait(job, "the end of the job", over);
        assert_eq!(self.field(job, "JobState"), "COMPLETED", "{}", self.log(job));
    }

    /// Everything that a job has written.
    #[must_use]
    pub fn log(&self, job: &SlurmJob) -> String {
        fs::read_to_string(self.path(&format!("job-{}.log", self.field(job, "JobId")))).unwrap_or_default()
    }
}

impl SlurmJob {
    /// The number, as Slurm's commands take it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0
    }

    /// A task of this array.
    #[must_use]
    pub fn task(&self, index: usize) -> SlurmJob {
        SlurmJob(format!("{}_{index}", self.0))
    }
}

impl Drop for SlurmCluster {
    fn drop(&mut self) {
        let _ = self.run("scancel", &["--user=root"]);
        let _ =
            self.run("bash", &[&script().to_string_lossy(), "stop", &self.folder.path().to_string_lossy()]);
    }
}

fn script() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/slurm/cluster.sh").into()
}
