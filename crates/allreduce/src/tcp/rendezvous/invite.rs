//! Rank 0's part of the meeting: listens, lets in every rank of the job and nobody else, and tells all where each stands.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::{ANSWER, HELLO, Hello, Met, Place, Word, own};
use crate::CommError;
use crate::callers::{Callers, is_open, listen_at};
use crate::frames::send_word;
use crate::tcp::environment::{MeetingPoint, TOKEN};

/// Rank 0 says so when it waits for longer than this, and again after as long.
const NOTICE: Duration = Duration::from_secs(15);

/// Rank 0: lets in every other rank, and nobody else.
pub(super) fn invite(
    point: &MeetingPoint,
    me: Hello,
    patience: Duration,
    deadline: Instant,
) -> Result<Met, CommError> {
    let world_size = me.world_size;
    let (listener, at) = listen(point).map_err(own)?;
    let mut known: Vec<Option<(Hello, TcpStream)>> = (1..world_size).map(|_| None).collect();
    let mut callers = Callers::new(&listener);
    let mut turned_away = None;
    let mut notice = Instant::now() + NOTICE;
    while !all_wait(&mut known) {
        for (from, called) in callers.hear() {
            let admitted = match called {
                Ok((stream, word)) => admit(stream, word, &me, &mut known),
                Err(error) => Err(error.to_string()),
            };
            turned_away = admitted
                .err()
                .map(|reason| format!("{}: {reason}", from.ip().to_canonical()))
                .or(turned_away);
        }
        let now = Instant::now();
        if now > notice {
            notice = now + NOTICE;
            let line = format!("waiting at {at} for {}\n", missing(&known));
            let _ = io::stderr().write_all(line.as_bytes());
        }
        if now > deadline {
            let turned_away = turned_away.map_or(String::new(), |reason| format!("; turned away: {reason}"));
            let sentence = format!(
                "{} of {world_size} did not come to rank 0 on {} at {at} within {} s{turned_away}",
                missing(&known),
                me.host,
                patience.as_secs_f32().ceil()
            );
            return Err(give_up(known.into_iter().flatten().map(|(_, stream)| stream), sentence));
        }
    }
    let (others, streams): (Vec<Hello>, Vec<TcpStream>) = known.into_iter().flatten().unzip();
    let hellos: Vec<Hello> = std::iter::once(me).chain(others).collect();
    let places = match place(&hellos) {
        Ok(places) => places,
        Err(sentence) => return Err(give_up(streams.into_iter(), sentence)),
    };
    for (rank, stream) in (1..).zip(&streams) {
        let word = Word::All { places: places.clone() };
        if let Err(error) = send_word(stream, &word, Instant::now() + ANSWER) {
            let sentence = format!("rank {rank} on {} left while the ranks met: {error}", places[rank].host);
            return Err(give_up(streams.into_iter(), sentence));
        }
    }
    Ok(Met { places, at, streams })
}

fn give_up(streams: impl Iterator<Item = TcpStream>, sentence: String) -> CommError {
    for stream in streams {
        let word = Word::Failed { sentence: sentence.clone() };
        let _ = send_word(&stream, &word, Instant::now() + HELLO);
    }
    own(sentence)
}

/// At the first free port of the meeting point.
fn listen(point: &MeetingPoint) -> Result<(TcpListener, String), String> {
    let host = point.hosts.first().map_or("", String::as_str);
    let resolved: Vec<IpAddr> =
        (host, 0).to_socket_addrs().map_or(Vec::new(), |all| all.map(|address| address.ip()).collect());
    // A node's own name often means its loopback interface to itself, but not to others.
    let all_here =
        point.one_host || host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let loopback = resolved.iter().copied().filter(IpAddr::is_loopback).min_by_key(IpAddr::is_ipv6);
    let interfaces = match loopback {
        Some(loopback) if all_here => vec![loopback],
        _ => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
    };
    let mut reasons = Vec::new();
    for &port in &point.ports {
        for &interface in &interfaces {
            match listen_at(interface, port) {
                Ok((listener, port)) => return Ok((listener, format!("{host}:{port}"))),
                Err(error) => reasons.push(format!("{}: {error}", SocketAddr::new(interface, port))),
            }
        }
    }
    Err(format!(
        "rank 0 cannot listen for the other ranks ({}); is another process rank 0, or the port another program's?",
        reasons.join("; ")
    ))
}

/// Lets one rank in, or says why not.
fn admit(
    stream: TcpStream,
    word: Word,
    me: &Hello,
    known: &mut [Option<(Hello, TcpStream)>],
) -> Result<(), String> {
    let deadline = Instant::now() + HELLO;
    let Word::Hello(hello) = word else {
        return Err("a rank says hello first".into());
    };
    let reason = if hello.protocol != me.protocol {
        "rank 0 runs another version of this program".into()
    } else if hello.job != me.job {
        format!("this is rank 0 of another job ({}, not {})", or_unnamed(&me.job), or_unnamed(&hello.job))
    } else if hello.token != me.token {
        format!("{TOKEN} is not that of rank 0")
    } else if hello.world_size != me.world_size {
        format!(
            "rank 0 was started as one of {} ranks, this one as one of {}",
            me.world_size, hello.world_size
        )
    } else {
        match hello.rank.checked_sub(1).and_then(|index| known.get_mut(index)) {
            None => format!("there is no rank {} beside rank 0", hello.rank),
            Some(Some((earlier, stream))) if is_open(stream) => {
                format!("rank {} is here already, from {}", hello.rank, earlier.host)
            }
            // One that has gone may come again.
            Some(place) => {
                send_word(&stream, &Word::Known, deadline).map_err(|error| error.to_string())?;
                *place = Some((hello, stream));
                return Ok(());
            }
        }
    };
    let refused = Word::Refused { reason: reason.clone(), other_job: hello.job != me.job };
    let _ = send_word(&stream, &refused, deadline);
    Err(reason)
}

fn or_unnamed(job: &str) -> &str {
    if job.is_empty() { "one without a name" } else { job }
}

/// Whether every rank has come and still waits. Those that have gone may come again.
fn all_wait(known: &mut [Option<(Hello, TcpStream)>]) -> bool {
    if known.iter().any(Option::is_none) {
        return false;
    }
    for place in &mut *known {
        if place.as_ref().is_some_and(|(_, stream)| !is_open(stream)) {
            *place = None;
        }
    }
    known.iter().all(Option::is_some)
}

/// The ranks that are missing, for people.
fn missing(known: &[Option<(Hello, TcpStream)>]) -> String {
    const NAMED: usize = 8;
    let ranks: Vec<usize> =
        (1..).zip(known).filter(|(_, known)| known.is_none()).map(|(rank, _)| rank).collect();
    let named = join_names(ranks.iter().take(NAMED));
    match (ranks.len(), ranks.len().saturating_sub(NAMED)) {
        (1, _) => format!("rank {named}"),
        (_, 0) => format!("ranks {named}"),
        (_, more) => format!("ranks {named} and {more} more"),
    }
}

fn join_names(names: impl Iterator<Item = impl Display>) -> String {
    names.map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}

/// Where every rank stands: as it says itself, else by rank among those on the same node.
pub(super) fn place(hellos: &[Hello]) -> Result<Vec<Place>, String> {
    let mut nodes: HashMap<_, Vec<usize>> = HashMap::new();
    for (rank, hello) in hellos.iter().enumerate() {
        nodes.entry((&hello.host, &hello.machine, &hello.node)).or_default().push(rank);
    }
    let place_of = |(rank, hello): (usize, &Hello)| {
        let node = &nodes[&(&hello.host, &hello.machine, &hello.node)];
        let local_size = hello.local_size.unwrap_or(node.len());
        let index = node.iter().position(|&other| other == rank).unwrap_or_default();
        let local_rank = hello.local_rank.unwrap_or(index);
        if local_rank >= local_size {
            let host = &hello.host;
            return Err(format!(
                "rank {rank} on {host} was started with local rank {local_rank}, but {local_size} ranks are there"
            ));
        }
        Ok(Place { host: hello.host.clone(), machine: hello.machine.clone(), local_rank, local_size })
    };
    hellos.iter().enumerate().map(place_of).collect()
}
