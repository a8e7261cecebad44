//! Hands requests out to the workers, a free slab each, until they end, one is bad, or the pool is stopped.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crossbeam::channel::{Receiver, Sender, select};

use super::lent::Lent;
use super::{Finished, Job, Shared, Task, panic_message};
use crate::augment::SampleKey;
use crate::error::DataError;
use crate::source::ImageShape;

pub(super) struct Dispatcher {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Box<dyn Iterator<Item = Vec<SampleKey>> + Send>,
    pub(super) batch_size: usize,
    pub(super) workers: usize,
    pub(super) free_slabs: Receiver<Lent>,
    pub(super) stopped: Receiver<Infallible>,
    pub(super) tasks: Sender<Task>,
    pub(super) finished: Sender<Finished>,
}

impl Dispatcher {
    /// Hands out requests until they end, one is bad, or the pool is stopped.
    pub(super) fn run(mut self) {
        for sequence in 0.. {
            let (keys, image) = match self.next_request(sequence) {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => {
                    let _ = self.finished.send(Finished { sequence, result: Err(error) });
                    return;
                }
            };
            let slab = select! {
                recv(self.free_slabs) -> slab => slab,
                recv(self.stopped) -> _ => return,
            };
            let Ok(slab) = slab else { return };
            let slab = match slab.take_back() {
                Ok(slab) => slab,
                Err(reason) => {
                    let _ =
                        self.finished.send(Finished { sequence, result: Err(DataError::Reader { reason }) });
                    return;
                }
            };
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            let len = keys.len();
            let job = Arc::new(Job { sequence, keys, image, outcome: Mutex::default() });
            for part in slab.split(len, len.div_ceil(self.workers), image.bytes()) {
                if self.tasks.send(Task { job: Arc::clone(&job), part }).is_err() {
                    return;
                }
            }
        }
    }

    /// The samples of the next request and the size of their images.
    fn next_request(&mut self, request: u64) -> Result<Option<(Vec<SampleKey>, ImageShape)>, DataError> {
        let keys = catch_unwind(AssertUnwindSafe(|| self.requests.next()))
            .map_err(|panic| DataError::Requests { request, message: panic_message(&*panic) })?;
        let Some(keys) = keys else { return Ok(None) };
        if !(1..=self.batch_size).contains(&keys.len()) {
            let (samples, batch_size) = (keys.len(), self.batch_size);
            return Err(DataError::RequestSize { request, samples, batch_size });
        }
        let Shared { data, augmentation, .. } = &*self.shared;
        let samples = data.len();
        if let Some(sample) = keys.iter().map(|key| key.sample as usize).find(|&sample| sample >= samples) {
            return Err(DataError::NoSuchSample { data_set: data.name().into(), sample, samples });
        }
        let image = augmentation.output(data.image(), keys[0].epoch);
        let mixed = |key: &SampleKey| {
            key.epoch != keys[0].epoch && augmentation.output(data.image(), key.epoch) != image
        };
        if keys.iter().any(mixed) {
            return Err(DataError::MixedSizes { request });
        }
        Ok(Some((keys, image)))
    }
}
