//! How ranks that no MPI library knows find each other. Rank 0 listens at an address that all of them know; the others
//! connect to it, in whatever order and however late they start. When all are there nobody listens any more, and bytes
//! can be gathered over these connections. Gradients never travel here.
//!
//! Only ranks of the same job are let in: those that name the same job, number of ranks and token. That keeps apart jobs
//! that share hosts; nothing is encrypted.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::environment::{MeetingPoint, TOKEN};
use super::frames::{LONGEST_FRAME, LONGEST_WORD, receive, receive_word, send, send_word};
use crate::communicator::hostname;
use crate::{CommError, LaunchedRank, Topology, Way};

/// Ranks of another protocol are refused.
const PROTOCOL: u32 = 2;
/// Within this time somebody who connects must say who he is.
const HELLO: Duration = Duration::from_secs(2);
/// Within this time an address must answer, and rank 0, which may be busy turning strangers away.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// A rank 0 that refuses for longer than this is no remnant of an earlier start.
const REFUSALS: Duration = Duration::from_secs(5);
/// Rank 0 says so when it waits for longer than this, and again after as long.
const NOTICE: Duration = Duration::from_secs(15);
/// When all have met, what is gathered comes within this time.
const GATHER: Duration = Duration::from_secs(120);

/// What a rank says of itself.
#[derive(Clone, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    job: String,
    token: String,
    rank: usize,
    world_size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    host: String,
    /// Differs between machines of the same host name.
    machine: String,
    node: String,
}

/// Where a rank stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) machine: String,
    pub(super) local_rank: usize,
    pub(super) local_size: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Hello(Hello),
    /// Rank 0 knows the rank and waits for others.
    Known,
    /// Rank 0 does not take it; the ranks of another job may wait for their own rank 0.
    Refused {
        reason: String,
        other_job: bool,
    },
    /// Everybody is there.
    All {
        places: Vec<Place>,
    },
    /// The ranks do not come together.
    Failed {
        sentence: String,
    },
}

/// All ranks of a job, each connected with rank 0.
#[derive(Debug)]
pub(crate) struct Rendezvous {
    rank: usize,
    places: Vec<Place>,
    /// Where they met, for people.
    at: String,
    /// Rank 0: the others by rank, from 1. Others: rank 0.
    streams: Vec<TcpStream>,
}

impl Rendezvous {
    /// Collective: meets all other ranks, waiting for them for at most `patience`.
    ///
    /// # Errors
    /// [`CommError::NoMeeting`] with the ranks that are missing, or why rank 0 cannot be reached or does not take this
    /// rank.
    pub(crate) fn meet(launched: &LaunchedRank, patience: Duration) -> Result<Rendezvous, CommError> {
        let Way::Tcp(point) = &launched.way else {
            return Err(own(format!("{} started the ranks, which meet through MPI", launched.launcher)));
        };
        let hello = Hello {
            protocol: PROTOCOL,
            job: point.job.clone(),
            token: point.token.clone(),
            rank: launched.rank,
            world_size: launched.world_size,
            local_rank: launched.local_rank,
            local_size: point.local_size,
            host: hostname(),
            machine: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            node: point.node.clone(),
        };
        let deadline = Instant::now() + patience;
        match launched.rank {
            0 => invite(point, hello, patience, deadline),
            _ => join(point, &hello, patience, deadline),
        }
    }

    /// Where this rank stands.
    #[must_use]
    pub(crate) fn topology(&self) -> Topology {
        let Place { host, local_rank, local_size, .. } = self.places[self.rank].clone();
        Topology { rank: self.rank, world_size: self.places.len(), local_rank, local_size, host }
    }

    /// Of every rank, by rank.
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Where the ranks met, for people.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// Collective: the bytes of every rank, by rank. Lengths may differ.
    ///
    /// # Errors
    /// [`CommError::NoMeeting`] when a rank has gone.
    pub(crate) fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let deadline = Instant::now() + GATHER;
        if self.rank == 0 {
            self.gather_and_tell(bytes, deadline)
        } else {
            self.tell_and_hear(bytes, deadline + HELLO)
        }
    }

    /// Collective: the value if every rank succeeded, else the sentence of the lowest rank that failed.
    pub(super) fn agree<T>(&mut self, local: Result<T, String>) -> Result<T, CommError> {
        let word = local.as_ref().err().map_or("", String::as_str).as_bytes();
        let words = self.all_gather(word)?;
        let failed = words.iter().position(|word| !word.is_empty());
        match (failed, local) {
            (None, Ok(value)) => Ok(value),
            (Some(rank), _) => {
                let sentence = String::from_utf8_lossy(&words[rank]).into_owned();
                Err(CommError::NoMeeting { sentence, mine: rank == self.rank })
            }
            (None, Err(sentence)) => Err(own(sentence)),
        }
    }

    /// Rank 0's part.
    fn gather_and_tell(&mut self, bytes: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, CommError> {
        let mut all = vec![bytes.to_vec()];
        for (rank, stream) in (1..).zip(&self.streams) {
            match receive(stream, LONGEST_FRAME, deadline) {
                Ok(bytes) => all.push(bytes),
                Err(error) => {
                    let sentence = format!(
                        "rank {rank} on {} left while the ranks met: {error}",
                        self.places[rank].host
                    );
                    let reply = [&[FAILED], sentence.as_bytes()].concat();
                    for stream in &self.streams {
                        let _ = send(stream, &reply, Instant::now() + HELLO);
                    }
                    return Err(own(sentence));
                }
            }
        }
        let mut reply = vec![GATHERED];
        for bytes in &all {
            reply.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            reply.extend_from_slice(bytes);
        }
        for (rank, stream) in (1..).zip(&self.streams) {
            send(stream, &reply, deadline).map_err(|error| {
                own(format!("rank {rank} on {} left while the ranks met: {error}", self.places[rank].host))
            })?;
        }
        Ok(all)
    }

    /// Another rank's part.
    fn tell_and_hear(&mut self, bytes: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, CommError> {
        let [leader] = &self.streams[..] else { return Err(CommError::Ended) };
        let reply = send(leader, bytes, deadline).and_then(|()| receive(leader, LONGEST_FRAME, deadline));
        let reply = reply.map_err(|error| {
            own(format!("rank 0 on {} left while the ranks met: {error}", self.places[0].host))
        })?;
        match reply.split_first() {
            Some((&GATHERED, rest)) => {
                let all = parts(rest).filter(|all| all.len() == self.places.len());
                all.ok_or_else(|| own("rank 0 does not speak as this rank does".into()))
            }
            _ => Err(CommError::NoMeeting {
                sentence: String::from_utf8_lossy(reply.get(1..).unwrap_or_default()).into_owned(),
                mine: false,
            }),
        }
    }
}

/// First byte of rank 0's answer to what it gathered.
const FAILED: u8 = 0;
const GATHERED: u8 = 1;

fn parts(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk()?;
        let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        parts.push(part.to_vec());
        bytes = rest;
    }
    Some(parts)
}

fn own(sentence: String) -> CommError {
    CommError::NoMeeting { sentence, mine: true }
}

/// Rank 0: lets in every other rank, and nobody else.
fn invite(
    point: &MeetingPoint,
    me: Hello,
    patience: Duration,
    deadline: Instant,
) -> Result<Rendezvous, CommError> {
    let world_size = me.world_size;
    let (listener, at) = listen(point).map_err(own)?;
    let mut known: Vec<Option<(Hello, TcpStream)>> = (1..world_size).map(|_| None).collect();
    let mut turned_away = None;
    let mut notice = Instant::now() + NOTICE;
    while !all_wait(&mut known) {
        let arrival = listener.accept().and_then(|(stream, from)| {
            stream.set_nonblocking(false)?;
            Ok((stream, from))
        });
        match arrival {
            Ok((stream, from)) => {
                let admitted = admit(stream, &me, &mut known);
                turned_away = admitted
                    .err()
                    .map(|reason| format!("{}: {reason}", from.ip().to_canonical()))
                    .or(turned_away);
            }
            // Nobody is there, or has gone again, or descriptors are short for a moment.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
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
    Ok(Rendezvous { rank: 0, places, at, streams })
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
            let listener = TcpListener::bind((interface, port)).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            match listener {
                Ok(listener) => return Ok((listener, format!("{host}:{port}"))),
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
fn admit(stream: TcpStream, me: &Hello, known: &mut [Option<(Hello, TcpStream)>]) -> Result<(), String> {
    let in_words = |error: io::Error| error.to_string();
    let deadline = Instant::now() + HELLO;
    stream.set_nodelay(true).map_err(in_words)?;
    let Word::Hello(hello) = receive_word(&stream, LONGEST_WORD, deadline).map_err(in_words)? else {
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
                send_word(&stream, &Word::Known, deadline).map_err(in_words)?;
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

/// Whether the other side has not closed it; a rank that waits says nothing.
fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let open = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    open && stream.set_nonblocking(false).is_ok()
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
fn place(hellos: &[Hello]) -> Result<Vec<Place>, String> {
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

/// Another rank: finds rank 0 and waits until everybody is there.
fn join(
    point: &MeetingPoint,
    me: &Hello,
    patience: Duration,
    deadline: Instant,
) -> Result<Rendezvous, CommError> {
    let mut refused_since = None;
    loop {
        let mut reasons = Vec::new();
        let mut refused = false;
        for (name, address) in addresses(point, &mut reasons) {
            match knock(address, me, deadline) {
                Ok(Welcome::All(stream, places)) => {
                    let at = format!("{name}:{}", address.port());
                    return Ok(Rendezvous { rank: me.rank, places, at, streams: vec![stream] });
                }
                Ok(Welcome::Failed(sentence)) => return Err(CommError::NoMeeting { sentence, mine: false }),
                Ok(Welcome::Refused { reason, other_job }) => {
                    refused |= !other_job;
                    reasons.push(format!("{address}: {reason}"));
                }
                Err(error) => reasons.push(format!("{address}: {error}")),
            }
        }
        let now = Instant::now();
        refused_since = if refused { refused_since.or(Some(now)) } else { None };
        if now > deadline || refused_since.is_some_and(|since| now > since + REFUSALS) {
            let waited = patience.saturating_sub(deadline.saturating_duration_since(now));
            return Err(own(format!(
                "rank {} on {} has not met rank 0 within {} s ({}); every rank needs the same MASTER_ADDR and MASTER_PORT, \
                 at which rank 0 listens",
                me.rank,
                me.host,
                waited.as_secs_f32().ceil(),
                reasons.join("; ")
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every address at which rank 0 may listen. Names may become known while ranks start.
fn addresses<'a>(point: &'a MeetingPoint, reasons: &mut Vec<String>) -> Vec<(&'a str, SocketAddr)> {
    let mut found = Vec::new();
    for host in &point.hosts {
        match (host.as_str(), 0).to_socket_addrs() {
            Ok(resolved) => {
                let ips: Vec<IpAddr> = resolved.map(|address| address.ip()).collect();
                let every =
                    point.ports.iter().flat_map(|&port| ips.iter().map(move |&ip| SocketAddr::new(ip, port)));
                found.extend(every.map(|address| (host.as_str(), address)));
            }
            Err(error) => reasons.push(format!("{host}: {error}")),
        }
    }
    found
}

enum Welcome {
    All(TcpStream, Vec<Place>),
    Failed(String),
    Refused { reason: String, other_job: bool },
}

fn knock(address: SocketAddr, me: &Hello, deadline: Instant) -> io::Result<Welcome> {
    let stream = TcpStream::connect_timeout(&address, CONNECT)?;
    // Where nobody listens, Linux may connect a port of its own range with itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    let answer_by = Instant::now() + ANSWER;
    send_word(&stream, &Word::Hello(me.clone()), answer_by)?;
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "no answer of ours");
    match receive_word(&stream, LONGEST_WORD, answer_by)? {
        Word::Known => {}
        Word::Refused { reason, other_job } => return Ok(Welcome::Refused { reason, other_job }),
        _ => return Err(strange()),
    }
    // Rank 0 says at its own deadline who is missing.
    match receive_word(&stream, LONGEST_FRAME, deadline + ANSWER)? {
        Word::All { places } if places.len() == me.world_size => Ok(Welcome::All(stream, places)),
        Word::Failed { sentence } => Ok(Welcome::Failed(sentence)),
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests;
