//! The control plane among ranks that are threads of this process: what ends whom, and with which words.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::meeting::{Connections, meet};
use super::{Control, Ending, Pace};
use crate::in_process::on_each_comm_thread;
use crate::{CommThread, Failure};

const LONG: Duration = Duration::from_secs(60);
/// Everything that is tested here takes less, on a busy machine too.
const MOMENTS: Duration = Duration::from_secs(20);
/// How long a rank without a voice keeps its connections.
const SILENCE: Duration = Duration::from_secs(3);

/// How the ranks ended, by rank; absent where the control plane did not end them.
type Endings = Vec<Option<Ending>>;

/// Runs `body` on each rank with a control plane, or without one on those that `is_mute` and only connect.
fn job(
    world_size: usize,
    timeout: Duration,
    is_mute: impl Fn(usize) -> bool + Sync,
    body: impl Fn(&CommThread, Option<&Control>, &mut Option<Connections>) + Sync,
) -> Endings {
    let all_ended = Barrier::new(world_size);
    on_each_comm_thread(world_size, |comm| {
        let begin = Instant::now();
        let ending = if is_mute(comm.topology().rank) {
            let mut connections = Some(meet(comm, timeout).unwrap());
            // As `Control::start` does.
            comm.agree(Ok::<_, Failure>(())).unwrap();
            body(comm, None, &mut connections);
            std::thread::sleep(if connections.is_some() { SILENCE } else { Duration::ZERO });
            None
        } else {
            let (sender, ending) = std::sync::mpsc::channel();
            let end = Arc::new(move |ending| drop(sender.send(ending)));
            let control = Control::start_with(comm, timeout, end).unwrap();
            body(comm, Some(&control), &mut None);
            ending.recv_timeout(MOMENTS).ok()
        };
        assert!(begin.elapsed() < MOMENTS);
        all_ended.wait();
        // Lets operations end that wait for ranks which will not come.
        comm.abort(1);
        ending
    })
}

fn sentences(endings: &Endings) -> Vec<&str> {
    endings.iter().flatten().map(|ending| &*ending.sentence).collect()
}

#[test]
fn the_last_words_of_a_rank_end_all_ranks_with_its_exit_code() {
    for failing in [0, 2] {
        let endings = job(
            3,
            LONG,
            |_| false,
            |comm, control, _| {
                if comm.topology().rank == failing {
                    control.unwrap().fail(7, "no data left");
                }
            },
        );
        let expected = Ending { exit_code: 7, sentence: "no data left".into(), printed: None };
        assert_eq!(endings, vec![Some(expected); 3], "rank 0 has printed it");
    }
}

#[test]
fn a_connection_that_ends_without_a_farewell_is_a_death_that_ends_all() {
    let endings = job(
        3,
        LONG,
        |rank| rank == 2,
        |comm, control, connections| {
            if let Some(control) = control {
                comm.flight().enter(Some(17), "backward");
                control.await_verdict(Duration::from_millis(1));
            } else {
                *connections = None;
            }
        },
    );
    assert!(endings[2].is_none());
    for sentence in sentences(&endings) {
        assert!(sentence.starts_with("rank 2 on host2 died (its connection "), "{sentence}");
        assert!(sentence.contains("before its first word"), "{sentence}");
        assert!(sentence.contains("rank 0 is in "), "{sentence}");
    }
    assert_eq!(sentences(&endings).len(), 2);
}

#[test]
fn the_death_of_rank_0_ends_the_others_and_rank_1_speaks_for_them() {
    let endings = job(3, LONG, |rank| rank == 0, |_, _, connections| *connections = None);
    for (rank, ending) in endings.iter().enumerate().skip(1) {
        let ending = ending.as_ref().unwrap();
        assert_eq!(ending.exit_code, 1);
        assert!(ending.sentence.starts_with("rank 0 on host0 died ("), "rank {rank}: {}", ending.sentence);
    }
}

#[test]
fn a_collective_that_does_not_finish_ends_all_and_names_who_is_missing() {
    let endings = job(
        3,
        Duration::from_millis(500),
        |_| false,
        |comm, _, _| {
            comm.flight().enter(Some(4), "backward");
            match comm.topology().rank {
                1 => {}
                // Ends when the job is aborted.
                _ => {
                    let comm = comm.clone();
                    drop(std::thread::spawn(move || comm.barrier()));
                }
            }
        },
    );
    let sentences = sentences(&endings);
    assert_eq!(sentences.len(), 3);
    for sentence in sentences {
        assert!(sentence.contains("(barrier) has not finished within 0.5 s"), "{sentence}");
        assert!(sentence.contains("it waits for rank 1 on host1\n"), "{sentence}");
        assert!(
            sentence.contains("\n  rank 1 on host1: step 4, backward; last was collective"),
            "{sentence}"
        );
        assert!(sentence.contains("\n  rank 2 on host2: step 4, backward; in collective"), "{sentence}");
    }
}

#[test]
fn a_rank_that_says_nothing_ends_all() {
    for mute in [0, 1] {
        let endings = job(2, Duration::from_millis(300), |rank| rank == mute, |_, _, _| {});
        let sentence = sentences(&endings)[0];
        assert!(sentence.starts_with(&format!("no word from rank {mute} on host{mute} for ")), "{sentence}");
    }
}

#[test]
fn ranks_that_leave_in_an_orderly_way_end_nobody() {
    let begin = Instant::now();
    on_each_comm_thread(4, |comm| {
        let end = Arc::new(|ending| panic!("ended with {ending:?}"));
        let control = Control::start_with(comm, LONG, end).unwrap();
        // The others stay for a while.
        std::thread::sleep(Duration::from_millis(100 * comm.topology().rank as u64));
        control.leave();
    });
    assert!(begin.elapsed() < Duration::from_secs(2), "rank 0 goes when the others have gone");
}

#[test]
fn rank_0_hears_how_fast_the_others_work_and_the_last_word_counts() {
    let told = |rank: usize, step| Pace { step, parts: vec![Duration::from_millis(rank as u64), LONG] };
    let heard = on_each_comm_thread(3, |comm| {
        let end = Arc::new(|ending| panic!("ended with {ending:?}"));
        let control = Control::start_with(comm, LONG, end).unwrap();
        let rank = comm.topology().rank;
        for step in [5, 10] {
            control.tell_pace(told(rank, step));
        }
        let begin = Instant::now();
        let complete = |control: &Control| {
            let paces = control.paces();
            paces.len() == 2 && paces.iter().all(|of| of.pace.step == 10)
        };
        while rank == 0 && !complete(&control) {
            assert!(begin.elapsed() < MOMENTS, "{:?}", control.paces());
            std::thread::sleep(Duration::from_millis(1));
        }
        let heard = control.paces();
        comm.barrier().unwrap();
        control.leave();
        heard
    });
    let expected: Vec<_> = [1, 2].map(|rank| (rank, format!("host{rank}"), told(rank, 10))).into();
    let of_rank_0: Vec<_> = heard[0].iter().map(|of| (of.rank, of.host.clone(), of.pace.clone())).collect();
    assert_eq!(of_rank_0, expected);
    assert!(heard[1].is_empty() && heard[2].is_empty());
}
