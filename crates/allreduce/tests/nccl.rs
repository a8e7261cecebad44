//! The NCCL communicator among real processes, over the test double of libnccl: this test binary starts itself under
//! `mpirun`.
#![allow(clippy::unwrap_used)]

mod under_mpirun;

use std::time::Duration;

use allreduce::{
    Accumulation, CommError, CommThread, Communicator, MpiCommunicator, NcclCommunicator, Reducer,
    ReducerOptions, Reduction, Region, Segment, Wire, plan_buckets,
};
use under_mpirun::{PATIENCE, all_ranks_pass, job_ends, run_scenario};

/// What one rank does, by name.
const SCENARIOS: [(&str, fn()); 9] = [
    ("ordered", ordered_sums_equal_those_over_mpi),
    ("library", nccl_s_own_sums),
    ("ordered shards", || shards(Reduction::Ordered)),
    ("library's shards", || shards(Reduction::Library)),
    ("reducer", reducer),
    ("abort", abort_while_others_wait),
    ("absent", wait_for_a_rank_that_is_absent),
    ("error", hear_of_an_error),
    ("no library", fail_alike_without_a_library),
];

const OPTIONS: ReducerOptions = ReducerOptions {
    overlap: true,
    scale: 1.0,
    accumulation: Accumulation::InPlace,
    wire: Wire::Fp32,
    sharded: 0,
    not_finite: None,
    own_not_finite: None,
};

/// The body of each rank under `mpirun`; by itself it does nothing.
#[test]
fn rank() {
    run_scenario(&SCENARIOS);
}

fn mpi() -> Result<Box<dyn Communicator>, CommError> {
    Ok(Box::new(MpiCommunicator::initialize(Reduction::Ordered)?))
}

fn nccl(reduction: Reduction) -> Result<Box<dyn Communicator>, CommError> {
    Ok(Box::new(NcclCommunicator::new(mpi()?, reduction, nccl_rs::Config::default())?))
}

/// Of very different size, so that almost every order of summation gives other bits.
fn wild_values(len: usize, rank: usize) -> Vec<f32> {
    let exponent = |index: usize| ((index * 7 + rank * 5) % 23) as f32 - 11.0;
    (0..len).map(|index| ((rank * len + index) as f32).sin() * exponent(index).exp2()).collect()
}

/// The sum by the definition, of values that travel as `wire` says.
fn tree_sum(world_size: usize, len: usize, wire: Wire) -> Vec<u32> {
    let rows: Vec<_> = (0..world_size).map(|rank| wild_values(len, rank)).collect();
    let sum = |index: usize| {
        let mut sums: Vec<f32> = rows.iter().map(|row| wire.round(row[index])).collect();
        while sums.len() > 1 {
            sums = sums.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
        }
        wire.round(sums[0]).to_bits()
    };
    (0..len).map(sum).collect()
}

fn ordered_sums_equal_those_over_mpi() {
    let mut comm = nccl(Reduction::Ordered).unwrap();
    let (rank, world_size) = (comm.topology().rank, comm.topology().world_size);
    assert!(comm.description().contains("libnccl_double.so; beside it "), "{}", comm.description());
    assert!(comm.sums_host_memory() && comm.sums_device_memory());
    // Long and short ones in turn: memory grows, and is reused.
    for len in [0, 1, 15, 16, 17, 1000, 3, 175_066, 100] {
        for wire in [Wire::Fp32, Wire::Bf16, Wire::Fp16] {
            let mut values = wild_values(len, rank);
            comm.all_reduce(&mut values, wire).unwrap();
            let bits: Vec<_> = values.iter().map(|value| value.to_bits()).collect();
            assert!(bits == tree_sum(world_size, len, wire), "{len} values, {wire:?}, rank {rank}");
        }
    }
    let mut values = vec![rank as f32; 1000];
    comm.broadcast(&mut values, world_size - 1).unwrap();
    assert_eq!(values, vec![(world_size - 1) as f32; 1000]);
    assert_eq!(comm.all_gather(&[rank as u8]).unwrap().concat(), (0..world_size as u8).collect::<Vec<_>>());
    comm.barrier().unwrap();
    comm.finalize().unwrap();
    assert_eq!(comm.all_reduce(&mut [1.0], Wire::Fp32), Err(CommError::Ended));
}

fn nccl_s_own_sums() {
    let mut comm = nccl(Reduction::Library).unwrap();
    let (rank, world_size) = (comm.topology().rank, comm.topology().world_size);
    for wire in [Wire::Fp32, Wire::Bf16, Wire::Fp16] {
        // Small whole numbers, which no format rounds.
        let mut values: Vec<f32> = (0..10_000).map(|index| (index % 7 * rank) as f32).collect();
        comm.all_reduce(&mut values, wire).unwrap();
        let factor = world_size * (world_size - 1) / 2;
        assert!((0..10_000).all(|index| values[index] == (index % 7 * factor) as f32), "{wire:?}");
    }
    comm.finalize().unwrap();
}

fn shards(reduction: Reduction) {
    let comm = CommThread::start(move || nccl(reduction)).unwrap();
    let (rank, world_size) = (comm.topology().rank, comm.topology().world_size);
    for len in [1, 16, 17, 1000, 64, 175_066] {
        let own = comm.sharding().of(len);
        // Small whole numbers, whose sums no order changes.
        let whole = |rank: usize, index: usize| ((index % 7) * (rank + 1)) as f32;
        let factor = (world_size * (world_size + 1) / 2) as f32;
        let found = reduce_scatter(&comm, (0..len).map(|index| whole(rank, index)).collect());
        let right = own.clone().all(|index| found[index] == whole(0, index) * factor);
        assert!(right, "{len} values, rank {rank}");
        if reduction == Reduction::Ordered {
            let found = reduce_scatter(&comm, wild_values(len, rank));
            let expected = tree_sum(world_size, len, Wire::Fp32);
            let same = own.clone().all(|index| found[index].to_bits() == expected[index]);
            assert!(same, "{len} values, rank {rank}");
        }
    }
    comm.shutdown().unwrap();
}

/// Through the reducer's door, with one segment that is averaged in shards.
fn reduce_scatter(comm: &CommThread, values: Vec<f32>) -> Vec<f32> {
    let len = values.len();
    let segments = vec![Segment { name: "weight".into(), range: 0..len }];
    let buckets = plan_buckets(&segments, len, 1 << 9, 1 << 9);
    let options = ReducerOptions { sharded: len, ..OPTIONS };
    let values = Region::from_vec(values);
    let reducer = Reducer::new(comm.clone(), values.clone(), segments, buckets, options);
    reducer.begin_step(1);
    reducer.launch().unwrap();
    reducer.settle().unwrap();
    values.to_vec()
}

fn reducer() {
    let comm = CommThread::start(|| nccl(Reduction::Ordered)).unwrap();
    let (rank, world_size) = (comm.topology().rank, comm.topology().world_size);
    let segment =
        |index: usize| Segment { name: format!("segment {index}"), range: index * 64..index * 64 + 60 };
    let segments: Vec<_> = (0..10).map(segment).collect();
    let buckets = plan_buckets(&segments, 650, 1 << 9, 1 << 9);
    let scale = 1.0 / world_size as f32;
    let options = ReducerOptions { scale, accumulation: Accumulation::Tree, ..OPTIONS };
    let step = |options: ReducerOptions, values: Vec<f32>| {
        let (segments, buckets) = (segments.clone(), buckets.clone());
        let gradients = Region::from_vec(values);
        let reducer = Reducer::new(comm.clone(), gradients.clone(), segments, buckets, options);
        reducer.begin_step(1);
        reducer.begin_last_backward();
        (0..10).for_each(|segment| reducer.mark_ready(segment));
        reducer.seal();
        reducer.launch().unwrap();
        reducer.settle().unwrap();
        gradients.to_vec()
    };
    let mut values = vec![(rank + 1) as f32; 650];
    let averages = step(options, values.clone());
    assert_eq!(averages, vec![(world_size * (world_size + 1) / 2) as f32 * scale; 650]);
    // All ranks hear whose values were not finite.
    const MARKS: usize = 640;
    values[MARKS..].fill(0.0);
    if rank == world_size - 1 {
        values[70] = f32::NAN;
    }
    let averages = step(ReducerOptions { own_not_finite: Some(MARKS + rank), ..options }, values);
    let marked: Vec<bool> = averages[MARKS..MARKS + world_size].iter().map(|&mark| mark > 0.0).collect();
    assert!(marked.iter().enumerate().all(|(of, marked)| *marked == (of == world_size - 1)), "{marked:?}");
    comm.shutdown().unwrap();
}

/// The sum of one element over all ranks, through the reducer's own door.
fn sum(comm: &CommThread) -> Result<(), CommError> {
    let segments = vec![Segment { name: "weight".into(), range: 0..1 }];
    let buckets = plan_buckets(&segments, 1, 1 << 9, 1 << 9);
    let reducer = Reducer::new(comm.clone(), Region::from_vec(vec![1.0]), segments, buckets, OPTIONS);
    reducer.begin_step(1);
    reducer.launch()?;
    reducer.settle().map(drop)
}

/// All but the last rank wait in NCCL; rank 0 aborts from another thread meanwhile.
fn abort_while_others_wait() {
    let comm = CommThread::start(|| nccl(Reduction::Ordered)).unwrap();
    sum(&comm).unwrap();
    if comm.topology().rank == 0 {
        let handle = comm.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            handle.abort(7);
        });
    }
    if comm.topology().rank + 1 < comm.topology().world_size {
        let _ = sum(&comm);
        unreachable!("the last rank never comes");
    }
    std::thread::sleep(PATIENCE);
}

/// The library of rank 1 takes no part; nobody is told, and an abort ends it all.
fn wait_for_a_rank_that_is_absent() {
    let comm = CommThread::start(|| nccl(Reduction::Ordered)).unwrap();
    let handle = comm.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        println!("rank {} still waits", handle.topology().rank);
        handle.abort(6);
    });
    let _ = sum(&comm);
    unreachable!("rank 1 takes no part");
}

/// The library of rank 1 has an error, and only rank 1 hears of it.
fn hear_of_an_error() {
    let comm = CommThread::start(|| nccl(Reduction::Ordered)).unwrap();
    let result = sum(&comm);
    assert_eq!(comm.topology().rank, 1, "the others wait: {result:?}");
    let error = result.unwrap_err();
    assert!(matches!(&error, CommError::Nccl(text) if text.contains("asynchronous error")), "{error}");
    assert_eq!(sum(&comm), Err(error), "a failed exchange is the last one");
    comm.abort(4);
}

fn fail_alike_without_a_library() {
    let error = nccl(Reduction::Ordered).err().unwrap();
    let sentence =
        "NCCL: rank 0 has no NCCL: WRN_DIST_NCCL names /nowhere/libnccl.so.2, which cannot be loaded: ";
    assert!(error.to_string().starts_with(sentence), "{error}");
}

fn library() -> String {
    nccl_double::shared_library().to_str().unwrap().to_owned()
}

#[test]
fn ordered_sums_have_the_bits_of_the_tree_for_any_rank_count() {
    all_ranks_pass("ordered", &[1, 2, 3, 4], &[("WRN_DIST_NCCL", &library())]);
}

#[test]
fn nccl_s_own_reduction_sums_every_format() {
    all_ranks_pass("library", &[2, 3], &[("WRN_DIST_NCCL", &library())]);
}

#[test]
fn sums_in_shards_are_those_of_the_whole() {
    for scenario in ["ordered shards", "library's shards"] {
        all_ranks_pass(scenario, &[1, 2, 3, 4], &[("WRN_DIST_NCCL", &library())]);
    }
}

#[test]
fn the_reducer_averages_over_nccl() {
    all_ranks_pass("reducer", &[2, 4], &[("WRN_DIST_NCCL", &library())]);
}

#[test]
fn an_abort_ends_all_ranks_while_they_wait_in_nccl() {
    for ranks in [2, 4] {
        job_ends("abort", ranks, Some(7), &[("WRN_DIST_NCCL", &library())]);
    }
}

#[test]
fn a_peer_that_never_arrives_can_be_ended() {
    // Not at the meeting; then not in a later group of messages.
    for fault in ["absent:1:0", "absent:1:1"] {
        let environment = [("WRN_DIST_NCCL", library()), ("NCCL_DOUBLE_FAULT", fault.into())];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        let output = job_ends("absent", 3, Some(6), &environment);
        assert!(output.is_empty() || output.contains("still waits"), "{fault}: {output}");
    }
}

#[test]
fn an_asynchronous_error_is_the_error_of_its_rank() {
    let library = library();
    job_ends("error", 2, Some(4), &[("WRN_DIST_NCCL", &library), ("NCCL_DOUBLE_FAULT", "async-error:1:1")]);
}

#[test]
fn without_a_library_all_ranks_fail_alike_and_mpi_ends_in_order() {
    all_ranks_pass("no library", &[1, 2], &[("WRN_DIST_NCCL", "/nowhere/libnccl.so.2")]);
}
