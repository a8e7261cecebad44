//! Where decoder threads spend their time. Costs a few clock readings a sample, so it is always on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Parts of the work on a sample.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    Read,
    Decode,
    Resize,
    Augment,
}

const STAGES: usize = 4;

/// Time that all decoder threads together have spent on samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Getting the bytes of files.
    pub read: Duration,
    /// From bytes to pixels: headers, entropy decoding, inverse transform, colours.
    pub decode: Duration,
    /// Scaling and mirroring.
    pub resize: Duration,
    /// Everything behind that: padded crops, colour operations.
    pub augment: Duration,
    /// Samples.
    pub samples: u64,
}

/// The sums over all threads.
#[derive(Default)]
pub(super) struct Stages {
    nanoseconds: [AtomicU64; STAGES],
    samples: AtomicU64,
}

/// One thread's times since it last handed them in.
#[derive(Default)]
pub(super) struct Stopwatch {
    last: Option<Instant>,
    nanoseconds: [u64; STAGES],
    samples: u64,
}

impl Stopwatch {
    /// A sample begins.
    pub(super) fn start(&mut self) {
        self.last = Some(Instant::now());
        self.samples += 1;
    }

    /// A part of the work ends.
    pub(super) fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.nanoseconds[stage as usize] += (now - last).as_nanos() as u64;
        }
    }
}

impl Stages {
    pub(super) fn add(&self, stopwatch: &mut Stopwatch) {
        for (sum, part) in self.nanoseconds.iter().zip(&mut stopwatch.nanoseconds) {
            sum.fetch_add(std::mem::take(part), Ordering::Relaxed);
        }
        self.samples.fetch_add(std::mem::take(&mut stopwatch.samples), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> StageTimes {
        let of =
            |stage: Stage| Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed));
        StageTimes {
            read: of(Stage::Read),
            decode: of(Stage::Decode),
            resize: of(Stage::Resize),
            augment: of(Stage::Augment),
            samples: self.samples.load(Ordering::Relaxed),
        }
    }
}
