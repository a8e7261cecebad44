//! Saving while training goes on: a thread for each save, and never two of them.

use std::fs::File;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::content::is_finite;
use super::retention::Keep;
use super::write::{Written, save};
use super::{CheckpointError, NamedTensor, NotFiniteTensor, Part, RunState, file_error};

/// Makes the tensors of a part, on the thread that writes them, from a copy that training cannot change.
pub(crate) type LazyTensors = Box<dyn FnOnce() -> Result<Vec<NamedTensor>, CheckpointError> + Send>;

/// Everything that one save needs.
pub(crate) struct Job {
    /// Folder of the checkpoints.
    pub(crate) folder: PathBuf,
    pub(crate) state: RunState,
    pub(crate) parts: Vec<(Part, LazyTensors)>,
    pub(crate) keep: Keep,
    /// Files whose lines up to this step must be on disk before the checkpoint is.
    pub(crate) earlier: Vec<File>,
}

/// How a save ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Completed steps that it is of.
    pub(crate) step: u64,
    pub(crate) result: Result<Written, CheckpointError>,
    /// From the beginning of the thread to its end.
    pub(crate) duration: Duration,
}

/// How often a waiting thread looks whether the other has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The save under way, if there is one.
#[derive(Default)]
pub(crate) struct Writer {
    under_way: Option<(u64, JoinHandle<Outcome>)>,
}

impl Writer {
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_none()
    }

    /// The step of the save under way.
    pub(crate) fn step(&self) -> Option<u64> {
        self.under_way.as_ref().map(|(step, _)| *step)
    }

    /// Begins a save. The one before must have been fetched by [`Writer::poll`] or [`Writer::wait`].
    pub(crate) fn start(&mut self, job: Job) -> Result<(), CheckpointError> {
        if !self.is_idle() {
            return Err(CheckpointError::Tensors("the save before has not ended".into()));
        }
        let (step, folder) = (job.state.step, job.folder.clone());
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || work(job));
        self.under_way =
            Some((step, thread.map_err(file_error("start a thread that writes checkpoints to", &folder))?));
        Ok(())
    }

    /// The outcome of a save that has ended since.
    pub(crate) fn poll(&mut self) -> Option<Outcome> {
        self.under_way.take_if(|(_, thread)| thread.is_finished()).map(|(step, thread)| {
            thread.join().unwrap_or_else(|_| Outcome {
                step,
                result: Err(CheckpointError::Tensors("the thread that writes panicked".into())),
                duration: Duration::ZERO,
            })
        })
    }

    /// As [`Writer::poll`], and waits for it for a while.
    pub(crate) fn wait(&mut self, at_most: Duration) -> Option<Outcome> {
        let begin = Instant::now();
        while let Some((_, thread)) = &self.under_way
            && !thread.is_finished()
            && begin.elapsed() < at_most
        {
            std::thread::sleep(LOOK_EVERY);
        }
        self.poll()
    }
}

/// A run that fails for another reason still completes the save that is under way.
impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((_, thread)) = self.under_way.take() {
            let _ = thread.join();
        }
    }
}

fn work(job: Job) -> Outcome {
    let begin = Instant::now();
    let Job { folder, state, parts, keep, earlier } = job;
    let step = state.step;
    let synced = earlier.iter().try_for_each(File::sync_data);
    let result = synced.map_err(file_error("sync the metrics that belong to", &folder)).and_then(|()| {
        let parts =
            parts.into_iter().map(|(part, tensors)| (part, tensors().and_then(|all| finite(all, step))));
        save(&folder, &state, parts, keep)
    });
    Outcome { step, result, duration: begin.elapsed() }
}

fn finite(tensors: Vec<NamedTensor>, step: u64) -> Result<Vec<NamedTensor>, CheckpointError> {
    match tensors.iter().find(|tensor| !is_finite(&tensor.values)) {
        Some(tensor) => Err(NotFiniteTensor { tensor: tensor.name.clone(), step }.into()),
        None => Ok(tensors),
    }
}
