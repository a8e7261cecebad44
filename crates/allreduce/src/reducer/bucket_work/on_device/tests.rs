//! Exchanges on a device: what is refused, and what a device that is late keeps waiting.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::nccl::{ExchangeDevice, HostMemory, RegionDevice};
use crate::{
    Accumulation, BucketHook, CommThread, Reducer, ReducerOptions, Region, Segment, Solo, Wire, plan_buckets,
};

const OPTIONS: ReducerOptions = ReducerOptions {
    overlap: true,
    scale: 0.5,
    accumulation: Accumulation::InPlace,
    wire: Wire::Fp32,
    sharded: 0,
    not_finite: None,
    own_not_finite: None,
};

/// Host memory that goes as that of `device`.
fn on_device(device: impl ExchangeDevice + 'static, mut values: Vec<f32>) -> Region {
    let device = RegionDevice::new(device, || Ok(Box::new(|| Ok(())) as Ready));
    let start = NonNull::new(values.as_mut_ptr()).unwrap();
    let len = values.len();
    // SAFETY: the elements stay where they are as long as their owner lives, and only the region reaches them.
    unsafe { Region::on_device(start, len, Arc::new(values), device) }
}

struct Exchanges;

impl BucketHook for Exchanges {
    fn exchanges(&self) -> bool {
        true
    }
}

#[test]
fn a_hook_that_exchanges_in_host_memory_is_refused_rather_than_ignored() {
    let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
    let segments = vec![Segment { name: "weight".into(), range: 0..64 }];
    let reducer = |hook: Option<Exchanges>| {
        let buckets = plan_buckets(&segments, 64, 1 << 9, 1 << 9);
        let gradients = on_device(HostMemory::default(), vec![2.0; 64]);
        let reducer = Reducer::new(comm.clone(), gradients, segments.clone(), buckets, OPTIONS);
        match hook {
            Some(hook) => reducer.with_hook(Box::new(hook)),
            None => reducer,
        }
    };
    for (hook, refused) in [(None, false), (Some(Exchanges), true)] {
        let reducer = reducer(hook);
        reducer.begin_step(1);
        let result = reducer.launch().and_then(|()| reducer.settle());
        assert_eq!(matches!(result, Err(CommError::Hook(_))), refused, "{result:?}");
        assert_eq!(result.is_ok(), !refused, "{result:?}");
    }
}

/// Whether a device has done all that is queued there, or why it cannot.
type Progress = Arc<Mutex<Result<bool, String>>>;

/// Host memory of a device that lets wait for what it has done.
struct Late(Progress);

struct LateMoment(Progress);

impl Moment for LateMoment {
    fn has_come(&mut self) -> Result<bool, String> {
        self.0.lock().unwrap().clone()
    }

    fn hold_caller(&mut self) -> Result<(), String> {
        Ok(())
    }
}

// SAFETY: each operation is complete when it returns, before its moment comes.
unsafe impl ExchangeDevice for Late {
    fn stream(&mut self) -> Result<*mut c_void, String> {
        unreachable!("a rank alone sends nothing")
    }

    unsafe fn round(&mut self, _: *const f32, _: *mut c_void, _: usize, _: Wire) -> Result<(), String> {
        unreachable!("a rank alone sends nothing")
    }

    unsafe fn widen(&mut self, _: *const c_void, _: *mut f32, _: usize, _: Wire) -> Result<(), String> {
        unreachable!("a rank alone sends nothing")
    }

    unsafe fn sum_rows(
        &mut self,
        _: *mut c_void,
        _: usize,
        _: usize,
        _: usize,
        _: Wire,
    ) -> Result<(), String> {
        unreachable!("a rank alone sends nothing")
    }

    unsafe fn scale(&mut self, values: *mut f32, len: usize, factor: f32) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { HostMemory::default().scale(values, len, factor) }
    }

    unsafe fn count_not_finite(
        &mut self,
        values: *const f32,
        len: usize,
        count: *mut f32,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { HostMemory::default().count_not_finite(values, len, count) }
    }

    unsafe fn read(&mut self, value: *const f32) -> Result<f32, String> {
        // SAFETY: the caller's promise.
        unsafe { HostMemory::default().read(value) }
    }

    fn mark(&mut self) -> Result<Box<dyn Moment>, String> {
        Ok(Box::new(LateMoment(Arc::clone(&self.0))))
    }
}

/// A rank alone, with three buckets on a device that is late.
fn late() -> (CommThread, Reducer, Progress) {
    let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
    let progress: Progress = Arc::new(Mutex::new(Ok(false)));
    let segments: Vec<_> = (0..3)
        .map(|index| Segment { name: format!("segment {index}"), range: 64 * index..64 * index + 64 })
        .collect();
    let options = ReducerOptions { not_finite: Some(195), ..OPTIONS };
    let buckets = plan_buckets(&segments, 200, 0, 0);
    let gradients = on_device(Late(Arc::clone(&progress)), vec![1.0; 200]);
    let reducer = Reducer::new(comm.clone(), gradients, segments, buckets, options);
    (comm, reducer, progress)
}

#[test]
fn steps_are_launched_while_the_device_is_busy_with_the_one_before_and_settled_in_order() {
    let (comm, reducer, progress) = late();
    for _step in 0..2 {
        reducer.begin_step(1);
        reducer.begin_last_backward();
        reducer.mark_ready(0);
        reducer.mark_ready(1);
        reducer.seal();
        reducer.launch().unwrap();
    }
    assert_eq!(comm.flight().status().collectives, 1, "of six that are queued");
    std::thread::scope(|scope| {
        let _ = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            *progress.lock().unwrap() = Ok(true);
        });
        // Waits for the device, as what uses host memory does.
        comm.barrier().unwrap();
        assert_eq!(*progress.lock().unwrap(), Ok(true));
    });
    for _step in 0..2 {
        let exchange = reducer.settle().unwrap();
        assert_eq!(exchange.unready, [2]);
        assert_eq!(exchange.buckets.iter().map(|record| record.bucket).collect::<Vec<_>>(), [0, 1, 2]);
        for record in exchange.buckets {
            assert!(record.finished - record.started >= Duration::from_millis(20), "{record:?}");
        }
    }
    comm.shutdown().unwrap();
}

#[test]
fn what_a_device_fails_at_is_the_error_of_the_step_and_of_all_that_follow() {
    let (comm, reducer, progress) = late();
    for _step in 0..2 {
        reducer.begin_step(1);
        reducer.launch().unwrap();
    }
    *progress.lock().unwrap() = Err("it is on fire".into());
    let failure = CommError::Nccl("the device of the exchange failed: it is on fire".into());
    assert_eq!(reducer.settle(), Err(failure.clone()));
    assert_eq!(reducer.settle(), Err(failure.clone()));
    reducer.begin_step(1);
    assert_eq!(reducer.launch(), Err(failure.clone()));
    assert_eq!(comm.barrier(), Err(failure.clone()));
    assert_eq!(comm.flight().failure(), Some(failure));
}

#[test]
fn an_abort_reaches_a_rank_that_waits_for_its_device() {
    let (comm, reducer, _progress) = late();
    reducer.begin_step(1);
    reducer.launch().unwrap();
    comm.abort(3);
    assert_eq!(reducer.settle().err(), Some(CommError::Ended));
    assert_eq!(comm.barrier(), Err(CommError::Aborted));
}

#[test]
fn an_abort_reaches_an_operation_in_host_memory_that_waits_for_the_device() {
    let (comm, reducer, _progress) = late();
    reducer.begin_step(1);
    reducer.launch().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| comm.barrier());
        std::thread::sleep(Duration::from_millis(20));
        comm.abort(3);
        assert_eq!(waiting.join().unwrap(), Err(CommError::Aborted));
    });
}
