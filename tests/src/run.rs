//! A temporary folder with a data set and a configuration, and runs of `wrn-dist train` in it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::command::{
    Outcome, Running, start_wrn_dist, wrn_dist, wrn_dist_in_environment, wrn_dist_in_session,
};
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

    /// As [`Experiment::train_in_session`], with these environment variables on every rank.
    #[must_use]
    pub fn train_in_environment(
        &self,
        name: &str,
        ranks: usize,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Outcome {
        let run = |ranks, arguments: &[&str]| wrn_dist_in_environment(ranks, arguments, environment);
        self.train_by(run, name, ranks, more)
    }

    /// As [`Experiment::train`], left running, with more variables in its environment.
    #[must_use]
    pub fn start(&self, name: &str, ranks: usize, more: &[&str], environment: &[(&str, String)]) -> Running {
        self.train_by(|ranks, arguments| start_wrn_dist(ranks, arguments, environment), name, ranks, more)
    }

    /// Trains until the evaluation after step `step` is under way, and then asks the last rank to stop.
    #[must_use]
    pub fn stop_in_evaluation(&self, name: &str, ranks: usize, step: u64, more: &[&str]) -> Outcome {
        let mut running = self.start(name, ranks, more, &[]);
        running.wait_until("the evaluation began", |_| self.steps_so_far(name) >= step);
        running.signal_rank(ranks - 1, "USR1");
        running.wait()
    }

    fn train_by<R>(
        &self,
        run: impl FnOnce(usize, &[&str]) -> R,
        name: &str,
        ranks: usize,
        more: &[&str],
    ) -> R {
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

    /// Changes `state.json` of the latest checkpoint of run `name`, whose checksums fit afterwards, too.
    ///
    /// # Panics
    /// When there is no checkpoint.
    pub fn change_state(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let folder = self.checkpoint_folder(name);
        let read = |file: &str| fs::read_to_string(folder.join(file)).expect("a checkpoint is complete");
        let (text, sums) = (read("state.json"), read("SHA256SUMS"));
        let mut state: Value = serde_json::from_str(&text).expect("the state is JSON");
        change(&mut state);
        let changed = state.to_string();
        let sum = |text: &str| -> String {
            Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        for (file, text) in
            [("state.json", &changed), ("SHA256SUMS", &sums.replace(&sum(&text), &sum(&changed)))]
        {
            fs::write(folder.join(file), text).expect("the checkpoint is writable");
        }
    }

    /// Lines of `metrics.jsonl` of run `name`, but for those of checkpoints, of which two runs that are otherwise
    /// equal may have others.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[must_use]
    pub fn metrics(&self, name: &str) -> Vec<Value> {
        self.all_metrics(name).into_iter().filter(|line| line["kind"] != "checkpoint").collect()
    }

    /// The lines of checkpoints of run `name`.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[must_use]
    pub fn saves(&self, name: &str) -> Vec<Value> {
        self.all_metrics(name).into_iter().filter(|line| line["kind"] == "checkpoint").collect()
    }

    fn all_metrics(&self, name: &str) -> Vec<Value> {
        fs::read_to_string(self.path(name).join("metrics.jsonl"))
            .expect("the run has metrics")
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect()
    }

    /// The last step that run `name` has written down; 0 before there is one.
    #[must_use]
    pub fn steps_so_far(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.path(name).join("metrics.jsonl")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["kind"] == "step")
            .filter_map(|line| line["step"].as_u64())
            .max()
            .unwrap_or(0)
    }
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
                        | "ahead"
                        | "train_seconds"
                        | "test_seconds"
                )
            });
        }
    }
    lines
}
