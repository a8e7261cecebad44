//! What the reducer promises: when buckets leave, and what they hold afterwards, bit for bit.

mod averages;
mod hooks;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::communicator::{AbortSignal, Communicator};
use crate::in_process::{on_each_comm_thread, wild_values};
use crate::{Solo, Topology, plan_buckets};

/// A rank alone whose exchanges take a while, and are counted.
struct Slow {
    solo: Solo,
    all_reduce: Duration,
    done: Arc<AtomicUsize>,
}

impl Communicator for Slow {
    fn topology(&self) -> &Topology {
        self.solo.topology()
    }
    fn description(&self) -> String {
        self.solo.description()
    }
    fn interrupt_by(&mut self, signal: AbortSignal) {
        self.solo.interrupt_by(signal);
    }
    fn all_reduce(&mut self, _values: &mut [f32], _wire: Wire) -> Result<(), CommError> {
        std::thread::sleep(self.all_reduce);
        self.done.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CommError> {
        self.solo.broadcast(values, root)
    }
    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.solo.all_gather(bytes)
    }
    fn barrier(&mut self) -> Result<(), CommError> {
        self.solo.barrier()
    }
    fn abort(&mut self, exit_code: i32) {
        self.solo.abort(exit_code);
    }
    fn finalize(&mut self) -> Result<(), CommError> {
        self.solo.finalize()
    }
}

fn slow(all_reduce: Duration) -> (CommThread, Arc<AtomicUsize>) {
    let done = Arc::new(AtomicUsize::new(0));
    let communicator = Slow { solo: Solo::new(), all_reduce, done: Arc::clone(&done) };
    (CommThread::start(move || Ok(Box::new(communicator))).unwrap(), done)
}

fn wait_until(done: &AtomicUsize, count: usize) {
    let begin = Instant::now();
    while done.load(Ordering::SeqCst) < count {
        assert!(begin.elapsed() < Duration::from_secs(10), "no exchange number {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const LEN: usize = 3 * 64 + 10;
/// Where averages that are not finite are counted.
const NOT_FINITE: usize = LEN - 1;

const OPTIONS: ReducerOptions = ReducerOptions {
    overlap: true,
    scale: 1.0,
    accumulation: Accumulation::InPlace,
    wire: Wire::Fp32,
    sharded: 0,
    not_finite: Some(NOT_FINITE),
    own_not_finite: None,
};

/// Three segments with padding, and a tail of ten elements.
fn segments() -> Vec<Segment> {
    (0..3)
        .map(|index| Segment { name: format!("segment {index}"), range: 64 * index..64 * index + 50 })
        .collect()
}

fn reducer(
    comm: CommThread,
    gradients: &Region,
    cap: usize,
    overlap: bool,
    accumulation: Accumulation,
    scale: f32,
) -> Reducer {
    let buckets = plan_buckets(&segments(), LEN, cap, cap);
    let options = ReducerOptions { overlap, scale, accumulation, ..OPTIONS };
    Reducer::new(comm, gradients.clone(), segments(), buckets, options)
}

fn finish(reducer: &Reducer) -> Result<StepExchange, CommError> {
    reducer.launch()?;
    reducer.settle()
}

#[test]
fn buckets_leave_in_index_order_as_soon_as_their_segments_are_ready() {
    let (comm, done) = slow(Duration::ZERO);
    let gradients = Region::from_vec(vec![1.0; LEN]);
    let reducer = reducer(comm, &gradients, 0, true, Accumulation::InPlace, 2.0);
    for _step in 0..3 {
        done.store(0, Ordering::SeqCst);
        gradients.lock().fill(1.0);
        reducer.begin_step(2);
        reducer.mark_ready(0);
        reducer.end_micro_batch();
        reducer.begin_last_backward();
        reducer.mark_ready(1);
        reducer.mark_ready(1);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(done.load(Ordering::SeqCst), 0, "bucket 0 is not ready");
        reducer.mark_ready(0);
        wait_until(&done, 2);
        reducer.mark_ready(2);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(done.load(Ordering::SeqCst), 2, "the tail is not written");
        reducer.seal();
        wait_until(&done, 3);
        let exchange = finish(&reducer).unwrap();
        assert!(exchange.unready.is_empty());
        let records: Vec<_> = exchange.buckets.iter().map(|record| (record.bucket, record.bytes)).collect();
        assert_eq!(records, [(0, 256), (1, 256), (2, 296)]);
        for record in exchange.buckets {
            assert!(record.queued <= record.started && record.started <= record.finished);
        }
        assert_eq!(gradients.to_vec(), [2.0; LEN]);
    }
}

#[test]
fn without_overlap_all_buckets_leave_at_the_end() {
    let (comm, done) = slow(Duration::from_millis(2));
    let gradients = Region::from_vec(vec![1.0; LEN]);
    let reducer = reducer(comm, &gradients, 0, false, Accumulation::InPlace, 1.0);
    reducer.begin_step(1);
    reducer.begin_last_backward();
    reducer.seal();
    (0..3).for_each(|segment| reducer.mark_ready(segment));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(done.load(Ordering::SeqCst), 0);
    let begin = Instant::now();
    let exchange = finish(&reducer).unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 3);
    assert!(begin.elapsed() >= Duration::from_millis(6));
    assert!(exchange.buckets[0].queued >= Duration::from_millis(5));
}

#[test]
fn with_overlap_only_the_last_exchange_is_exposed() {
    let (comm, done) = slow(Duration::from_millis(50));
    let gradients = Region::from_vec(vec![1.0; LEN]);
    let reducer = reducer(comm, &gradients, 0, true, Accumulation::InPlace, 1.0);
    reducer.begin_step(1);
    reducer.begin_last_backward();
    reducer.seal();
    for segment in 0..3 {
        wait_until(&done, segment);
        reducer.mark_ready(segment);
    }
    let begin = Instant::now();
    let exchange = finish(&reducer).unwrap();
    let exposed = begin.elapsed();
    let busy: Duration = exchange.buckets.iter().map(|record| record.finished - record.started).sum();
    assert!(busy >= Duration::from_millis(150));
    assert!(exposed < busy * 2 / 3, "{exposed:?}, {exchange:?}");
}

#[test]
fn segments_that_never_become_ready_are_sent_at_the_end_and_reported() {
    let (comm, done) = slow(Duration::ZERO);
    let gradients = Region::from_vec(vec![0.0; LEN]);
    let reducer = reducer(comm, &gradients, 0, true, Accumulation::Tree, 1.0);
    reducer.begin_step(1);
    reducer.begin_last_backward();
    reducer.mark_ready(0);
    reducer.mark_ready(2);
    reducer.mark_ready(3);
    reducer.seal();
    assert_eq!(finish(&reducer).unwrap().unready, [1]);
    assert_eq!(done.load(Ordering::SeqCst), 3);
    reducer.begin_step(1);
    assert_eq!(finish(&reducer).unwrap().unready, [0, 1, 2], "a step in which backward never ran");
}

#[test]
fn what_becomes_ready_after_the_launch_sends_nothing_again() {
    let (comm, done) = slow(Duration::ZERO);
    let gradients = Region::from_vec(vec![1.0; LEN]);
    let reducer = reducer(comm.clone(), &gradients, 0, true, Accumulation::InPlace, 0.5);
    for step in 1..3 {
        reducer.begin_step(1);
        reducer.begin_last_backward();
        reducer.mark_ready(0);
        reducer.mark_ready(2);
        reducer.seal();
        reducer.launch().unwrap();
        reducer.mark_ready(1);
        reducer.seal();
        // Behind whatever was sent.
        comm.barrier().unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 3 * step);
        assert_eq!(reducer.settle().unwrap().unready, [1]);
    }
    assert_eq!(gradients.to_vec(), [0.25; LEN]);
}

#[test]
fn a_step_after_the_end_of_communication_is_an_error_and_no_hang() {
    let (comm, _) = slow(Duration::ZERO);
    let gradients = Region::from_vec(vec![0.0; LEN]);
    let reducer = reducer(comm.clone(), &gradients, 0, true, Accumulation::InPlace, 1.0);
    comm.shutdown().unwrap();
    for _step in 0..2 {
        reducer.begin_step(1);
        reducer.begin_last_backward();
        reducer.mark_ready(0);
        assert_eq!(finish(&reducer), Err(CommError::Ended));
    }
}

#[test]
#[should_panic(expected = "segment segment 1 is not within bucket 0")]
fn buckets_of_other_segments_are_refused() {
    let (comm, _) = slow(Duration::ZERO);
    let buckets = vec![Bucket { range: 0..100, segments: 0..3 }];
    let options = ReducerOptions { not_finite: None, ..OPTIONS };
    let _ = Reducer::new(comm, Region::from_vec(vec![0.0; LEN]), segments(), buckets, options);
}

#[test]
fn compression_rounds_the_scaled_segments_and_leaves_the_tail_alone() {
    for (cap, bytes) in [(0, vec![128, 128, 2 * 50 + 4 * 24]), (usize::MAX, vec![2 * 178 + 4 * 24])] {
        let results = on_each_comm_thread(3, |comm| {
            let rank = comm.topology().rank;
            // Three ranks' values near 60,000 would overflow fp16 if they were summed before they are scaled;
            // 16,777,217 needs more bits than fp32 has, so the tail shows whether it is summed in fp32.
            let gradients = Region::from_vec(vec![60_000.0; LEN]);
            gradients.slice(182..LEN).lock().fill([16_777_216.0, 1.0, 3.0][rank]);
            let buckets = plan_buckets(&segments(), LEN, cap, cap);
            let options = ReducerOptions { scale: 1.0 / 3.0, wire: Wire::Fp16, not_finite: None, ..OPTIONS };
            let reducer = Reducer::new(comm.clone(), gradients.clone(), segments(), buckets, options);
            reducer.begin_step(1);
            reducer.begin_last_backward();
            (0..3).for_each(|segment| reducer.mark_ready(segment));
            reducer.seal();
            let exchange = finish(&reducer).unwrap();
            (gradients.to_vec(), exchange.buckets.iter().map(|record| record.bytes).collect::<Vec<_>>())
        });
        for (values, sent) in results {
            assert_eq!(sent, bytes);
            assert!(values[..178].iter().all(|&value| value == 60_000.0), "{values:?}");
            let tail = (16_777_216.0f32 + 1.0 + 3.0) * (1.0 / 3.0);
            assert!(values[182..].iter().all(|&value| value == tail), "{:?}", &values[178..]);
        }
    }
}

#[test]
fn shards_hold_the_bits_of_the_whole_average_and_the_tail_is_everybodys() {
    const SHARDED: usize = 192;
    for world_size in [1, 2, 3, 4] {
        for cap in [0, 300, usize::MAX] {
            let of = |sharded: usize| {
                on_each_comm_thread(world_size, |comm| {
                    let gradients = Region::from_vec(wild_values(LEN, comm.topology().rank as u64));
                    let buckets = plan_buckets(&segments(), LEN, cap, cap);
                    let options = ReducerOptions { scale: 0.3, sharded, ..OPTIONS };
                    let reducer = Reducer::new(comm.clone(), gradients.clone(), segments(), buckets, options);
                    reducer.begin_step(1);
                    reducer.begin_last_backward();
                    reducer.seal();
                    finish(&reducer).unwrap();
                    let shards = reducer.shards();
                    for (bucket, own) in &shards {
                        // Of no account.
                        gradients.slice(bucket.start..own.start).lock().fill(f32::NAN);
                        gradients.slice(own.end..bucket.end).lock().fill(f32::NAN);
                        comm.gather_shards(gradients.slice(bucket.clone())).unwrap();
                    }
                    assert_eq!(shards.iter().map(|(bucket, _)| bucket.len()).sum::<usize>(), sharded);
                    gradients.to_vec().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
                })
            };
            let (whole, gathered) = (of(0), of(SHARDED));
            assert!(whole == gathered, "{world_size} ranks, cap {cap}");
        }
    }
}

#[test]
fn what_is_not_finite_in_one_shard_or_anywhere_is_known_to_all_ranks_and_so_is_whose_it_was() {
    const MARKS: usize = LEN - 4;
    for (sharded, bad) in
        [(192, None), (192, Some(0)), (192, Some(150)), (0, Some(150)), (0, Some(MARKS - 1))]
    {
        for cap in [0, usize::MAX] {
            let counts = on_each_comm_thread(3, |comm| {
                let gradients = Region::from_vec(vec![1.0; LEN]);
                gradients.lock()[MARKS..].fill(0.0);
                let rank = comm.topology().rank;
                if let (Some(bad), 2) = (bad, rank) {
                    gradients.lock()[bad] = f32::INFINITY;
                }
                let buckets = plan_buckets(&segments(), LEN, cap, cap);
                let own_not_finite = Some(MARKS + rank);
                let options = ReducerOptions { scale: 0.5, sharded, own_not_finite, ..OPTIONS };
                let reducer = Reducer::new(comm.clone(), gradients.clone(), segments(), buckets, options);
                reducer.begin_step(1);
                finish(&reducer).unwrap();
                gradients.to_vec().split_off(MARKS)
            });
            let found = counts[0].iter().map(|count| *count > 0.0);
            let (bad, case) = (bad.is_some(), format!("{sharded}, {bad:?}: {counts:?}"));
            assert!(found.eq([false, false, bad, bad]), "{case}");
            assert!(counts.iter().all(|count| *count == counts[0]), "{case}");
        }
    }
}
