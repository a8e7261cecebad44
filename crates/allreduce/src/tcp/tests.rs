//! Sums, other collectives, waits and deaths among ranks that are threads connected over TCP.

use std::net::TcpListener;
use std::time::Instant;

use super::*;
use crate::Way;
use crate::compressed::OrderedReductions;
use crate::in_process::{on_each_rank, wild_values};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A rank that is to meet the others at `port`.
pub(super) fn launched(rank: usize, world_size: usize, port: u16) -> LaunchedRank {
    let point = MeetingPoint {
        hosts: vec!["localhost".into()],
        ports: vec![port],
        job: String::new(),
        node: String::new(),
        local_size: None,
        one_host: true,
        token: String::new(),
    };
    LaunchedRank { rank, world_size, local_rank: None, launcher: "a test", way: Way::Tcp(point) }
}

/// Runs `body` once a rank, each on a thread of its own, with what it got instead of a communicator.
fn with_each<T: Send>(
    world_size: usize,
    reduction: impl Fn(usize) -> Reduction + Sync,
    body: impl Fn(usize, Result<TcpCommunicator, CommError>) -> T + Sync,
) -> Vec<T> {
    let port = free_port();
    let run = |rank: usize| {
        let launched = launched(rank, world_size, port);
        body(rank, TcpCommunicator::initialize(&launched, reduction(rank), PATIENCE))
    };
    let run = &run;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn on_each<T: Send>(world_size: usize, body: impl Fn(&mut TcpCommunicator) -> T + Sync) -> Vec<T> {
    with_each(world_size, |_| Reduction::Ordered, |_, comm| body(&mut comm.unwrap()))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn sums_have_the_bits_of_the_other_transports() {
    for (world_size, wire) in [(2, Wire::Fp32), (3, Wire::Bf16), (4, Wire::Fp32), (5, Wire::Fp16)] {
        for len in [0, 1, 17, 5000, 300_000] {
            let sums = on_each(world_size, |comm| {
                let mut values = wild_values(len, comm.topology().rank as u64);
                comm.all_reduce(&mut values, wire).unwrap();
                bits(&values)
            });
            let expected = on_each_rank(world_size, |transport| {
                let mut values = wild_values(len, crate::transport::Transport::rank(transport) as u64);
                OrderedReductions::default().all_reduce(transport, &mut values, wire).unwrap();
                bits(&values)
            });
            assert!(sums == expected, "{len} values of {wire:?} on {world_size} ranks");
        }
    }
}

#[test]
fn shards_hold_the_bits_of_the_whole_sum() {
    for world_size in [2, 3, 4] {
        for len in [0, 17, 5000] {
            let same = on_each(world_size, |comm| {
                let mine = wild_values(len, comm.topology().rank as u64);
                let (mut whole, mut gathered) = (mine.clone(), mine);
                comm.all_reduce(&mut whole, Wire::Fp32).unwrap();
                comm.reduce_scatter(&mut gathered).unwrap();
                let own = comm.sharding().of(len);
                gathered[..own.start].fill(f32::NAN);
                gathered[own.end..].fill(f32::NAN);
                comm.gather_shards(&mut gathered).unwrap();
                bits(&whole) == bits(&gathered)
            });
            assert!(same.iter().all(|&same| same), "{len} values on {world_size} ranks");
        }
    }
}

#[test]
fn the_other_collectives_bring_what_they_should() {
    for world_size in [2, 5] {
        let _ = on_each(world_size, |comm| {
            let topology = comm.topology().clone();
            let rank = topology.rank;
            assert_eq!((topology.local_rank, topology.local_size), (rank, world_size));
            assert!(comm.description().starts_with("TCP, ranks met at localhost:"), "{}", comm.description());
            for root in 0..world_size {
                let mut values = vec![rank as f32; 100_000];
                comm.broadcast(&mut values, root).unwrap();
                assert!(values.iter().all(|&value| value == root as f32));
            }
            let of = |rank: usize| vec![rank as u8 + 1; rank * 700_000 % 1_500_000];
            assert!(comm.all_gather(&of(rank)).unwrap() == (0..world_size).map(of).collect::<Vec<_>>());
            comm.barrier().unwrap();
            comm.finalize().unwrap();
            assert_eq!(comm.barrier(), Err(CommError::Ended));
        });
    }
}

/// Each side sends far more than the system's buffers hold before it reads.
#[test]
fn long_messages_in_both_directions_do_not_wait_for_each_other() {
    let len = 12_000_000;
    let sums = on_each(2, |comm| {
        let mut values = vec![1.0 + comm.topology().rank as f32; len];
        comm.all_reduce(&mut values, Wire::Fp32).unwrap();
        values.iter().all(|&value| value == 3.0)
    });
    assert_eq!(sums, [true, true]);
}

#[test]
fn a_rank_that_is_gone_is_named_at_once_and_ever_after() {
    let errors = on_each(3, |comm| {
        if comm.topology().rank == 1 {
            std::thread::sleep(Duration::from_millis(100));
            comm.mesh.close();
            return None;
        }
        let begin = Instant::now();
        let error = comm.all_reduce(&mut [1.0; 100], Wire::Fp32).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert_eq!(comm.barrier().as_ref(), Err(&error), "nothing goes on after that");
        Some(error)
    });
    for error in [&errors[0], &errors[2]] {
        assert!(matches!(error, Some(CommError::Lost { rank: 1, .. })), "{error:?}");
    }
}

#[test]
fn ranks_out_of_step_are_noticed() {
    let errors = on_each(2, |comm| {
        let mut values = vec![0.0; if comm.topology().rank == 0 { 1000 } else { 2000 }];
        comm.all_reduce(&mut values, Wire::Fp32).unwrap_err()
    });
    // The other one may find the connection closed first.
    let out_of_step = |error: &CommError| matches!(error, CommError::OutOfStep { .. });
    assert!(errors.iter().any(out_of_step), "{errors:?}");
}

#[test]
fn a_wait_ends_when_the_job_is_aborted() {
    let results = on_each(2, |comm| {
        if comm.topology().rank == 1 {
            std::thread::sleep(Duration::from_millis(600));
            return None;
        }
        let signal = AbortSignal::new();
        comm.interrupt_by(signal.clone());
        let begin = Instant::now();
        let raise = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            signal.raise(1);
        });
        let result = comm.barrier();
        raise.join().unwrap();
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
        Some(result)
    });
    assert_eq!(results[0], Some(Err(CommError::Aborted)));
}

#[test]
fn sums_by_a_library_are_refused_by_all_ranks_and_said_once() {
    let refusals = |reduction: fn(usize) -> Reduction| {
        with_each(2, reduction, |rank, comm| {
            let error = comm.err().expect("there is no library");
            (error.to_string(), error.is_for(rank))
        })
    };
    let all = refusals(|_| Reduction::Library);
    assert!(all[0].0.contains("comm.reduce") && all[0].0 == all[1].0, "{all:?}");
    assert_eq!((all[0].1, all[1].1), (true, false));
    let one = refusals(|rank| if rank == 1 { Reduction::Library } else { Reduction::Ordered });
    assert!(one[0].0.contains("comm.reduce") && one[0].0 == one[1].0, "{one:?}");
    assert_eq!((one[0].1, one[1].1), (false, true));
}

#[test]
fn a_wait_sleeps() {
    let busy = on_each(2, |comm| {
        if comm.topology().rank == 1 {
            std::thread::sleep(Duration::from_millis(500));
        }
        let before = thread_time();
        comm.barrier().unwrap();
        thread_time() - before
    });
    assert!(busy[0] < Duration::from_millis(50), "a wait of 500 ms took {:?} of a core", busy[0]);
}

/// Time on a core of the calling thread.
fn thread_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}
