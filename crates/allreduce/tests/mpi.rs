//! The MPI communicator among real processes: this test binary starts itself under `mpirun`.
#![allow(clippy::unwrap_used)]

mod under_mpirun;

use std::time::Duration;

use allreduce::{
    Accumulation, Agreed, CommError, CommThread, Communicator, Failure, MpiCommunicator, Reducer,
    ReducerOptions, Reduction, Region, Segment, Wire, discover, plan_buckets,
};
use under_mpirun::{PATIENCE, all_ranks_pass, job_ends, run_scenario};

/// What one rank does, by name.
const SCENARIOS: [(&str, fn()); 9] = [
    ("collectives, ordered", || collectives(Reduction::Ordered)),
    ("collectives, library", || collectives(Reduction::Library)),
    ("reducer", reducer),
    ("agreement", agreement),
    ("abort", abort_while_others_wait),
    ("panic", panic_while_others_wait),
    ("crash", crash_while_others_wait),
    ("drop", end_without_shutdown),
    ("out of step", run_different_operations),
];

/// The body of each rank under `mpirun`; by itself it does nothing.
#[test]
fn rank() {
    run_scenario(&SCENARIOS);
}

fn collectives(reduction: Reduction) {
    let launched = discover().unwrap().expect("mpirun tells the rank");
    let mut comm = MpiCommunicator::initialize(reduction).unwrap();
    assert_eq!(MpiCommunicator::initialize(reduction).err(), Some(CommError::AlreadyStarted));
    let topology = comm.topology().clone();
    let (rank, world_size) = (topology.rank, topology.world_size);
    assert_eq!((launched.rank, launched.world_size), (rank, world_size));
    assert_eq!(launched.local_rank, Some(topology.local_rank));
    assert_eq!((topology.local_rank, topology.local_size), (rank, world_size), "all ranks are on this host");
    assert!(!topology.host.is_empty());
    let description = comm.description();
    assert!(description.contains("thread level") && description.contains('.'), "{description}");

    for len in [0, 1, 2, 5, 1000, 175_066, 3_000_000] {
        let mut values: Vec<f32> = (0..len).map(|index| ((rank + 1) * (index % 1000)) as f32).collect();
        comm.all_reduce(&mut values, Wire::Fp32).unwrap();
        let factor = world_size * (world_size + 1) / 2;
        let wrong =
            values.iter().enumerate().find(|&(index, &value)| value != (factor * (index % 1000)) as f32);
        assert_eq!(wrong, None, "{len} values");
    }
    let mut inexact: Vec<f32> = (0..999).map(|index| ((rank * 999 + index) as f32).sin().exp2()).collect();
    comm.all_reduce(&mut inexact, Wire::Fp32).unwrap();
    let bits: Vec<u8> = inexact.iter().flat_map(|value| value.to_le_bytes()).collect();
    let all = comm.all_gather(&bits).unwrap();
    assert!(all.iter().all(|other| *other == bits), "the ranks hold different sums");

    for root in 0..world_size {
        let mut values = vec![rank as f32; 100_000];
        comm.broadcast(&mut values, root).unwrap();
        assert!(values.iter().all(|&value| value == root as f32));
    }
    let of = |rank: usize| vec![rank as u8 + 1; rank * 70_000 % 150_000];
    let expected: Vec<_> = (0..world_size).map(of).collect();
    assert!(comm.all_gather(&of(rank)).unwrap() == expected);
    comm.barrier().unwrap();
    comm.finalize().unwrap();
    assert_eq!(comm.barrier().err(), (world_size > 1).then_some(CommError::Ended));
}

fn start() -> CommThread {
    CommThread::start(|| Ok(Box::new(MpiCommunicator::initialize(Reduction::Ordered)?))).unwrap()
}

/// Bucket by bucket, the mean over all ranks and their two micro batches, the second of which is zero.
fn reducer() {
    let comm = start();
    let (rank, world_size) = (comm.topology().rank, comm.topology().world_size);
    let segment =
        |index: usize| Segment { name: format!("segment {index}"), range: index * 2000..index * 2000 + 1990 };
    let segments: Vec<_> = (0..10).map(segment).collect();
    let len = 20_010;
    let scale = 1.0 / (2 * world_size) as f32;
    let options = ReducerOptions {
        overlap: true,
        scale,
        accumulation: Accumulation::Tree,
        wire: Wire::Fp32,
        sharded: 0,
        not_finite: None,
        own_not_finite: None,
    };
    let expected = (world_size * (world_size + 1) / 2) as f32 * scale;
    for (cap, count) in [(1 << 14, 4), (1 << 20, 1)] {
        let buckets = plan_buckets(&segments, len, cap, cap);
        assert_eq!(buckets.len(), count);
        let gradients = Region::from_vec(vec![(rank + 1) as f32; len]);
        let reducer = Reducer::new(comm.clone(), gradients.clone(), segments.clone(), buckets, options);
        reducer.begin_step(2);
        reducer.end_micro_batch();
        assert_eq!(gradients.to_vec(), vec![0.0; len]);
        reducer.begin_last_backward();
        (0..10).for_each(|segment| reducer.mark_ready(segment));
        reducer.seal();
        reducer.launch().unwrap();
        let exchange = reducer.settle().unwrap();
        assert_eq!(gradients.to_vec(), vec![expected; len]);
        assert_eq!(exchange.buckets.iter().map(|bucket| bucket.bytes).sum::<usize>(), 4 * len);
    }
    comm.shutdown().unwrap();
}

fn agreement() {
    let comm = start();
    let (rank, world_size) = (comm.topology().rank, comm.topology().world_size);
    let failure = |rank: usize| Failure { exit_code: 2, sentence: format!("rank {rank} has no data") };

    assert_eq!(comm.agree(Ok(rank)), Ok(rank));
    let lowest = world_size / 2;
    let local = if rank >= lowest { Err(failure(rank)) } else { Ok(()) };
    let expected = Agreed { rank: lowest, failure: failure(lowest), mine: rank == lowest };
    assert_eq!(comm.agree(local), Err(expected));

    assert_eq!(comm.agree_equal("the plan", "same"), Ok(()));
    let last = world_size - 1;
    let result = comm.agree_equal("the plan", if rank == last { "another" } else { "one" });
    match world_size {
        1 => assert_eq!(result, Ok(())),
        _ => {
            let agreed = result.unwrap_err();
            assert_eq!((agreed.rank, agreed.mine), (last, rank == last));
            let sentence = &agreed.failure.sentence;
            assert!(sentence.starts_with("the plan differs between ranks: rank 0 on "), "{sentence}");
            assert!(sentence.contains("has 'one'") && sentence.ends_with("has 'another'"), "{sentence}");
        }
    }
    comm.shutdown().unwrap();
}

/// All but the last rank wait; rank 0 aborts from another thread meanwhile.
fn abort_while_others_wait() {
    let comm = start();
    if comm.topology().rank == 0 {
        let handle = comm.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            handle.abort(7);
        });
    }
    if comm.topology().rank + 1 < comm.topology().world_size {
        let _ = comm.barrier();
        unreachable!("the last rank never comes");
    }
    std::thread::sleep(PATIENCE);
}

fn panic_while_others_wait() {
    let comm = start();
    let handle = comm.clone();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        handle.abort(5);
    }));
    if comm.topology().rank == 0 {
        panic!("rank 0 has a bug");
    }
    let _ = comm.barrier();
    std::thread::sleep(PATIENCE);
}

fn crash_while_others_wait() {
    let comm = start();
    if comm.topology().rank == 1 {
        std::process::abort();
    }
    let _ = comm.barrier();
    std::thread::sleep(PATIENCE);
}

fn end_without_shutdown() {
    let comm = start();
    if comm.topology().rank == 0 {
        return;
    }
    let _ = comm.barrier();
    std::thread::sleep(PATIENCE);
}

fn run_different_operations() {
    let comm = start();
    let result = match comm.topology().rank {
        0 => comm.broadcast(Region::from_vec(vec![1.0]), 0),
        _ => comm.broadcast(Region::from_vec(vec![1.0; 2]), 0),
    };
    if comm.topology().rank == 1 {
        assert_eq!(result, Err(CommError::OutOfStep { peer: 0, expected: 8, received: 4 }));
        assert_eq!(comm.barrier(), result, "a failed exchange is the last one");
        comm.abort(4);
    }
    let _ = comm.barrier();
    std::thread::sleep(PATIENCE);
}

#[test]
fn ordered_collectives_work_for_any_rank_count() {
    all_ranks_pass("collectives, ordered", &[1, 2, 3, 4], &[]);
}

#[test]
fn collectives_with_the_library_s_own_reduction_work_for_any_rank_count() {
    all_ranks_pass("collectives, library", &[1, 2, 3, 4], &[]);
}

#[test]
fn the_reducer_averages_over_processes() {
    all_ranks_pass("reducer", &[1, 2, 3, 4], &[]);
}

#[test]
fn processes_agree_on_the_lowest_failure() {
    all_ranks_pass("agreement", &[1, 2, 3, 4], &[]);
}

#[test]
fn an_abort_from_another_thread_ends_all_ranks_while_they_wait() {
    for ranks in [2, 4] {
        job_ends("abort", ranks, Some(7), &[]);
    }
}

#[test]
fn a_panic_on_one_rank_ends_all() {
    job_ends("panic", 3, Some(5), &[]);
}

#[test]
fn a_crash_of_one_rank_ends_all() {
    job_ends("crash", 3, None, &[]);
}

#[test]
fn a_rank_that_leaves_without_shutdown_ends_all() {
    job_ends("drop", 2, Some(1), &[]);
}

#[test]
fn ranks_that_run_different_operations_end_with_an_error() {
    job_ends("out of step", 2, Some(4), &[]);
}
