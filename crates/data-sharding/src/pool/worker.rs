//! A decoder thread: from a sample's key to its place in the slab.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender};

use super::slab::Slot;
use super::stages::{Stage, Stopwatch};
use super::{Batch, FilledSlab, Finished, Job, OnBadSample, Shared, Task, panic_message};
use crate::augment::{DeviceParameters, Framing, Pixels, Resizer, SampleKey, mirror, whole};
use crate::error::DataError;
use crate::jpeg::{ImageDecoder, ImageHeader, View};
use crate::source::{DataSet, EncodedSource, ImageShape, Source};

pub(super) fn work(shared: &Shared, tasks: &Receiver<Task>, finished: &Sender<Finished>) {
    let mut decoder = Decoder::new(shared);
    for Task { job, mut part } in tasks {
        for (position, slot) in part.slots().zip(part.slots_mut()) {
            // The batch is then incomplete, but nobody will see it.
            if shared.stopping.load(Ordering::Relaxed) {
                break;
            }
            let filled = decoder.fill(&job, position, slot);
            // At once, so that between two readings of the sums lies no more than the time between them.
            shared.stages.add(&mut decoder.stopwatch);
            if let Err(error) = filled {
                job.fail(position, error);
                break;
            }
        }
        if let Some(slab) = part.join() {
            let mut outcome = job.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            let result = match outcome.failure.take() {
                Some((_, error)) => Err(error),
                None => {
                    outcome.skipped.sort_by_key(|(position, _)| *position);
                    let skipped = outcome.skipped.drain(..).map(|(_, error)| error).collect();
                    Ok(FilledSlab { slab, len: job.keys.len(), image: job.image, skipped })
                }
            };
            let _ = finished.send(Finished { sequence: job.sequence, result });
        }
    }
}

/// A worker's memory.
struct Decoder<'a> {
    shared: &'a Shared,
    /// Once a file has been seen.
    decoder: Option<ImageDecoder>,
    resizer: Resizer,
    /// A file, where its source does not keep it in memory.
    file: Vec<u8>,
    /// Decoded pixels before they are cropped, flipped or scaled.
    image: Vec<u8>,
    columns: Vec<usize>,
    scratch: Vec<u8>,
    stopwatch: Stopwatch,
}

impl<'a> Decoder<'a> {
    fn new(shared: &'a Shared) -> Self {
        let image = shared.data.image().map_or(0, |image| image.bytes());
        Decoder {
            shared,
            decoder: None,
            resizer: Resizer::default(),
            file: Vec::new(),
            image: vec![0; image],
            columns: Vec::new(),
            scratch: Vec::new(),
            stopwatch: Stopwatch::default(),
        }
    }

    /// Fills one place of the batch, with an augmented image or as that of a skipped sample.
    fn fill(&mut self, job: &Job, position: usize, slot: Slot) -> Result<(), DataError> {
        let key = &job.keys[position];
        let sample = key.sample as usize;
        self.stopwatch.start();
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(key, job.image, slot.pixels)))
            .unwrap_or_else(|panic| {
                Err(self.undecodable(sample, format!("panic: {}", panic_message(&*panic))))
            });
        match decoded {
            Ok(()) => {
                *slot.label = self.shared.data.label(sample).into();
                *slot.device = self.shared.augmentation.device_parameters(key, job.image);
                Ok(())
            }
            Err(error @ DataError::Decode { .. }) if self.shared.on_bad_sample == OnBadSample::Skip => {
                // Other samples keep their places and everything drawn for them.
                slot.pixels.fill(0);
                *slot.label = Batch::SKIPPED;
                *slot.device = DeviceParameters::default();
                job.skip(position, error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes one augmented image of shape `image`.
    fn decode(&mut self, key: &SampleKey, image: ImageShape, pixels: &mut [u8]) -> Result<(), DataError> {
        match &self.shared.data {
            DataSet::Pixels(source) => self.decode_pixels(&**source, key, pixels)?,
            DataSet::Encoded(source) => self.decode_file(&**source, key, pixels)?,
        }
        self.shared.augmentation.recolor(key, image.width, pixels, &mut self.scratch);
        self.stopwatch.lap(Stage::Augment);
        Ok(())
    }

    fn decode_pixels(
        &mut self,
        source: &dyn Source,
        key: &SampleKey,
        pixels: &mut [u8],
    ) -> Result<(), DataError> {
        let (sample, shape) = (key.sample as usize, source.image());
        let augmentation = &self.shared.augmentation;
        let framing = augmentation.framing(key, shape.width, shape.height);
        let direct = framing.is_none() && !augmentation.moves_pixels();
        source.decode(sample, if direct { pixels } else { &mut self.image }).map_err(
            |error| match error {
                DataError::Decode { .. } | DataError::NoSuchSample { .. } => error,
                other => self.undecodable(sample, other.to_string()),
            },
        )?;
        self.stopwatch.lap(Stage::Decode);
        match framing {
            Some(framing) => {
                let ImageShape { width, height, channels } = shape;
                let image = Pixels { bytes: &self.image, width, height, channels };
                let region = whole(framing.region);
                resize(&mut self.resizer, image, region, framing.view, &framing, pixels)
                    .map_err(|problem| self.undecodable(sample, problem))?;
                self.stopwatch.lap(Stage::Resize);
            }
            None if !direct => {
                augmentation.padded_crop(key).apply(shape, &self.image, &mut self.columns, pixels);
            }
            None => {}
        }
        Ok(())
    }

    fn decode_file(
        &mut self,
        source: &dyn EncodedSource,
        key: &SampleKey,
        pixels: &mut [u8],
    ) -> Result<(), DataError> {
        let sample = key.sample as usize;
        let bytes = source.read(sample, &mut self.file)?;
        self.stopwatch.lap(Stage::Read);
        let bad = |reason: String| DataError::Decode {
            data_set: source.name().into(),
            sample,
            reason: format!("{}: {reason}", source.describe(sample)),
        };
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(ImageDecoder::new().map_err(|error| DataError::Thread {
                thread: std::thread::current().name().unwrap_or("of images").into(),
                source: std::io::Error::other(error),
            })?),
        };
        let ImageHeader { width, height } = decoder.header(bytes).map_err(|error| bad(error.to_string()))?;
        let framing = self
            .shared
            .augmentation
            .framing(key, width, height)
            .ok_or_else(|| bad("images of any size must be scaled".into()))?;
        let seek = source.seek_record(sample);
        let decoded = decoder
            .decode(bytes, framing.region, Some(framing.target()), seek, &mut self.image)
            .map_err(|error| bad(error.to_string()))?;
        self.stopwatch.lap(Stage::Decode);
        let used = decoded.width as usize * decoded.height as usize * 3;
        let image =
            Pixels { bytes: &self.image[..used], width: decoded.width, height: decoded.height, channels: 3 };
        let view = framing.view_within(decoded.view);
        resize(&mut self.resizer, image, decoded.view, view, &framing, pixels).map_err(bad)?;
        self.stopwatch.lap(Stage::Resize);
        Ok(())
    }

    fn undecodable(&self, sample: usize, reason: String) -> DataError {
        DataError::Decode { data_set: self.shared.data.name().into(), sample, reason }
    }
}

/// Scales and mirrors the pixels under `view`.
fn resize(
    resizer: &mut Resizer,
    image: Pixels,
    region: View,
    view: View,
    framing: &Framing,
    output: &mut [u8],
) -> Result<(), String> {
    resizer.resize(image, region, view, framing.filter, framing.size, output)?;
    if framing.flip {
        mirror(framing.size, image.channels, output);
    }
    Ok(())
}
