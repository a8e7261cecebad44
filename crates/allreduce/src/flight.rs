//! What this rank is doing and did last: its step and phase, and its latest collectives. Kept in memory, sent
//! to rank 0 by the [control plane](crate::Control), and written to a file when the job fails.
//!
//! Only records; whether something takes too long is judged elsewhere.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{CommError, Topology};

/// Collectives that are remembered.
const COLLECTIVES: usize = 256;
/// Phases that are remembered: some ten steps of them.
const PHASES: usize = 64;

/// An operation that all ranks take part in, as far as it must be the same on each of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collective {
    /// What is done.
    pub kind: CollectiveKind,
    /// Of an all-reduce, index of the bucket.
    pub bucket: Option<usize>,
    /// Size of this rank's data; absent where ranks may bring different amounts.
    pub bytes: Option<usize>,
    /// Format of the elements; absent where they are bytes.
    pub dtype: Option<Cow<'static, str>>,
}

/// See the operations of [`Communicator`](crate::Communicator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectiveKind {
    /// Sum over all ranks.
    AllReduce,
    /// Sum over all ranks, of which each gets its shard.
    ReduceScatter,
    /// One rank's values for all.
    Broadcast,
    /// Every rank's bytes for all.
    AllGather,
    /// Waiting for each other.
    Barrier,
    /// Several operations as one, such as a measurement.
    Composite,
}

impl Collective {
    pub(crate) fn of_kind(kind: CollectiveKind) -> Self {
        Collective { kind, bucket: None, bytes: None, dtype: None }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let kind = match self.kind {
            CollectiveKind::AllReduce => "all-reduce",
            CollectiveKind::ReduceScatter => "reduce-scatter",
            CollectiveKind::Broadcast => "broadcast",
            CollectiveKind::AllGather => "all-gather",
            CollectiveKind::Barrier => "barrier",
            CollectiveKind::Composite => "composite operation",
        };
        out.write_str(kind)?;
        if let Some(bucket) = self.bucket {
            write!(out, " of bucket {bucket}")?;
        }
        if let Some(bytes) = self.bytes {
            write!(out, ", {bytes} bytes")?;
        }
        match &self.dtype {
            Some(dtype) => write!(out, " of {dtype}"),
            None => Ok(()),
        }
    }
}

/// What a rank is doing at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The step it is in, counted from 1; absent before the first one.
    pub step: Option<u64>,
    /// What it does there, as the trainer calls it.
    pub phase: Cow<'static, str>,
    /// Number of the collective that it is in, or was in last, counted from 1; 0 before the first one.
    pub collectives: u64,
    /// That collective. Where a device has several to do, the first of them.
    pub collective: Option<Collective>,
    /// Whether it is still under way.
    pub under_way: bool,
    /// For how long it has been, or how long ago it ended.
    pub collective_for: Duration,
}

/// The record of one rank. Clones are the same record.
#[derive(Clone, Debug)]
pub struct FlightRecorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    topology: Topology,
    record: Mutex<Record>,
}

/// Writes a file so that a reader finds the whole of it or none.
pub type WriteWhole = fn(&Path, &[u8]) -> io::Result<()>;

#[derive(Debug)]
struct Record {
    folder: Option<(PathBuf, WriteWhole)>,
    step: Option<u64>,
    phase: &'static str,
    phases: VecDeque<PhaseEntry>,
    begun: u64,
    collectives: VecDeque<CollectiveEntry>,
    failure: Option<CommError>,
}

#[derive(Debug)]
struct PhaseEntry {
    step: Option<u64>,
    phase: &'static str,
    began: Instant,
}

#[derive(Debug)]
struct CollectiveEntry {
    number: u64,
    collective: Collective,
    step: Option<u64>,
    phase: &'static str,
    began: Instant,
    ended: Option<Instant>,
}

impl FlightRecorder {
    pub(crate) fn new(topology: Topology) -> Self {
        let record = Record {
            folder: None,
            step: None,
            phase: "start",
            phases: VecDeque::with_capacity(PHASES),
            begun: 0,
            collectives: VecDeque::with_capacity(COLLECTIVES),
            failure: None,
        };
        FlightRecorder(Arc::new(Shared { topology, record: Mutex::new(record) }))
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Every change is complete before the lock opens, so a panic elsewhere spoils nothing.
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this rank is in `phase` of `step`, counted from 1, or outside of steps.
    pub fn enter(&self, step: Option<u64>, phase: &'static str) {
        let mut record = self.record();
        (record.step, record.phase) = (step, phase);
        push(&mut record.phases, PHASES, PhaseEntry { step, phase, began: Instant::now() });
    }

    /// A collective begins; its number, counted from 1.
    pub(crate) fn begin(&self, collective: Collective) -> u64 {
        let mut record = self.record();
        record.begun += 1;
        let (number, step, phase) = (record.begun, record.step, record.phase);
        let entry = CollectiveEntry { number, collective, step, phase, began: Instant::now(), ended: None };
        push(&mut record.collectives, COLLECTIVES, entry);
        number
    }

    /// Collective `number` has ended.
    pub(crate) fn end(&self, number: u64, result: &Result<(), CommError>) {
        let mut record = self.record();
        match result {
            Ok(()) => {
                let entry = record.collectives.iter_mut().rev().find(|entry| entry.number == number);
                if let Some(entry) = entry {
                    entry.ended = Some(Instant::now());
                }
            }
            Err(error) => {
                record.failure.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// The first failed collective's error; nothing can be exchanged after it.
    #[must_use]
    pub fn failure(&self) -> Option<CommError> {
        self.record().failure.clone()
    }

    /// What this rank is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let record = self.record();
        // They end in order: from the end of the list, those under way come first.
        let under_way = record.collectives.iter().rev().take_while(|entry| entry.ended.is_none()).last();
        let current = under_way.or(record.collectives.back());
        Status {
            step: record.step,
            phase: record.phase.into(),
            collectives: current.map_or(0, |current| current.number),
            collective: current.map(|current| current.collective.clone()),
            under_way: under_way.is_some(),
            collective_for: current
                .map_or(Duration::ZERO, |current| current.ended.unwrap_or(current.began).elapsed()),
        }
    }

    /// From now on, [`FlightRecorder::write`] writes to `folder`, by `write`.
    pub fn keep_in(&self, folder: PathBuf, write: WriteWhole) {
        self.record().folder = Some((folder, write));
    }

    /// Writes the record to `rank-R.json` in the folder given before, with `reason`, why that is done. Its
    /// path, or `None` when there is no folder.
    ///
    /// # Errors
    /// The system's reason.
    pub fn write(&self, reason: &str) -> io::Result<Option<PathBuf>> {
        let Some((folder, write)) = self.record().folder.clone() else { return Ok(None) };
        let text = serde_json::to_vec_pretty(&self.document(reason))?;
        let path = folder.join(format!("rank-{}.json", self.0.topology.rank));
        std::fs::create_dir_all(folder)?;
        write(&path, &text)?;
        Ok(Some(path))
    }

    fn document(&self, reason: &str) -> serde_json::Value {
        let record = self.record();
        let (now, clock) = (Instant::now(), SystemTime::now());
        let seconds = |at: Instant| {
            let at = clock.checked_sub(now - at).unwrap_or(UNIX_EPOCH);
            at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
        };
        let collectives: Vec<_> = record
            .collectives
            .iter()
            .map(|entry| {
                serde_json::json!({
                    "number": entry.number,
                    "kind": entry.collective.kind,
                    "bucket": entry.collective.bucket,
                    "bytes": entry.collective.bytes,
                    "dtype": entry.collective.dtype,
                    "step": entry.step,
                    "phase": entry.phase,
                    "began": seconds(entry.began),
                    "seconds": entry.ended.map(|ended| (ended - entry.began).as_secs_f64()),
                })
            })
            .collect();
        let phases: Vec<_> = record
            .phases
            .iter()
            .map(|entry| {
                serde_json::json!({"step": entry.step, "phase": entry.phase, "began": seconds(entry.began)})
            })
            .collect();
        let topology = &self.0.topology;
        serde_json::json!({
            "reason": reason,
            "rank": topology.rank,
            "world_size": topology.world_size,
            "host": topology.host,
            "written": seconds(now),
            "step": record.step,
            "phase": record.phase,
            "phases": phases,
            "collectives": collectives,
        })
    }
}

fn push<T>(ring: &mut VecDeque<T>, most: usize, value: T) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> FlightRecorder {
        let host = "node".to_owned();
        FlightRecorder::new(Topology { rank: 1, world_size: 2, local_rank: 1, local_size: 2, host })
    }

    fn bucket(index: usize) -> Collective {
        Collective {
            kind: CollectiveKind::AllReduce,
            bucket: Some(index),
            bytes: Some(64),
            dtype: Some("fp32".into()),
        }
    }

    #[test]
    fn the_status_is_that_of_the_latest_phase_and_collective() {
        let recorder = recorder();
        assert_eq!(recorder.status().collective, None);
        recorder.enter(Some(17), "backward");
        assert_eq!(recorder.begin(bucket(0)), 1);
        recorder.end(1, &Ok(()));
        assert_eq!(recorder.begin(bucket(1)), 2);
        assert_eq!(recorder.begin(bucket(2)), 3);
        let status = recorder.status();
        assert_eq!((status.step, &*status.phase, status.collectives), (Some(17), "backward", 2));
        assert!(status.under_way);
        assert_eq!(status.collective.unwrap().to_string(), "all-reduce of bucket 1, 64 bytes of fp32");
        recorder.end(2, &Ok(()));
        assert_eq!(recorder.status().collectives, 3, "it was behind the other one");
        recorder.end(3, &Ok(()));
        assert!(!recorder.status().under_way);
        assert_eq!(recorder.failure(), None);
        recorder.end(3, &Err(CommError::Aborted));
        recorder.end(3, &Err(CommError::Ended));
        assert_eq!(recorder.failure(), Some(CommError::Aborted), "the first one counts");
    }

    #[test]
    fn the_file_holds_the_latest_collectives_and_those_under_way_have_no_duration() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder();
        assert_eq!(recorder.write("nowhere to").unwrap(), None);
        recorder.keep_in(folder.path().join("flight"), |path, text| std::fs::write(path, text));
        recorder.enter(Some(3), "forward");
        for index in 0..COLLECTIVES + 5 {
            let number = recorder.begin(bucket(index));
            recorder.end(number, &Ok(()));
        }
        recorder.begin(Collective::of_kind(CollectiveKind::Barrier));
        let path = recorder.write("a test").unwrap().unwrap();
        assert_eq!(path, folder.path().join("flight/rank-1.json"));
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(
            (&file["reason"], &file["host"], &file["step"]),
            (&"a test".into(), &"node".into(), &3.into())
        );
        let collectives = file["collectives"].as_array().unwrap();
        assert_eq!(collectives.len(), COLLECTIVES);
        assert_eq!(collectives[0]["number"], 7, "older ones are forgotten");
        assert_eq!(collectives[0]["bucket"], 6);
        assert!(collectives[0]["seconds"].is_f64());
        assert_eq!(collectives[COLLECTIVES - 1]["kind"], "barrier");
        assert!(collectives[COLLECTIVES - 1]["seconds"].is_null(), "it has not ended");
        assert_eq!(file["phases"][0]["phase"], "forward");
    }
}
