//! What it takes for ranks to be connected, and what they say who cannot.

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use super::*;
use crate::tcp::tests::{free_port, launched};

fn listener() -> (TcpListener, SocketAddr) {
    let (listener, port) = listen_at(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
    (listener, (Ipv4Addr::LOCALHOST, port).into())
}

#[test]
fn a_stranger_and_a_connection_given_up_do_not_take_a_rank_s_place() {
    let place = || Place { host: "here".into(), machine: String::new(), local_rank: 0, local_size: 2 };
    let places = [place(), place()];
    let (listener, address) = listener();
    let card = Card { addresses: vec![address], key: "key".into() };

    let _silent = [(); 4].map(|()| TcpStream::connect(address).unwrap());
    let given_up = TcpStream::connect(address).unwrap();
    let hello = Hello { key: card.key.clone(), from: 0, to: 1 };
    send_word(&given_up, &hello, Instant::now() + ANSWER).unwrap();
    drop(given_up);

    let begin = Instant::now();
    let deadline = begin + ANSWER;
    let (mut connected, mut accepted) = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(&listener, 1, &card.key, &places, deadline));
        (connect(0, 1, &card, &places, deadline).unwrap(), accepted.join().unwrap().unwrap())
    });
    assert!(begin.elapsed() < CONFIRMATION, "{:?}", begin.elapsed());
    connected.write_all(b"a word").unwrap();
    let mut word = [0; 6];
    accepted[0].read_exact(&mut word).unwrap();
    assert_eq!((&word, accepted.len()), (b"a word", 1));
}

#[test]
fn of_two_ranks_that_cannot_connect_the_lower_is_heard_and_nobody_is_taken_for_gone() {
    let patience = Duration::from_secs(1);
    let port = free_port();
    let meet = |rank| Rendezvous::meet(&launched(rank, 3, port), patience).unwrap();
    let errors = std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| scope.spawn(move || connect_all(&mut meet(rank)).unwrap_err()));
        // As `connect_all`, but that rank 1 does not get through.
        let mut met = meet(2);
        let (listener, address) = listener();
        met.all_gather(&serde_json::to_vec(&of_this_host()).unwrap()).unwrap();
        met.agree(Ok(())).unwrap();
        let card = Card { addresses: vec![address], key: "key".into() };
        met.all_gather(&serde_json::to_vec(&card).unwrap()).unwrap();
        met.agree(Ok(())).unwrap();
        let (begin, mut streams) = (Instant::now(), Vec::new());
        let mut callers = Callers::new(&listener);
        // It gives up later than others are ready to go on.
        while begin.elapsed() < 5 * patience / 2 {
            let called = callers.hear::<Hello>().into_iter().filter_map(|(_, called)| called.ok());
            let leader = called.filter(|(_, hello)| hello.from == 0);
            streams.extend(leader.map(|(stream, hello)| admit(stream, &hello, 2, "key").unwrap()));
        }
        let third = met.agree_after(patience, Ok(())).unwrap_err();
        let [first, second] = ranks.map(|rank| rank.join().unwrap());
        [first, second, third]
    });
    for (rank, error) in errors.into_iter().enumerate() {
        let CommError::NoMeeting { sentence, mine } = error else { panic!("{error}") };
        let start = "rank 1 on ";
        assert!(
            sentence.starts_with(start) && sentence.contains("cannot connect to rank 2 on "),
            "{sentence}"
        );
        assert!(sentence.ends_with("every two ranks need a TCP connection"), "{sentence}");
        assert_eq!(mine, rank == 1);
    }
}
