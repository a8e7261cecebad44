//! The order in which batches arrive, and the lane without streams. What streams do only a GPU can show: `tests/gpu`.

use std::time::Duration;

use data_sharding::{DataError, DataSet, ImageShape, Labelled, OnBadSample, Source};

use super::*;
use crate::input::made_up;

const SHAPE: ImageShape = ImageShape { height: 2, width: 3, channels: 1 };
const BATCH: usize = 2;

fn requests(batches: u32) -> Box<dyn Iterator<Item = Vec<SampleKey>> + Send> {
    let key = |sample| SampleKey { sample, epoch: 0, repetition: 0 };
    Box::new(
        (0..batches).map(move |batch| (0..BATCH as u32).map(|at| key(batch * BATCH as u32 + at)).collect()),
    )
}

fn data() -> DataSet {
    made_up::data_set(SHAPE, (0..120 * SHAPE.bytes()).map(|at| (at * 31 % 256) as u8).collect())
}

fn options(prefetch: usize) -> PoolOptions {
    PoolOptions { workers: 1, batch_size: BATCH, prefetch, on_bad_sample: OnBadSample::Error }
}

fn start(data: DataSet, batches: u32, prefetch: usize) -> Feed {
    Feed::start(Device::Cpu, data, Augmentation::none(), requests(batches), options(prefetch)).unwrap()
}

/// Takes the next batch ahead, once it is decoded.
fn stage(feed: &mut Feed) {
    for _ in 0..500 {
        feed.stage_ahead();
        if feed.ahead.is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no batch within five seconds");
}

#[test]
fn batches_come_once_and_in_order_whether_taken_ahead_or_not() {
    for prefetch in [1, 3] {
        let mut feed = start(data(), 6, prefetch);
        for batch in 0..6_i64 {
            let delivery = feed.next().unwrap();
            assert_eq!(delivery.batch().labels(), [2 * batch, 2 * batch + 1]);
            drop(delivery);
            if batch % 2 == 0 {
                stage(&mut feed);
                feed.stage_ahead();
            }
        }
        feed.stage_ahead();
        assert!(feed.next().is_err(), "there are six");
    }
}

/// Its last sample is damaged.
struct Damaged;

impl Labelled for Damaged {
    fn name(&self) -> &str {
        "damaged"
    }

    fn len(&self) -> usize {
        4
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> &str {
        "f"
    }

    fn label(&self, sample: usize) -> u32 {
        sample as u32
    }
}

impl Source for Damaged {
    fn image(&self) -> ImageShape {
        SHAPE
    }

    fn decode(&self, sample: usize, pixels: &mut [u8]) -> Result<(), DataError> {
        pixels.fill(0);
        if sample < 3 {
            return Ok(());
        }
        Err(DataError::Decode { data_set: self.name().into(), sample, reason: "torn".into() })
    }
}

#[test]
fn a_failure_ahead_is_told_when_its_batch_is_due() {
    let source: std::sync::Arc<dyn Source> = std::sync::Arc::new(Damaged);
    let mut feed = start(source.into(), 2, 2);
    assert_eq!(feed.next().unwrap().batch().labels(), [0, 1]);
    stage(&mut feed);
    let error = feed.next().err().unwrap().to_string();
    assert!(error.contains("torn"), "{error}");
    assert!(feed.next().is_err());
}

#[test]
fn a_batch_in_one_slot_of_the_lane_stays_while_the_next_one_is_copied_into_the_other() {
    let mut pool = Pool::start(data(), Augmentation::none(), requests(5), options(3)).unwrap();
    let mut lane = Lane::new(Device::Cpu, pool.batch_bytes()).unwrap();
    let shape = [BATCH as i64, 2, 3, 1];
    let mut before: Option<(usize, Tensor)> = None;
    for _ in 0..5 {
        let mut batch = pool.next().unwrap().unwrap();
        let slot = lane.upload(&mut batch).unwrap();
        let expected = Tensor::from_data_size(batch.images(), &shape, Kind::Uint8).to_kind(Kind::Float);
        drop(batch);
        if let Some((slot, expected)) = &before {
            assert_eq!(&lane.slot(*slot).floats(&shape).unwrap(), expected);
        }
        assert_eq!(lane.slot(slot).floats(&shape).unwrap(), expected);
        assert!(before.as_ref().is_none_or(|(earlier, _)| *earlier != slot));
        before = Some((slot, expected));
    }
}

#[test]
fn a_batch_too_large_for_the_lane_is_an_error() {
    let mut pool = Pool::start(data(), Augmentation::none(), requests(1), options(1)).unwrap();
    let mut lane = Lane::new(Device::Cpu, pool.batch_bytes() - 1).unwrap();
    assert!(lane.upload(&mut pool.next().unwrap().unwrap()).is_err());
}
