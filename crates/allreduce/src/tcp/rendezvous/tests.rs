//! Who meets, who is refused, what is gathered, and who says what when ranks are missing or leave.

use std::io::Write;
use std::net::TcpListener;
use std::thread::{scope, sleep};

use super::invite::place;
use super::*;
use crate::frames::{LONGEST_WORD, receive_word, send_word};
use crate::tcp::environment::MeetingPoint;
use crate::tcp::tests::free_port;

const PATIENCE: Duration = Duration::from_secs(20);

fn point(ports: Vec<u16>) -> MeetingPoint {
    MeetingPoint {
        hosts: vec!["127.0.0.1".into()],
        ports,
        job: "job".into(),
        node: String::new(),
        local_size: None,
        one_host: false,
        token: String::new(),
    }
}

fn launched(rank: usize, world_size: usize, point: MeetingPoint) -> LaunchedRank {
    LaunchedRank { rank, world_size, local_rank: None, launcher: "a test", way: Way::Tcp(point) }
}

fn sentence(met: Result<Rendezvous, CommError>) -> (String, bool) {
    match met.unwrap_err() {
        CommError::NoMeeting { sentence, mine } => (sentence, mine),
        other => panic!("{other}"),
    }
}

#[test]
fn ranks_meet_in_any_order_and_gather() {
    for world_size in [2, 5] {
        let ports = vec![free_port()];
        let results = scope(|scope| {
            let rank = |rank: usize| {
                let launched = launched(rank, world_size, point(ports.clone()));
                scope.spawn(move || {
                    // Rank 0 comes last but one.
                    sleep(Duration::from_millis(if rank == 0 { 200 } else { 100 * rank as u64 }));
                    let mut met = Rendezvous::meet(&launched, PATIENCE).unwrap();
                    let of = |rank: usize| vec![rank as u8; rank * 1000];
                    let all = met.all_gather(&of(rank)).unwrap();
                    assert!(all == (0..world_size).map(of).collect::<Vec<_>>());
                    assert!(met.all_gather(&[]).unwrap() == vec![Vec::<u8>::new(); world_size]);
                    (met.topology(), met.agree(if rank == 1 { Err("no".into()) } else { Ok(()) }))
                })
            };
            let ranks: Vec<_> = (0..world_size).map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        for (rank, (topology, agreed)) in results.into_iter().enumerate() {
            assert_eq!((topology.rank, topology.world_size), (rank, world_size));
            assert_eq!(
                (topology.local_rank, topology.local_size),
                (rank, world_size),
                "all are on this host"
            );
            assert_eq!(agreed, Err(CommError::NoMeeting { sentence: "no".into(), mine: rank == 1 }));
        }
    }
}

#[test]
fn a_rank_that_leaves_before_it_is_answered_is_named_to_all_others_and_said_once() {
    for leaving in [1, 2] {
        let port = free_port();
        let meet = move |rank| Rendezvous::meet(&launched(rank, 3, point(vec![port])), PATIENCE).unwrap();
        let gather = move |rank| {
            let mut met = meet(rank);
            let gathered = std::iter::repeat_with(|| met.all_gather(&[]).map(|_| ()));
            gathered.take(5).find_map(Result::err).expect("one rank has left")
        };
        let errors = scope(|scope| {
            let ranks = [0, 3 - leaving].map(|rank| scope.spawn(move || gather(rank)));
            let met = meet(leaving);
            let leader = &met.met.streams[0];
            send(leader, &[], Instant::now() + ANSWER).unwrap();
            leader.peek(&mut [0]).unwrap();
            send(leader, &[], Instant::now() + ANSWER).unwrap();
            // With an answer unread, which breaks the connection at once.
            drop(met);
            ranks.map(|rank| rank.join().unwrap())
        });
        let [(first, mine), (other, others)] = errors.map(|error| sentence(Err(error)));
        assert!(
            first.starts_with(&format!("rank {leaving} on ")) && first.contains(" left while "),
            "{first}"
        );
        assert_eq!((mine, other, others), (true, first, false), "rank {leaving} leaves");
    }
}

#[test]
fn ranks_that_do_not_come_are_named_by_every_rank_that_came() {
    let ports = vec![free_port()];
    let patience = Duration::from_secs(1);
    let (first, third) = scope(|scope| {
        let meet = |rank| {
            let launched = launched(rank, 4, point(ports.clone()));
            scope.spawn(move || sentence(Rendezvous::meet(&launched, patience)))
        };
        let (first, third) = (meet(0), meet(2));
        (first.join().unwrap(), third.join().unwrap())
    });
    assert!(first.0.starts_with("ranks 1, 3 of 4 did not come to rank 0 on "), "{first:?}");
    assert_eq!((first.1, third), (true, (first.0, false)), "said once");
}

#[test]
fn without_rank_0_a_rank_says_where_it_looked() {
    let port = free_port();
    let launched = launched(1, 2, point(vec![port]));
    let (sentence, mine) = sentence(Rendezvous::meet(&launched, Duration::from_millis(300)));
    assert!(mine && sentence.contains(&format!("127.0.0.1:{port}: ")), "{sentence}");
    assert!(sentence.contains("MASTER_ADDR"), "{sentence}");
}

#[test]
fn strangers_and_ranks_of_other_jobs_are_refused_and_disturb_nobody() {
    let ports = vec![free_port()];
    let with = |change: fn(&mut MeetingPoint)| {
        let mut point = point(ports.clone());
        change(&mut point);
        point
    };
    let secret = || with(|point| point.token = "secret".into());
    scope(|scope| {
        let leader = launched(0, 2, secret());
        let leader =
            scope.spawn(move || Rendezvous::meet(&leader, PATIENCE).map(|met| met.topology().world_size));
        // A stranger that speaks, one that is silent, one that goes.
        let knock = || loop {
            match TcpStream::connect(("127.0.0.1", ports[0])) {
                Ok(stream) => break stream,
                Err(_) => sleep(Duration::from_millis(5)),
            }
        };
        (&mut &knock()).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let _silent = [(); 8].map(|()| knock());
        drop(knock());
        let refused = [
            (launched(1, 2, point(ports.clone())), "WRN_DIST_TOKEN is not that of rank 0"),
            (launched(1, 3, secret()), "one of 2 ranks, this one as one of 3"),
            (
                launched(2, 3, with(|point| point.job = "other".into())),
                "rank 0 of another job (job, not other)",
            ),
        ];
        let refused = refused.map(|(launched, part)| {
            scope.spawn(move || {
                let (sentence, mine) = sentence(Rendezvous::meet(&launched, Duration::from_secs(4)));
                assert!(mine && sentence.contains(part), "{sentence}");
            })
        });
        refused.into_iter().for_each(|rank| rank.join().unwrap());
        let right = launched(1, 2, secret());
        assert!(Rendezvous::meet(&right, PATIENCE).is_ok());
        assert_eq!(leader.join().unwrap(), Ok(2));
    });
}

#[test]
fn a_rank_that_comes_twice_is_refused_and_one_that_went_may_come_again() {
    let ports = vec![free_port()];
    let hello = Hello {
        protocol: PROTOCOL,
        job: "job".into(),
        token: String::new(),
        rank: 1,
        world_size: 3,
        local_rank: None,
        local_size: None,
        host: "elsewhere".into(),
        machine: String::new(),
        node: String::new(),
    };
    scope(|scope| {
        let [leader, second, third] = [0, 1, 2].map(|rank| launched(rank, 3, point(ports.clone())));
        let leader = scope.spawn(move || Rendezvous::meet(&leader, PATIENCE).map(|met| met.rank));
        let first = loop {
            let Ok(stream) = TcpStream::connect(("127.0.0.1", ports[0])) else { continue };
            send_word(&stream, &Word::Hello(hello.clone()), Instant::now() + ANSWER).unwrap();
            if let Ok(Word::Known) = receive_word(&stream, LONGEST_WORD, Instant::now() + ANSWER) {
                break stream;
            }
        };
        let (sentence, _) = sentence(Rendezvous::meet(&second, Duration::from_secs(1)));
        assert!(sentence.contains("rank 1 is here already, from elsewhere"), "{sentence}");
        drop(first);
        let second = scope.spawn(move || Rendezvous::meet(&second, PATIENCE).map(|met| met.rank));
        let third = Rendezvous::meet(&third, PATIENCE).map(|met| met.rank);
        assert_eq!([leader.join().unwrap(), second.join().unwrap(), third], [Ok(0), Ok(1), Ok(2)]);
    });
}

#[test]
fn a_port_that_is_taken_is_passed_over_where_others_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let alone = launched(0, 2, point(vec![taken_port]));
    let (refused, _) = sentence(Rendezvous::meet(&alone, PATIENCE));
    assert!(
        refused.contains("rank 0 cannot listen") && refused.contains(&taken_port.to_string()),
        "{refused}"
    );
    // Whoever listens there never answers, and is asked first.
    drop(taken);
    let silent = TcpListener::bind(("127.0.0.1", taken_port)).unwrap();
    silent.set_nonblocking(true).unwrap();
    let ports = vec![taken_port, free_port()];
    scope(|scope| {
        let [leader, other] = [0, 1].map(|rank| launched(rank, 2, point(ports.clone())));
        let leader = scope.spawn(move || Rendezvous::meet(&leader, PATIENCE).is_ok());
        let closing = scope.spawn(move || {
            let stream = loop {
                if let Ok((stream, _)) = silent.accept() {
                    break stream;
                }
                sleep(Duration::from_millis(5));
            };
            drop((stream, silent));
        });
        assert!(Rendezvous::meet(&other, PATIENCE).is_ok());
        closing.join().unwrap();
        assert!(leader.join().unwrap());
    });
}

#[test]
fn local_ranks_are_counted_by_host_and_node_unless_given() {
    let hello = |rank: usize, host: &str, node: &str, local: Option<(usize, usize)>| Hello {
        protocol: PROTOCOL,
        job: String::new(),
        token: String::new(),
        rank,
        world_size: 4,
        local_rank: local.map(|(rank, _)| rank),
        local_size: local.map(|(_, size)| size),
        host: host.into(),
        machine: String::new(),
        node: node.into(),
    };
    let places = |hellos: &[Hello]| {
        place(hellos).map(|places| places.iter().map(|at| (at.local_rank, at.local_size)).collect::<Vec<_>>())
    };
    let hosts =
        [hello(0, "a", "", None), hello(1, "b", "", None), hello(2, "a", "", None), hello(3, "b", "", None)];
    assert_eq!(places(&hosts).unwrap(), [(0, 2), (0, 2), (1, 2), (1, 2)]);
    let nodes = [hello(0, "a", "0", None), hello(1, "a", "1", None)];
    assert_eq!(places(&nodes).unwrap(), [(0, 1), (0, 1)]);
    let given = [hello(0, "a", "", Some((1, 2))), hello(1, "a", "", Some((0, 2)))];
    assert_eq!(places(&given).unwrap(), [(1, 2), (0, 2)]);
    let mut wrong = [hello(0, "a", "", None), hello(1, "a", "", None)];
    wrong[1].local_rank = Some(2);
    let sentence = places(&wrong).unwrap_err();
    assert!(
        sentence.contains("rank 1 on a was started with local rank 2, but 2 ranks are there"),
        "{sentence}"
    );
}
