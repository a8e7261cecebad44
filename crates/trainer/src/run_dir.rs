//! The folder of one run and the files that describe it: `config.yaml`, `run.json`. Metrics and checkpoints
//! have modules of their own.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use allreduce::CommThread;
use data_sharding::own_file;
use serde::Serialize;

use crate::checkpoint::replace_file;
use crate::device::Compute;
use crate::error::Error;
use crate::files;
use crate::flat::FlatLayout;
use crate::plan::Plan;

/// Paths within a run's folder.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    root: PathBuf,
}

impl RunDir {
    pub(crate) fn new(root: &Path) -> Self {
        RunDir { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    pub(crate) fn curves(&self) -> PathBuf {
        self.root.join("report").join("curves.svg")
    }

    /// What each rank was doing when a run failed.
    pub(crate) fn flight(&self) -> PathBuf {
        self.root.join("flight")
    }

    /// Creates the folder and keeps other processes out of it until the lock is dropped.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        files::create_folder(&self.root).map_err(Error::file("create", &self.root))?;
        let path = self.root.join("lock");
        let opened = files::expect_file(&path).and_then(|()| own_file::open_to_append(&path));
        let file = opened.map_err(Error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Other(format!(
                "{} is in use by another run; wait for its end or name another --out",
                self.root.display()
            ))),
            Err(TryLockError::Error(reason)) => {
                tracing::warn!(%reason, "this file system has no locks: nothing keeps a second run out");
                Ok(file)
            }
        }
    }

    /// Writes what describes the run.
    pub(crate) fn describe(
        &self,
        plan: &Plan,
        compute: Compute,
        comm: &CommThread,
        layout: &FlatLayout,
    ) -> Result<(), Error> {
        let report = self.root.join("report");
        files::create_folder(&report).map_err(Error::file("create", &report))?;
        let versions = torch_ext::runtime::versions();
        let record = RunRecord {
            wrn_dist: env!("CARGO_PKG_VERSION"),
            libtorch: versions.torch,
            cuda: versions.cuda,
            communicator: comm.description().to_owned(),
            host: comm.topology().host.clone(),
            command: std::env::args().collect(),
            world_size: comm.topology().world_size,
            device: format!("{:?}", compute.device),
            threads: compute.threads,
            seed: plan.config.seed,
            parameters: plan.network.parameter_count(),
            steps_per_epoch: plan.steps_per_epoch,
            meaning_hash: plan.config.meaning_hash(),
            train_data: DataRecord {
                samples: plan.data.train.len(),
                fingerprint: plan.data.train.fingerprint().to_owned(),
            },
            test_data: DataRecord {
                samples: plan.data.test.len(),
                fingerprint: plan.data.test.fingerprint().to_owned(),
            },
            layout_hash: crate::checkpoint::checksum(layout.description().as_bytes()),
        };
        let json = serde_json::to_vec_pretty(&record).map_err(|error| Error::Other(error.to_string()))?;
        replace_file(&self.root.join("run.json"), &json)?;
        replace_file(&self.root.join("config.yaml"), plan.config.to_yaml().as_bytes())?;
        Ok(())
    }
}

/// `run.json`
#[derive(Serialize)]
struct RunRecord {
    wrn_dist: &'static str,
    libtorch: String,
    cuda: Option<String>,
    communicator: String,
    host: String,
    command: Vec<String>,
    world_size: usize,
    device: String,
    threads: usize,
    seed: u64,
    parameters: u64,
    steps_per_epoch: u64,
    /// Hash of the configuration's keys that decide what is computed.
    meaning_hash: String,
    train_data: DataRecord,
    test_data: DataRecord,
    /// Hash of the segment table.
    layout_hash: String,
}

#[derive(Serialize)]
struct DataRecord {
    samples: usize,
    fingerprint: String,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::telemetry::MetricsFile;

    #[test]
    fn links_in_the_folder_of_another_run_lead_no_writing_to_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "mine").unwrap();
        let root = folder.path().join("run");
        fs::create_dir(&root).unwrap();
        let dir = RunDir::new(&root);
        for name in ["lock", "metrics.jsonl", "run.partial", "run.json"] {
            symlink(&precious, root.join(name)).unwrap();
        }
        let refused = dir.lock().unwrap_err().to_string();
        assert!(refused.contains("lock: it is a symbolic link"), "{refused}");
        let refused = MetricsFile::open(&dir.metrics(), 0, 0).map(drop).unwrap_err().to_string();
        assert!(refused.contains("metrics.jsonl: it is a symbolic link"), "{refused}");
        replace_file(&root.join("run.json"), b"{}").unwrap();
        assert_eq!(fs::read_to_string(precious).unwrap(), "mine");
        assert_eq!(fs::read_to_string(root.join("run.json")).unwrap(), "{}");
    }
}
