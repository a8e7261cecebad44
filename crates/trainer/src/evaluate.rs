//! Exact evaluation: every test image once, whatever the number of ranks, and the same bits on each of them.

use std::time::{Duration, Instant};

use data_sharding::{Pool, SampleKey, evaluation_batches};
use tch::{Kind, Reduction};

use crate::engine::{Engine, WeightSet};
use crate::error::Error;
use crate::plan::Plan;
use crate::session::Session;
use crate::train::next_batch;

/// How many parts of each test image are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Views {
    /// The image as configured.
    #[default]
    One,
    /// Corners and middle, and the same mirrored, their logits summed before the softmax (fb.resnet.torch).
    Ten,
}

const TEN: usize = 10;

/// Counts over the whole test set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Images seen.
    pub samples: u64,
    /// Images whose most probable class is the right one.
    pub top1_correct: u64,
    /// Images whose right class is among the five most probable.
    pub top5_correct: u64,
    /// Sum of the cross-entropy losses.
    pub loss_sum: f64,
    /// Wall time on this rank.
    pub duration: Duration,
}

impl Evaluation {
    /// Mean loss.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.samples.max(1) as f64
    }

    /// Share of images whose most probable class is wrong, 0 to 1.
    #[must_use]
    pub fn top1_error(&self) -> f64 {
        1.0 - self.top1_correct as f64 / self.samples.max(1) as f64
    }

    /// Share of images whose right class is not among the five most probable, 0 to 1.
    #[must_use]
    pub fn top5_error(&self) -> f64 {
        1.0 - self.top5_correct as f64 / self.samples.max(1) as f64
    }
}

/// What one batch of the test set brought.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BatchCounts {
    batch: u64,
    samples: u64,
    top1_correct: u64,
    top5_correct: u64,
    loss_sum: f64,
}

impl BatchCounts {
    const BYTES: usize = 40;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let words = [self.batch, self.samples, self.top1_correct, self.top5_correct, self.loss_sum.to_bits()];
        let mut bytes = [0; Self::BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        };
        BatchCounts {
            batch: word(0),
            samples: word(1),
            top1_correct: word(2),
            top5_correct: word(3),
            loss_sum: f64::from_bits(word(4)),
        }
    }
}

/// Collective: evaluates the network with `weights` on the test set; an image that is skipped counts as wrong. Batches have the micro batch's size, so that they, and
/// with them all roundings, do not depend on the number of ranks.
pub(crate) fn evaluate(
    session: &Session,
    plan: &Plan,
    engine: &Engine,
    workers: usize,
    views: Views,
    weights: WeightSet,
) -> Result<Evaluation, Error> {
    let begin = Instant::now();
    let counts = session.agree(count_local_batches(session, plan, engine, workers, views, weights))?;
    let bytes = counts.into_iter().flat_map(BatchCounts::to_bytes).collect();
    let gathered = session.comm().all_gather(bytes)?;
    let mut all: Vec<BatchCounts> = gathered
        .iter()
        .flat_map(|rank| rank.chunks_exact(BatchCounts::BYTES).map(BatchCounts::from_bytes))
        .collect();
    all.sort_by_key(|counts| counts.batch);
    let mut total = Evaluation::default();
    for counts in all {
        total.samples += counts.samples;
        total.top1_correct += counts.top1_correct;
        total.top5_correct += counts.top5_correct;
        total.loss_sum += counts.loss_sum;
    }
    let complete = match total.samples == plan.data.test.len() as u64 {
        true => Ok(()),
        false => Err(Error::Other(format!(
            "evaluation saw {} of {} test images",
            total.samples,
            plan.data.test.len()
        ))),
    };
    session.agree(complete)?;
    total.duration = begin.elapsed();
    Ok(total)
}

fn count_local_batches(
    session: &Session,
    plan: &Plan,
    engine: &Engine,
    workers: usize,
    views: Views,
    weights: WeightSet,
) -> Result<Vec<BatchCounts>, Error> {
    let topology = session.topology();
    let (augmentation, views) = match views {
        Views::One => (plan.data.test_augmentation.clone(), 1),
        Views::Ten => (plan.data.ten_crop().ok_or(Error::NoMargins)?, TEN),
    };
    let batch_size = (plan.micro_batch() / views).max(1);
    let batches = evaluation_batches(plan.data.test.len(), batch_size, topology.rank, topology.world_size);
    let indices: Vec<u64> = batches.iter().map(|batch| batch.index as u64).collect();
    let requests = batches.into_iter().map(move |batch| {
        let key = |sample, repetition| SampleKey { sample, epoch: 0, repetition };
        batch.samples.flat_map(|sample| (0..views as u32).map(move |view| key(sample as u32, view))).collect()
    });
    let options = plan.data.pool_options(workers, batch_size * views, plan.config.data.prefetch);
    let mut pool = Pool::start(plan.data.test.clone(), augmentation, Box::new(requests), options)?;
    let mut counts = Vec::with_capacity(indices.len());
    for batch in indices {
        let images = next_batch(&mut pool)?;
        let samples = images.len() / views;
        let (logits, labels) = engine.evaluate(&images, weights)?;
        let _no_grad = tch::no_grad_guard();
        let (logits, labels) = match views {
            1 => (logits, labels),
            // The order of the classes is that of the sums, on the scale of one view.
            _ => {
                let classes = logits.size()[1];
                let grouped = logits.f_reshape([samples as i64, views as i64, classes])?;
                let mean = grouped.f_mean_dim([1_i64].as_slice(), false, Kind::Float)?;
                (mean, labels.f_slice(0, 0, labels.size()[0], views as i64)?)
            }
        };
        let top = logits.size()[1].min(5);
        let (_, classes) = logits.f_topk(top, 1, true, true)?;
        let hits = classes.f_eq_tensor(&labels.f_unsqueeze(1)?)?;
        let count = |width: i64| -> Result<u64, Error> {
            Ok(hits.f_narrow(1, 0, width)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64)
        };
        let loss = logits.f_cross_entropy_loss::<&tch::Tensor>(&labels, None, Reduction::Sum, -100, 0.0)?;
        counts.push(BatchCounts {
            batch,
            samples: samples as u64,
            top1_correct: count(1)?,
            top5_correct: count(top)?,
            loss_sum: loss.f_double_value(&[])?,
        });
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_way_over_the_wire() {
        let counts =
            BatchCounts { batch: 7, samples: 64, top1_correct: 60, top5_correct: 64, loss_sum: 12.5e-3 };
        assert_eq!(BatchCounts::from_bytes(&counts.to_bytes()), counts);
    }
}
