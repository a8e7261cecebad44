//! What the reducer promises: when buckets leave, and what they hold afterwards, bit for bit.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::communicator::{AbortSignal, Communicator};
use crate::in_process::{on_each_comm_thread, wild_values};
use crate::{Solo, Sum, Topology, plan_buckets};

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

/// The averages of two steps as bits, by rank. Micro batch j of step s holds `wild_values(LEN, 1000 s + j)`.
fn averages(
    world_size: usize,
    micro_batches: usize,
    cap: usize,
    overlap: bool,
    accumulation: Accumulation,
) -> Vec<Vec<u32>> {
    on_each_comm_thread(world_size, |comm| {
        let gradients = Region::from_vec(vec![0.0; LEN]);
        let scale = 1.0 / micro_batches as f32;
        let reducer = reducer(comm.clone(), &gradients, cap, overlap, accumulation, scale);
        let local = micro_batches / world_size;
        let first = comm.topology().rank * local;
        // As backward does: adds to the buffer.
        let backward = |seed: usize, range: Range<usize>| {
            let values = wild_values(LEN, seed as u64);
            let region = gradients.slice(range.clone());
            for (gradient, value) in region.lock().iter_mut().zip(&values[range]) {
                *gradient += value;
            }
        };
        let mut bits = Vec::new();
        for step in 0..2 {
            gradients.lock().fill(0.0);
            reducer.begin_step(local);
            for micro_batch in first..first + local - 1 {
                backward(1000 * step + micro_batch, 0..LEN);
                reducer.end_micro_batch();
            }
            let last = 1000 * step + first + local - 1;
            backward(last, 192..LEN);
            reducer.begin_last_backward();
            reducer.seal();
            for segment in 0..3 {
                backward(last, 64 * segment..64 * segment + 64);
                reducer.mark_ready(segment);
            }
            finish(&reducer).unwrap();
            bits.extend(gradients.to_vec().iter().map(|value| value.to_bits()));
        }
        bits
    })
}

#[test]
fn rank_count_buckets_and_overlap_change_no_bit() {
    // Micro batches, and the rank counts for which a rank has a power of two of them, or all.
    for (micro_batches, world_sizes) in [
        (1, &[1][..]),
        (2, &[1, 2]),
        (4, &[1, 2, 4]),
        (8, &[1, 2, 4, 8]),
        (12, &[1, 3, 6, 12]),
        (6, &[1, 3, 6]),
        (5, &[1, 5]),
    ] {
        let alone = averages(1, micro_batches, usize::MAX, true, Accumulation::Tree).remove(0);
        for &world_size in world_sizes {
            for (cap, overlap) in [(0, true), (300, false), (usize::MAX, true)] {
                for (rank, bits) in
                    averages(world_size, micro_batches, cap, overlap, Accumulation::Tree).iter().enumerate()
                {
                    assert!(
                        *bits == alone,
                        "{micro_batches} micro batches, rank {rank} of {world_size}, cap {cap}, overlap {overlap}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_order_of_summation_matters_for_these_values() {
    let tree = averages(1, 8, usize::MAX, true, Accumulation::Tree);
    let in_place = averages(1, 8, usize::MAX, true, Accumulation::InPlace);
    assert_ne!(tree, in_place);
}

#[test]
fn any_division_repeats_its_bits_on_every_rank() {
    for (world_size, micro_batches) in [(2, 6), (3, 9), (5, 5), (4, 12)] {
        for accumulation in [Accumulation::Tree, Accumulation::InPlace] {
            let once = averages(world_size, micro_batches, 0, true, accumulation);
            assert!(once.iter().all(|bits| *bits == once[0]));
            assert_eq!(averages(world_size, micro_batches, 300, false, accumulation), once);
        }
    }
}

#[test]
fn averages_are_close_to_the_exact_ones() {
    for accumulation in [Accumulation::Tree, Accumulation::InPlace] {
        let (world_size, micro_batches) = (3, 6);
        let bits = averages(world_size, micro_batches, 300, true, accumulation).remove(1);
        for (index, bits) in bits[..LEN].iter().enumerate() {
            let terms = (0..micro_batches).map(|seed| f64::from(wild_values(LEN, seed as u64)[index]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let error = (f64::from(f32::from_bits(*bits)) - sum / micro_batches as f64).abs();
            assert!(error <= 1e-6 * size, "element {index} is off by {error}");
        }
    }
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

/// Buckets and what they hold.
type Calls = Arc<Mutex<Vec<(usize, Vec<f32>)>>>;

/// Notes with which values it is called.
struct Noting {
    gradients: Region,
    exchanges: bool,
    calls: Calls,
}

impl BucketHook for Noting {
    fn exchanges(&self) -> bool {
        self.exchanges
    }
    fn all_reduce(&mut self, bucket: usize, values: &mut [f32], sum: &mut Sum<'_>) -> Result<(), CommError> {
        self.calls.lock().unwrap().push((bucket, values.to_vec()));
        // An approximation: only the first element travels.
        let first = &mut values[..1];
        sum(first)?;
        let first = first[0];
        values.fill(first);
        Ok(())
    }
    fn averaged(&mut self, bucket: usize) -> Result<(), CommError> {
        // The whole buffer: none of it may be locked now.
        self.calls.lock().unwrap().push((bucket, self.gradients.to_vec()));
        if bucket == 7 { Err(CommError::Hook("no bucket 7".into())) } else { Ok(()) }
    }
}

#[test]
fn a_hook_sees_each_bucket_once_it_is_averaged_until_one_is_not_finite() {
    let results = on_each_comm_thread(2, |comm| {
        let rank = comm.topology().rank;
        let gradients = Region::from_vec(vec![0.0; LEN]);
        let calls = Calls::default();
        let hook = Noting { gradients: gradients.clone(), exchanges: false, calls: Arc::clone(&calls) };
        let reducer =
            reducer(comm.clone(), &gradients, 0, true, Accumulation::InPlace, 0.5).with_hook(Box::new(hook));
        for bad in [None, Some(100), None] {
            gradients.lock().fill(rank as f32);
            if let (Some(bad), 1) = (bad, rank) {
                gradients.lock()[bad] = f32::NAN;
            }
            gradients.lock()[NOT_FINITE] = 0.0;
            reducer.begin_step(1);
            reducer.begin_last_backward();
            (0..3).for_each(|segment| reducer.mark_ready(segment));
            reducer.seal();
            finish(&reducer).unwrap();
            assert_eq!(gradients.lock()[NOT_FINITE] == 0.0, bad.is_none());
        }
        std::mem::take(&mut *calls.lock().unwrap())
    });
    for calls in results {
        let buckets: Vec<_> = calls.iter().map(|(bucket, _)| *bucket).collect();
        assert_eq!(buckets, [0, 1, 2, 0, 0, 1, 2], "the second step has a NaN in bucket 1");
        let ends = [64, 128, NOT_FINITE];
        for (bucket, values) in calls {
            assert!(values[..ends[bucket]].iter().all(|&value| value == 0.5), "bucket {bucket}: {values:?}");
        }
    }
}

#[test]
fn a_hook_that_exchanges_gets_the_scaled_segments_and_the_rest_is_summed_as_ever() {
    let results = on_each_comm_thread(2, |comm| {
        let rank = comm.topology().rank;
        let gradients = Region::from_vec(vec![2.0 * (rank + 1) as f32; LEN]);
        let calls = Calls::default();
        let hook = Noting { gradients: gradients.clone(), exchanges: true, calls: Arc::clone(&calls) };
        let reducer = reducer(comm.clone(), &gradients, usize::MAX, true, Accumulation::InPlace, 0.5)
            .with_hook(Box::new(hook));
        reducer.begin_step(1);
        let exchange = finish(&reducer).unwrap();
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        (rank, exchange.buckets[0].bytes, calls, gradients.to_vec())
    });
    for (rank, bytes, calls, gradients) in results {
        // The last segment ends at 178; then come padding and the tail.
        assert_eq!(calls[0], (0, vec![(rank + 1) as f32; 178]));
        assert_eq!(bytes, 4 + 4 * (LEN - 178), "one element, and what is in no segment");
        assert_eq!(gradients, [3.0; LEN]);
    }
}

#[test]
fn an_error_of_a_hook_is_the_error_of_the_step() {
    let (comm, _) = slow(Duration::ZERO);
    let gradients = Region::from_vec(vec![0.0; 8 * 64]);
    let segments: Vec<_> = (0..8)
        .map(|index| Segment { name: format!("segment {index}"), range: 64 * index..64 * index + 64 })
        .collect();
    let buckets = plan_buckets(&segments, 8 * 64, 0, 0);
    let options = ReducerOptions { not_finite: None, ..OPTIONS };
    let hook = Noting { gradients: gradients.clone(), exchanges: false, calls: Arc::default() };
    let reducer = Reducer::new(comm, gradients, segments, buckets, options).with_hook(Box::new(hook));
    reducer.begin_step(1);
    assert_eq!(finish(&reducer), Err(CommError::Hook("no bucket 7".into())));
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
