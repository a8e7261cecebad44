//! What a hook sees of each bucket, and what it may do.

use super::*;
use crate::Sum;

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
