//! What a handle of the communication thread promises: order, ends, aborts, and the first failure as the last.

use std::time::Instant;

use super::*;
use crate::in_process::{InProcessCommunicator, comm_threads, on_each_comm_thread};
use crate::{Region, Solo};

#[test]
fn a_rank_alone_serves_until_it_is_shut_down() {
    let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
    assert_eq!(comm.topology().world_size, 1);
    comm.barrier().unwrap();
    let clone = comm.clone();
    comm.shutdown().unwrap();
    assert_eq!(clone.barrier(), Err(CommError::Ended));
    clone.abort(3);
    assert_eq!(clone.shutdown(), Err(CommError::Aborted));
}

#[test]
fn operations_reach_all_ranks() {
    for world_size in [2, 3] {
        std::thread::scope(|scope| {
            for comm in comm_threads(world_size) {
                scope.spawn(move || {
                    let rank = comm.topology().rank;
                    let region = Region::from_vec(vec![rank as f32; 10]);
                    comm.broadcast(region.clone(), 1).unwrap();
                    assert_eq!(region.to_vec(), [1.0; 10]);
                    let sum = (world_size * (world_size - 1) / 2) as f32;
                    assert_eq!(comm.sum(vec![rank as f32; 3]).unwrap(), [sum; 3]);
                    let ranks: Vec<_> = (0..world_size).map(|rank| vec![rank as u8]).collect();
                    assert_eq!(comm.all_gather(vec![rank as u8]).unwrap(), ranks);
                    comm.barrier().unwrap();
                    comm.shutdown().unwrap();
                });
            }
        });
    }
}

#[test]
fn started_operations_end_in_order_and_dropping_one_waits() {
    std::thread::scope(|scope| {
        for comm in comm_threads(2) {
            scope.spawn(move || {
                let rank = comm.topology().rank;
                let region = Region::from_vec(vec![rank as f32; 64]);
                let slice = |begin: usize| region.slice(begin..begin + 32);
                let started: Vec<_> = [0, 32].map(|begin| comm.start_gather_shards(slice(begin))).into();
                drop(started);
                let shards = [[0.0; 16], [1.0; 16]].concat();
                assert_eq!(region.to_vec(), [shards.clone(), shards].concat());
                comm.shutdown().unwrap();
            });
        }
    });
}

#[test]
fn a_communicator_that_cannot_be_made_is_an_error_of_start() {
    type Make = fn() -> Result<Box<dyn Communicator>, CommError>;
    let cases: [(Make, CommError); 2] = [
        (|| Err(CommError::AlreadyStarted), CommError::AlreadyStarted),
        (|| panic!("no luck"), CommError::Panicked("no luck".into())),
    ];
    for (make, expected) in cases {
        assert_eq!(CommThread::start(make).err(), Some(expected));
    }
}

#[test]
fn an_abort_from_another_thread_ends_an_operation_that_waits_and_all_ranks() {
    let begin = Instant::now();
    let mut ranks = comm_threads(3);
    let busy = ranks.remove(2);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = ranks.iter().map(|comm| scope.spawn(|| comm.barrier())).collect();
        std::thread::sleep(Duration::from_millis(20));
        ranks[0].abort(9);
        for rank in waiting {
            assert_eq!(rank.join().unwrap(), Err(CommError::Aborted));
        }
    });
    assert_eq!(busy.barrier(), Err(CommError::Aborted));
    assert!(begin.elapsed() < ABORT_PATIENCE);
}

#[test]
fn a_handle_that_goes_without_shutdown_aborts_the_other_ranks() {
    let mut ranks = comm_threads(2);
    let survivor = ranks.remove(0);
    let waiting = std::thread::spawn(move || survivor.barrier());
    drop(ranks);
    assert_eq!(waiting.join().unwrap(), Err(CommError::Aborted));
}

#[test]
fn after_a_failure_nothing_is_exchanged_any_more() {
    let mut group = InProcessCommunicator::group(2);
    let _other = group.remove(1);
    let first = group.remove(0);
    let comm = CommThread::start(move || Ok(Box::new(first))).unwrap();
    let refused = CommError::NoSuchRank { root: 5, world_size: 2 };
    assert_eq!(comm.broadcast(Region::from_vec(vec![0.0]), 5), Err(refused.clone()));
    assert_eq!(comm.barrier(), Err(refused.clone()));
    assert_eq!(comm.shutdown(), Err(refused));
}

#[test]
fn checked_ranks_find_out_that_they_run_different_collectives() {
    let results = on_each_comm_thread(3, |comm| {
        comm.check_every_collective();
        let region = Region::from_vec(vec![0.0; 4]);
        comm.broadcast(region.clone(), 0).unwrap();
        comm.all_gather(vec![0; comm.topology().rank]).unwrap();
        match comm.topology().rank {
            2 => comm.barrier(),
            _ => comm.broadcast(region, 0),
        }
    });
    let sentence = "rank 0 on host0 runs collective 3 broadcast, 16 bytes of fp32, \
                    rank 2 on host2 runs collective 3 barrier";
    for result in results {
        assert_eq!(result, Err(CommError::OtherCollective(sentence.into())));
    }
}

#[test]
fn swapped_operations_run_in_the_other_order() {
    let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    comm.swap_next_two();
    std::thread::scope(|scope| {
        for index in 0..3 {
            let (order, comm) = (Arc::clone(&order), &comm);
            scope.spawn(move || {
                comm.call(move |_| {
                    order.lock().unwrap().push(index);
                    Ok(())
                })
            });
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(*order.lock().unwrap(), [1, 0, 2]);
}

#[test]
fn a_panic_in_the_work_is_an_error_of_the_work() {
    let comm = CommThread::start(|| Ok(Box::new(Solo::new()))).unwrap();
    let result = comm.call(|_| -> Result<(), CommError> { panic!("a bug") });
    assert_eq!(result, Err(CommError::Panicked("a bug".into())));
}
