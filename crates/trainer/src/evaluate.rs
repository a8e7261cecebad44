//! Exact evaluation: every test image once, whatever the number of ranks, and the same bits on each of them.

use std::time::{Duration, Instant};

use data_sharding::{SampleKey, evaluation_batches};
use tch::{Device, Kind, Reduction, Tensor};

use crate::engine::{Engine, WeightSet};
use crate::error::Error;
use crate::feed::{Delivery, Feed};
use crate::plan::Plan;
use crate::session::Session;

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
    /// Number of classes.
    pub classes: u64,
    /// Images that could not be decoded. They count as wrong, and have no part in the loss.
    pub skipped: u64,
    /// Sum of the cross-entropy losses.
    pub loss_sum: f64,
    /// Wall time on this rank.
    pub duration: Duration,
}

impl Evaluation {
    /// Mean loss of the images that could be decoded.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.samples.saturating_sub(self.skipped).max(1) as f64
    }

    /// Share of images whose most probable class is wrong, 0 to 1.
    #[must_use]
    pub fn top1_error(&self) -> f64 {
        1.0 - self.top1_correct as f64 / self.samples.max(1) as f64
    }

    /// Share of images whose right class is not among the five most probable, 0 to 1; `None` with fewer classes.
    #[must_use]
    pub fn top5_error(&self) -> Option<f64> {
        (self.classes >= 5).then(|| 1.0 - self.top5_correct as f64 / self.samples.max(1) as f64)
    }
}

/// What one batch of the test set brought.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BatchCounts {
    batch: u64,
    samples: u64,
    top1_correct: u64,
    top5_correct: u64,
    skipped: u64,
    loss_sum: f64,
}

impl BatchCounts {
    const BYTES: usize = 48;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let counts = [self.batch, self.samples, self.top1_correct, self.top5_correct, self.skipped];
        let words = counts.into_iter().chain([self.loss_sum.to_bits()]);
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
            skipped: word(4),
            loss_sum: f64::from_bits(word(5)),
        }
    }
}

/// Between two looks for a request to stop, in batches a rank: at most some seconds.
const BATCHES_A_ROUND: usize = 8;

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
    let local = LocalEvaluation::start(session, plan, engine.device(), workers, views, weights);
    let mut local = session.agree(local)?;
    session.agree(local.count(engine, usize::MAX))?;
    local.combine(session, plan, begin)
}

/// As [`evaluate`], unless some rank is asked to stop meanwhile: then nothing comes of it.
pub(crate) fn evaluate_unless(
    stop: &dyn Fn() -> bool,
    session: &Session,
    plan: &Plan,
    engine: &Engine,
    workers: usize,
    views: Views,
    weights: WeightSet,
) -> Result<Option<Evaluation>, Error> {
    let begin = Instant::now();
    let local = LocalEvaluation::start(session, plan, engine.device(), workers, views, weights);
    let mut local = session.agree(local)?;
    for _ in 0..local.rounds {
        if session.any(stop())? {
            return Ok(None);
        }
        session.agree(local.count(engine, BATCHES_A_ROUND))?;
    }
    local.combine(session, plan, begin).map(Some)
}

/// This rank's share of an evaluation.
struct LocalEvaluation {
    feed: Feed,
    views: usize,
    weights: WeightSet,
    /// Batches to come.
    indices: std::vec::IntoIter<u64>,
    counts: Vec<BatchCounts>,
    /// Rounds of the rank that has the most batches.
    rounds: usize,
}

impl LocalEvaluation {
    fn start(
        session: &Session,
        plan: &Plan,
        device: Device,
        workers: usize,
        views: Views,
        weights: WeightSet,
    ) -> Result<Self, Error> {
        let topology = session.topology();
        let (augmentation, views) = match views {
            Views::One => (plan.data.test_augmentation.clone(), 1),
            Views::Ten => (plan.data.ten_crop().ok_or(Error::NoMargins)?, TEN),
        };
        let batch_size = (plan.micro_batch() / views).max(1);
        let batches = |rank| evaluation_batches(plan.data.test.len(), batch_size, rank, topology.world_size);
        let rounds = batches(0).len().div_ceil(BATCHES_A_ROUND);
        let batches = batches(topology.rank);
        let indices: Vec<u64> = batches.iter().map(|batch| batch.index as u64).collect();
        let requests = batches.into_iter().map(move |batch| {
            let key = |sample, repetition| SampleKey { sample, epoch: 0, repetition };
            batch
                .samples
                .flat_map(|sample| (0..views as u32).map(move |view| key(sample as u32, view)))
                .collect()
        });
        let options = plan.data.pool_options(workers, batch_size * views, plan.config.data.prefetch);
        let feed = Feed::start(device, plan.data.test.clone(), augmentation, Box::new(requests), options)?;
        let counts = Vec::with_capacity(indices.len());
        Ok(LocalEvaluation { feed, views, weights, indices: indices.into_iter(), counts, rounds })
    }

    /// Evaluates at most so many batches.
    fn count(&mut self, engine: &Engine, batches: usize) -> Result<(), Error> {
        let mut left = batches;
        while left > 0 && !self.indices.as_slice().is_empty() {
            let mut uncounted = Vec::with_capacity(BATCHES_A_ROUND);
            for batch in self.indices.by_ref().take(left.min(BATCHES_A_ROUND)) {
                let mut delivery = self.feed.next()?;
                uncounted.push(look_at(engine, batch, &mut delivery, self.views, self.weights)?);
                drop(delivery);
                self.feed.stage_ahead();
            }
            left -= uncounted.len();
            self.counts.extend(read_back(&uncounted)?);
        }
        Ok(())
    }

    /// Collective: the counts of all ranks, in an order that does not depend on their number.
    fn combine(self, session: &Session, plan: &Plan, begin: Instant) -> Result<Evaluation, Error> {
        let bytes = self.counts.into_iter().flat_map(BatchCounts::to_bytes).collect();
        let gathered = session.comm().all_gather(bytes)?;
        let mut all: Vec<BatchCounts> = gathered
            .iter()
            .flat_map(|rank| rank.chunks_exact(BatchCounts::BYTES).map(BatchCounts::from_bytes))
            .collect();
        all.sort_by_key(|counts| counts.batch);
        let mut total = Evaluation { classes: plan.network.classes().into(), ..Evaluation::default() };
        for counts in all {
            total.samples += counts.samples;
            total.top1_correct += counts.top1_correct;
            total.top5_correct += counts.top5_correct;
            total.skipped += counts.skipped;
            total.loss_sum += counts.loss_sum;
        }
        let images = plan.data.test.len() as u64;
        let complete = if total.samples != images {
            Err(Error::Other(format!("evaluation saw {} of {images} test images", total.samples)))
        } else if total.skipped == images {
            Err(Error::Other(
                "no test image could be decoded (the lines above say why), so there is nothing to report; `wrn-dist data \
                 verify` finds damage"
                    .into(),
            ))
        } else {
            Ok(())
        };
        session.agree(complete)?;
        total.duration = begin.elapsed();
        Ok(total)
    }
}

/// A batch whose results are still on the device.
struct Uncounted {
    batch: u64,
    samples: usize,
    skipped: usize,
    /// `[3]` in fp64: right answers, right ones among five, loss.
    sums: Tensor,
}

/// Queues the evaluation of a batch. On a GPU nobody waits for it.
fn look_at(
    engine: &Engine,
    batch: u64,
    delivery: &mut Delivery,
    views: usize,
    weights: WeightSet,
) -> Result<Uncounted, Error> {
    let samples = delivery.batch().len() / views;
    // All views of an image are decoded from the same file.
    let skipped = delivery.batch().skipped().len().div_ceil(views);
    let (logits, labels) = engine.evaluate(delivery, weights)?;
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
    let count = |width: i64| hits.f_narrow(1, 0, width)?.f_sum(Kind::Double);
    let loss = logits.f_cross_entropy_loss::<&Tensor>(&labels, None, Reduction::Sum, -100, 0.0)?;
    let sums = Tensor::f_stack(&[count(1)?, count(top)?, loss.f_to_kind(Kind::Double)?], 0)?;
    Ok(Uncounted { batch, samples, skipped, sums })
}

/// Waits for the device once for several batches.
fn read_back(batches: &[Uncounted]) -> Result<Vec<BatchCounts>, Error> {
    let sums: Vec<&Tensor> = batches.iter().map(|batch| &batch.sums).collect();
    let sums = Tensor::f_stack(&sums, 0)?.f_to_device(Device::Cpu)?;
    let mut numbers = vec![0.0; sums.numel()];
    sums.f_copy_data(&mut numbers, sums.numel())?;
    let counts = |(batch, sums): (&Uncounted, &[f64])| BatchCounts {
        batch: batch.batch,
        samples: batch.samples as u64,
        top1_correct: sums[0] as u64,
        top5_correct: sums[1] as u64,
        skipped: batch.skipped as u64,
        loss_sum: sums[2],
    };
    Ok(batches.iter().zip(numbers.chunks_exact(3)).map(counts).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_way_over_the_wire() {
        let counts = BatchCounts {
            batch: 7,
            samples: 64,
            top1_correct: 60,
            top5_correct: 64,
            skipped: 3,
            loss_sum: 12.5e-3,
        };
        assert_eq!(BatchCounts::from_bytes(&counts.to_bytes()), counts);
    }

    #[test]
    fn skipped_images_are_wrong_but_not_in_the_loss_and_few_classes_have_no_top_5() {
        let counts = Evaluation {
            samples: 10,
            top1_correct: 4,
            top5_correct: 8,
            skipped: 2,
            loss_sum: 16.0,
            ..Evaluation::default()
        };
        for (classes, top5) in [(4, None), (5, Some(1.0 - 0.8)), (10, Some(1.0 - 0.8))] {
            let evaluation = Evaluation { classes, ..counts };
            assert_eq!((evaluation.loss(), evaluation.top1_error()), (2.0, 0.6));
            assert_eq!(evaluation.top5_error(), top5);
        }
    }
}
