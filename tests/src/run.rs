//! A temporary folder with a data set and a configuration, and runs of `wrn-dist train` in it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Outcome, wrn_dist, wrn_dist_in_session};
use crate::dataset::{FashionMnist, write_fashion_mnist};

/// Everything that several runs of one configuration share.
pub struct Experiment {
    folder: TempDir,
    config: PathBuf,
}

impl Experiment {
    /// Writes the data set and `sections` of YAML, to which the section `data` and a seed are added.
    ///
    /// # Panics
    /// When the temporary folder is not writable.
    #[must_use]
    pub fn new(sizes: FashionMnist, sections: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        write_fashion_mnist(folder.path(), sizes);
        let config = folder.path().join("run.yaml");
        let data = format!(
            "seed: 7\ndata: {{kind: fashion-mnist, path: {}, pad_to: 32, channels: 3, workers: 1}}\n",
            folder.path().display()
        );
        fs::write(&config, data + sections).expect("the temporary folder is writable");
        Experiment { folder, config }
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &str {
        self.config.to_str().expect("temporary paths are UTF-8")
    }

    /// A path in the experiment's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `wrn-dist train` into the run folder `name`.
    #[must_use]
    pub fn train(&self, name: &str, ranks: usize, more: &[&str]) -> Outcome {
        self.train_by(wrn_dist, name, ranks, more)
    }

    /// As [`Experiment::train`], in a session of its own.
    #[must_use]
    pub fn train_in_session(&self, name: &str, ranks: usize, more: &[&str]) -> Outcome {
        self.train_by(wrn_dist_in_session, name, ranks, more)
    }

    fn train_by(
        &self,
        run: fn(usize, &[&str]) -> Outcome,
        name: &str,
        ranks: usize,
        more: &[&str],
    ) -> Outcome {
        let out = self.path(name);
        let out = out.to_str().expect("temporary paths are UTF-8");
        let mut arguments = vec!["train", "--config", self.config(), "--out", out];
        arguments.extend(more);
        run(ranks, &arguments)
    }

    /// Bytes of the tensors in the latest checkpoint of run `name`: weights with statistics, and optimizer.
    ///
    /// # Panics
    /// When there is no checkpoint.
    #[must_use]
    pub fn checkpoint(&self, name: &str) -> [Vec<u8>; 2] {
        let folder = self.checkpoint_folder(name);
        ["weights.safetensors", "optimizer.safetensors"]
            .map(|file| fs::read(folder.join(file)).expect("a checkpoint is complete"))
    }

    /// Folder of the latest checkpoint of run `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn checkpoint_folder(&self, name: &str) -> PathBuf {
        let folder = self.path(name).join("checkpoints");
        let latest = fs::read_to_string(folder.join("latest")).expect("the run has a checkpoint");
        folder.join(latest)
    }

    /// Lines of `metrics.jsonl` of run `name`.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[must_use]
    pub fn metrics(&self, name: &str) -> Vec<Value> {
        read_lines(&self.path(name).join("metrics.jsonl"))
    }
}

fn read_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .expect("the run has metrics")
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect()
}

/// The lines without the fields that measure time, which no two runs share.
#[must_use]
pub fn metrics_without_times(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        if let Some(fields) = line.as_object_mut() {
            fields.retain(|name, _| {
                !matches!(
                    name.as_str(),
                    "images_per_second"
                        | "seconds"
                        | "exchange"
                        | "stragglers"
                        | "train_seconds"
                        | "test_seconds"
                )
            });
        }
    }
    lines
}
