//! `metrics.jsonl` as a file: cut back to where the run stands, and added to.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use data_sharding::own_file;

use super::records::Record;
use crate::checkpoint::replace_file;
use crate::error::Error;
use crate::files;

/// Lines that wait for room take at most so much memory: some 100,000 steps.
const MOST_PENDING_BYTES: usize = 64 << 20;

/// The open file. Lines are written at once, so that a reader sees them and a crash loses none. Where that fails,
/// as on a full disk, the run goes on, and they are written as soon as it works again.
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
    pending: Pending,
    failed: bool,
}

impl MetricsFile {
    /// Opens `path` for a run that stands at `step`. Lines of later steps, left by a process that died after
    /// its last checkpoint, are removed, and so is a line that was cut short.
    ///
    /// # Errors
    /// Also where it is a symbolic link, whether or not lines have to go: what it leads to may be anybody's.
    pub(crate) fn open(path: &Path, epoch: u32, step: u64) -> Result<Self, Error> {
        own_file::refuse_link(path).map_err(Error::file("open", path))?;
        match files::read(path, files::MOST_BYTES) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let is_kept = |line: &&str| {
                    serde_json::from_str::<Record>(line).is_ok_and(|it| it.is_within(epoch, step))
                };
                let kept: String = text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
                if kept.as_bytes() != bytes {
                    replace_file(path, kept.as_bytes())?;
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", path)(error)),
        }
        let file = own_file::open_to_append(path).map_err(Error::file("open", path))?;
        Ok(MetricsFile { path: path.to_owned(), file, pending: Pending::default(), failed: false })
    }

    /// Appends a line. When that begins to fail, says so in a sentence, once.
    pub(crate) fn write(&mut self, record: &Record) -> Option<String> {
        match serde_json::to_string(record) {
            Ok(line) => self.pending.push(&line),
            Err(error) => return Some(format!("a line of metrics cannot be written as JSON: {error}")),
        }
        let written = self.pending.write_to(&mut self.file);
        let failed_before = std::mem::replace(&mut self.failed, written.is_err());
        let error = written.err().filter(|_| !failed_before)?;
        let path = self.path.display();
        Some(format!("cannot write {path}: {error}; the run goes on and tries again at every step"))
    }

    /// The same file, for the thread that sees to it that its lines are on disk before a checkpoint is.
    pub(crate) fn handle(&self) -> Option<File> {
        self.file.try_clone().ok()
    }
}

/// Bytes that are not yet in the file.
#[derive(Default)]
struct Pending(Vec<u8>);

impl Pending {
    fn push(&mut self, line: &str) {
        if self.0.len() + line.len() < MOST_PENDING_BYTES {
            self.0.extend_from_slice(line.as_bytes());
            self.0.push(b'\n');
        }
    }

    fn write_to(&mut self, file: &mut impl Write) -> std::io::Result<()> {
        while !self.0.is_empty() {
            match file.write(&self.0) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => drop(self.0.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::engine::Phases;
    use crate::telemetry::records::{CheckpointRecord, EpochRecord, ExchangeRecord, StepRecord, read_epochs};

    fn step(step: u64) -> StepRecord {
        StepRecord {
            epoch: 1,
            step,
            loss: Some(0.1),
            skipped: false,
            loss_spike: false,
            loss_scale: None,
            not_finite_ranks: Vec::new(),
            top1_error: 0.5,
            learning_rate: 0.1,
            gradient_norm: None,
            skipped_samples: 0,
            images_per_second: 1.0,
            seconds: Phases::default().into(),
            exchange: ExchangeRecord {
                buckets: 1,
                bytes: 4,
                first_started: 0.0,
                last_finished: 0.0,
                busy: 0.0,
            },
            stragglers: Vec::new(),
            ahead: false,
        }
    }

    fn epoch(epoch: u32) -> EpochRecord {
        EpochRecord {
            epoch,
            step: u64::from(epoch) * 2,
            skipped_steps: 0,
            skipped_samples: 0,
            train_loss: Some(1.0),
            train_top1_error: Some(0.25),
            test_loss: Some(1.0),
            test_top1_error: Some(0.5),
            test_top5_error: None,
            test_top1_correct: Some(5),
            test_samples: Some(10),
            test_skipped_samples: Some(0),
            averaged_test_loss: None,
            averaged_test_top1_error: None,
            averaged_test_top5_error: None,
            images_per_second: 1.0,
            train_seconds: 1.0,
            test_seconds: 1.0,
        }
    }

    fn checkpoint(step: u64) -> CheckpointRecord {
        CheckpointRecord {
            step,
            error: Some("full".into()),
            bytes: 0,
            stall_seconds: 0.5,
            write_seconds: 0.0,
        }
    }

    #[test]
    fn reopening_cuts_back_to_the_checkpoint_and_drops_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, 0, 0).unwrap();
        for index in 1..=5 {
            file.write(&Record::Step(step(index)));
            if index % 2 == 0 {
                file.write(&Record::Epoch(epoch(index as u32 / 2)));
            }
            if index >= 3 {
                file.write(&Record::Checkpoint(checkpoint(index)));
            }
        }
        drop(file);
        let torn = [&fs::read(&path).unwrap()[..], b"\xff\0\0\n{\"kind\":\"step\",\"epo"].concat();
        fs::write(&path, torn).unwrap();
        drop(MetricsFile::open(&path, 1, 3).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let kinds: Vec<_> = text.lines().map(|line| serde_json::from_str::<Record>(line).unwrap()).collect();
        assert_eq!(
            kinds,
            [
                Record::Step(step(1)),
                Record::Step(step(2)),
                Record::Epoch(epoch(1)),
                Record::Step(step(3)),
                Record::Checkpoint(checkpoint(3))
            ]
        );
        assert_eq!(read_epochs(&path).unwrap(), [epoch(1)]);
    }

    #[test]
    fn a_link_is_refused_and_stays_whether_or_not_lines_have_to_go() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("metrics.jsonl"), dir.path().join("other"));
        let line = serde_json::to_string(&Record::Step(step(2))).unwrap() + "\n";
        fs::write(&other, &line).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        for at in [1, 2] {
            let refused = MetricsFile::open(&path, 0, at).map(drop).unwrap_err().to_string();
            assert!(refused.contains("it is a symbolic link"), "{refused}");
            assert!(path.is_symlink());
            assert_eq!(fs::read_to_string(&other).unwrap(), line);
        }
    }

    #[test]
    fn lines_that_find_no_room_are_written_when_there_is_some() {
        /// Takes so many bytes and then says that it is full.
        struct Disk {
            bytes: Vec<u8>,
            room: usize,
        }
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                match bytes.len().min(self.room - self.bytes.len()) {
                    0 => Err(std::io::ErrorKind::StorageFull.into()),
                    len => {
                        self.bytes.extend_from_slice(&bytes[..len]);
                        Ok(len)
                    }
                }
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut disk = Disk { bytes: Vec::new(), room: 15 };
        let mut pending = Pending::default();
        let mut write = |line: &str, disk: &mut Disk| {
            pending.push(line);
            pending.write_to(disk).is_ok()
        };
        assert!(write("first", &mut disk));
        assert!(!write("the second", &mut disk));
        assert!(!write("third", &mut disk));
        disk.room = 1000;
        assert!(write("last", &mut disk));
        assert_eq!(String::from_utf8(disk.bytes).unwrap(), "first\nthe second\nthird\nlast\n");
    }
}
