//! Communicators on the test double, each rank a thread.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::process::Command;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use nccl_rs::{Comm, Config, DataType, DeviceMemory, Error, Library, Operation, Progress, UniqueId};

const CASE: &str = "NCCL_RS_TEST_CASE";

fn library() -> Library {
    Library::open(&nccl_double::shared_library()).unwrap()
}

/// Until everything that was asked for is complete.
fn complete(comm: &mut Comm) -> Result<(), Error> {
    let begin = Instant::now();
    while comm.poll()? == Progress::Pending {
        assert!(begin.elapsed() < Duration::from_secs(20), "an operation does not end");
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// For as long as nobody should wait who can expect nothing.
fn stays_pending(comm: &mut Comm) {
    for _ in 0..20 {
        assert_eq!(comm.poll(), Ok(Progress::Pending));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `body` once a rank, each with a communicator, on a thread of its own.
fn on_each_rank<T: Send>(size: usize, body: impl Fn(usize, &mut Comm) -> T + Sync) -> Vec<T> {
    let library = &library();
    let id = UniqueId::new(library).unwrap();
    let id = UniqueId::from_bytes(&id.to_bytes()).unwrap();
    let body = &body;
    std::thread::scope(|scope| {
        let rank = |rank| {
            scope.spawn(move || {
                let mut comm = Comm::init(library, id, rank, size, Config::default()).unwrap();
                complete(&mut comm).unwrap();
                assert_eq!(comm.place(), Ok((rank, size, 0)));
                let result = body(rank, &mut comm);
                // What still waits is left to drop.
                if comm.poll() == Ok(Progress::Complete) {
                    let _ = comm.finalize().unwrap();
                    complete(&mut comm).unwrap();
                }
                result
            })
        };
        let ranks: Vec<_> = (0..size).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn start<T>(values: &[T]) -> *const c_void {
    values.as_ptr().cast()
}

fn start_mut<T>(values: &mut [T]) -> *mut c_void {
    values.as_mut_ptr().cast()
}

#[test]
fn collectives_do_what_they_say_in_place_too() {
    for size in [1, 2, 3, 5] {
        on_each_rank(size, |rank, comm| {
            let len = 100_000;
            let expected: Vec<f32> =
                (0..len).map(|index| (index % 100 * size * (size - 1) / 2) as f32).collect();
            let own: Vec<f32> = (0..len).map(|index| (index % 100 * rank) as f32).collect();
            let mut sum = own.clone();
            let in_place = start_mut(&mut sum);
            // SAFETY: the vectors live until the operation is complete.
            let _ = unsafe {
                comm.all_reduce(in_place, in_place, len, DataType::Fp32, Operation::Sum, null_mut())
            };
            complete(comm).unwrap();
            assert!(sum == expected, "all-reduce on {size}");

            let mut received = vec![0.0f32; 1000];
            let root = size - 1;
            // SAFETY: as above.
            let _ = unsafe {
                comm.broadcast(start(&own), start_mut(&mut received), 1000, DataType::Fp32, root, null_mut())
            };
            complete(comm).unwrap();
            assert!((0..1000).all(|index| received[index] == (index % 100 * root) as f32));

            let blocks: Vec<u8> = (0..size * 7).map(|index| (index + rank) as u8).collect();
            let mut block = [0u8; 7];
            let _ = {
                let (send, receive) = (start(&blocks), start_mut(&mut block));
                // SAFETY: as above.
                unsafe { comm.reduce_scatter(send, receive, 7, DataType::Uint8, Operation::Max, null_mut()) }
            };
            complete(comm).unwrap();
            assert!((0..7).all(|index| block[index] as usize == rank * 7 + index + size - 1));

            let mut gathered = vec![0u8; size * 3];
            // SAFETY: as above.
            let _ = unsafe {
                comm.all_gather(
                    start(&[rank as u8; 3]),
                    start_mut(&mut gathered),
                    3,
                    DataType::Uint8,
                    null_mut(),
                )
            };
            complete(comm).unwrap();
            assert!((0..size * 3).all(|index| gathered[index] as usize == index / 3));
        });
    }
}

#[test]
fn sixteen_bit_formats_are_summed() {
    // 1.5 and 2.5 in either format.
    for (data_type, [a, b], sum) in
        [(DataType::Bf16, [0x3fc0u16, 0x4020], 0x4080u16), (DataType::Fp16, [0x3e00, 0x4100], 0x4400)]
    {
        on_each_rank(2, |rank, comm| {
            let mut values = [[a, b][rank]; 33];
            let place = start_mut(&mut values);
            // SAFETY: the array lives until the operation is complete.
            let _ = unsafe { comm.all_reduce(place, place, 33, data_type, Operation::Sum, null_mut()) };
            complete(comm).unwrap();
            assert_eq!(values, [sum; 33]);
        });
    }
}

#[test]
fn messages_of_a_group_travel_at_the_same_time_to_this_rank_too() {
    // More than a socket holds, so that one after the other would never end.
    let len = 1 << 20;
    on_each_rank(3, |rank, comm| {
        let sent: Vec<Vec<u8>> = (0..3).map(|to| vec![(3 * rank + to) as u8; len]).collect();
        let mut received = vec![vec![0u8; len]; 3];
        let _ = comm.group(|comm| {
            for peer in 0..3 {
                // SAFETY: the vectors live until the operation is complete.
                unsafe {
                    let _ = comm.send(start(&sent[peer]), len, DataType::Uint8, peer, null_mut())?;
                    let _ =
                        comm.receive(start_mut(&mut received[peer]), len, DataType::Uint8, peer, null_mut())?;
                }
            }
            Ok(())
        });
        complete(comm).unwrap();
        for (from, block) in received.iter().enumerate() {
            assert!(block.iter().all(|&byte| byte as usize == 3 * from + rank), "from {from} to {rank}");
        }
    });
}

#[test]
fn ranks_that_call_different_things_are_told() {
    let results = on_each_rank(2, |rank, comm| {
        let mut values = [1.0f32; 8];
        let place = start_mut(&mut values);
        // SAFETY: the array lives until the operation is complete or has failed.
        let _ =
            unsafe { comm.all_reduce(place, place, 8 - rank, DataType::Fp32, Operation::Sum, null_mut()) };
        complete(comm)
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("all-reduce (0) of 7 elements"), "{error}");
    }
}

#[test]
fn wrong_calls_are_errors() {
    on_each_rank(1, |_, comm| {
        let mut values = [1.0f32; 8];
        let place = start_mut(&mut values);
        // SAFETY: nothing is read or written.
        let error = unsafe { comm.broadcast(place, place, 8, DataType::Fp32, 1, null_mut()) }.unwrap_err();
        assert_eq!(
            error.to_string(),
            "ncclBroadcast failed: invalid argument; there is no rank 1 among 1 (NCCL error 4)"
        );
    });
    let library = library();
    let id = UniqueId::new(&library).unwrap();
    assert!(Comm::init(&library, id, 2, 2, Config::default()).is_err());
    assert!(UniqueId::from_bytes(&[0; 5]).is_none());
}

#[test]
fn a_rank_alone_waits_for_the_others_without_blocking_and_can_go() {
    let library = library();
    let id = UniqueId::new(&library).unwrap();
    let mut comm = Comm::init(&library, id, 0, 2, Config { min_ctas: Some(1), max_ctas: Some(8) }).unwrap();
    stays_pending(&mut comm);
    let mut value = [1.0f32];
    let place = start_mut(&mut value);
    // SAFETY: refused, since the ranks have not met.
    let early = unsafe { comm.all_reduce(place, place, 1, DataType::Fp32, Operation::Sum, null_mut()) };
    assert!(early.unwrap_err().sentence.contains("before the previous operation"));
    let begin = Instant::now();
    drop(comm);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn memory_is_allocated_registered_and_freed() {
    let library = library();
    let memory = DeviceMemory::new(&library, 1000).unwrap();
    assert_eq!((memory.bytes(), memory.as_ptr() as usize % 256), (1000, 0));
    on_each_rank(1, |_, comm| {
        // SAFETY: freed after the communicator.
        let register = |comm: &mut Comm| unsafe { comm.register(memory.as_ptr(), 1000) }.unwrap().unwrap();
        let (first, second) = (register(comm), register(comm));
        comm.deregister(first).unwrap();
        let error = comm.finalize().unwrap_err().to_string();
        assert!(error.contains("1 buffer(s) are still registered"), "{error}");
        comm.deregister(second).unwrap();
    });
}

#[test]
fn a_registration_is_of_one_communicator() {
    let library = library();
    let memory = DeviceMemory::new(&library, 1000).unwrap();
    let on_its_own = || {
        let mut comm =
            Comm::init(&library, UniqueId::new(&library).unwrap(), 0, 1, Config::default()).unwrap();
        complete(&mut comm).unwrap();
        comm
    };
    let (mut one, mut other) = (on_its_own(), on_its_own());
    // SAFETY: freed after the communicators.
    let registration = unsafe { one.register(memory.as_ptr(), 1000) }.unwrap().unwrap();
    let error = other.deregister(registration).unwrap_err().to_string();
    assert!(error.contains("no buffer of this communicator"), "{error}");
    // An abort leaves nothing to deregister.
    drop(one);
}

/// The faults of the environment, in processes of their own.
#[test]
fn faults_on_demand_strike_one_rank_from_a_group_on() {
    for (case, fault) in [("absent", "absent:1:3"), ("async-error", "async-error:1:3")] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "struck", "--nocapture"]).env(CASE, case).env("NCCL_DOUBLE_FAULT", fault);
        let output = command.output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {text}");
        assert_eq!(text.matches("as expected").count(), 2, "{case}: {text}");
    }
}

/// By itself it does nothing.
#[test]
fn struck() {
    let Ok(case) = std::env::var(CASE) else { return };
    on_each_rank(2, |rank, comm| {
        for group in 1..=3 {
            let mut value = [1.0f32];
            let place = start_mut(&mut value);
            // SAFETY: the value lives until the operation is complete or the communicator is dropped.
            let begun =
                unsafe { comm.all_reduce(place, place, 1, DataType::Fp32, Operation::Sum, null_mut()) };
            if group < 3 {
                complete(comm).unwrap();
                assert_eq!(value, [2.0]);
                continue;
            }
            match (case.as_str(), rank) {
                ("async-error", 1) => assert!(begun.unwrap_err().sentence.contains("asynchronous error")),
                // Others hear nothing of it.
                _ => stays_pending(comm),
            }
            println!("rank {rank}: as expected");
        }
    });
}
