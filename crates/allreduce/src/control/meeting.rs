//! How the ranks come to have a connection to rank 0 each: addresses and a token travel over the
//! communicator, then every rank knocks and shows the token. When all are there, rank 0 listens no longer.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::addresses::{HostAddress, choose, of_this_host};
use super::wire::PROTOCOL;
use crate::callers::{Callers, is_open, listen_at};
use crate::frames::{LONGEST_WORD, receive_word, send_word};
use crate::{Agreed, CommThread, Failure};

/// Within this time all ranks must have met.
const PATIENCE: Duration = Duration::from_secs(60);
/// Within this time an address must be reached.
const CONNECT: Duration = Duration::from_secs(5);
/// Within this time rank 0 must answer. A rank comes again where it does not: others may listen at its other addresses.
const ANSWER: Duration = Duration::from_secs(10);

/// The connections of one rank: of rank 0 to all others, of the others to rank 0.
#[derive(Debug)]
pub(super) struct Connections {
    /// Of every rank, by rank.
    pub(super) hosts: Vec<String>,
    /// As said by rank 0.
    pub(super) timeout: Duration,
    /// With the rank at the other end.
    pub(super) streams: Vec<(usize, TcpStream)>,
}

/// What each rank tells all others of itself.
#[derive(Serialize, Deserialize)]
struct Introduction {
    protocol: u32,
    host: String,
    addresses: Vec<HostAddress>,
}

/// What rank 0 tells all others: where it listens, and the token that belongs to this job.
#[derive(Serialize, Deserialize)]
struct Invitation {
    addresses: Vec<SocketAddr>,
    token: String,
}

/// What is said at the door.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// A rank introduces itself; the token shows that it belongs to this job.
    Hello { protocol: u32, token: String, rank: usize },
    /// Rank 0 knows the rank. How long a collective may take is rank 0's to say.
    Welcome { timeout: Duration },
    /// Rank 0 does not take it.
    Refused { reason: String },
}

/// Collective: makes the connections.
pub(super) fn meet(comm: &CommThread, timeout: Duration) -> Result<Connections, Agreed> {
    let topology = comm.topology();
    let me = Introduction { protocol: PROTOCOL, host: topology.host.clone(), addresses: of_this_host() };
    let all: Vec<Introduction> = gather(comm, Some(&me))?
        .into_iter()
        .map(|introduction| introduction.filter(|rank: &Introduction| rank.protocol == PROTOCOL))
        .collect::<Option<_>>()
        .ok_or_else(|| found_by_all(comm, "the ranks run different versions of this program"))?;
    let hosts: Vec<String> = all.iter().map(|rank| rank.host.clone()).collect();

    let listening = match topology.rank {
        0 => {
            let addresses: Vec<_> = all.into_iter().map(|rank| rank.addresses).collect();
            comm_result(comm, listen(topology.local_size == topology.world_size, &addresses).map(Some))?
        }
        _ => comm_result(comm, Ok(None))?,
    };
    let invitation = gather(comm, listening.as_ref().map(|(_, invitation)| invitation))?;
    let invitation: Invitation = invitation
        .into_iter()
        .next()
        .flatten()
        .ok_or_else(|| found_by_all(comm, "rank 0 does not say where it listens"))?;
    let streams = match &listening {
        Some((listener, _)) => admit(listener, &invitation.token, &hosts, timeout, PATIENCE),
        None => {
            knock(&invitation, topology.rank, &hosts[0]).map(|(stream, timeout)| (timeout, vec![(0, stream)]))
        }
    };
    let (timeout, streams) = comm_result(comm, streams)?;
    Ok(Connections { hosts, timeout, streams })
}

fn failure(sentence: String) -> Failure {
    Failure { exit_code: super::EXIT_FAILURE, sentence }
}

/// What every rank sees by itself, and rank 0 says.
fn found_by_all(comm: &CommThread, sentence: &str) -> Agreed {
    Agreed { rank: 0, failure: failure(sentence.to_owned()), mine: comm.topology().rank == 0 }
}

/// Collective: the value if every rank succeeded, else the failure of the lowest that did not.
fn comm_result<T>(comm: &CommThread, local: Result<T, String>) -> Result<T, Agreed> {
    comm.agree(local.map_err(failure))
}

/// Collective: what every rank says, by rank.
fn gather<T: Serialize + for<'de> Deserialize<'de>>(
    comm: &CommThread,
    mine: Option<&T>,
) -> Result<Vec<Option<T>>, Agreed> {
    let alone = |sentence| Agreed { rank: comm.topology().rank, failure: failure(sentence), mine: true };
    let mine = mine.map_or(Ok(Vec::new()), serde_json::to_vec).map_err(|error| alone(error.to_string()))?;
    let all = comm.all_gather(mine).map_err(|error| alone(error.to_string()))?;
    Ok(all.iter().map(|bytes| serde_json::from_slice(bytes).ok()).collect())
}

fn listen(all_on_one_host: bool, hosts: &[Vec<HostAddress>]) -> Result<(TcpListener, Invitation), String> {
    let place = choose(all_on_one_host, hosts);
    let (listener, port) = listen_at(place.bind, 0)
        .map_err(|error| format!("the control plane cannot listen on {}: {error}", place.bind))?;
    let addresses = place.reach.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    let token = format!("{:032x}", rand::random::<u128>());
    Ok((listener, Invitation { addresses, token }))
}

/// Rank 0: lets in every other rank once, and nobody else.
fn admit(
    listener: &TcpListener,
    token: &str,
    hosts: &[String],
    timeout: Duration,
    patience: Duration,
) -> Result<(Duration, Vec<(usize, TcpStream)>), String> {
    let deadline = Instant::now() + patience;
    let mut streams: Vec<Option<TcpStream>> = hosts.iter().map(|_| None).collect();
    let mut callers = Callers::new(listener);
    while let Some(missing) = first_missing(&mut streams) {
        for (from, called) in callers.hear() {
            match called.and_then(|(stream, word)| admit_one(stream, word, token, &streams, timeout)) {
                Ok((rank, stream)) => streams[rank] = Some(stream),
                Err(error) => callers.turn_away(from, error),
            }
        }
        if Instant::now() > deadline {
            return Err(format!(
                "rank {missing} on {} has not reached the control plane on {} within {} s",
                hosts[missing],
                hosts[0],
                patience.as_secs_f32()
            ));
        }
    }
    let streams =
        streams.into_iter().enumerate().filter_map(|(rank, stream)| Some((rank, stream?))).collect();
    Ok((timeout, streams))
}

/// The first rank that has not come, or has gone meanwhile: it may come again.
fn first_missing(streams: &mut [Option<TcpStream>]) -> Option<usize> {
    let missing = |streams: &[Option<TcpStream>]| (1..streams.len()).find(|&rank| streams[rank].is_none());
    missing(streams).or_else(|| {
        for place in &mut *streams {
            place.take_if(|stream| !is_open(stream));
        }
        missing(streams)
    })
}

fn admit_one(
    stream: TcpStream,
    word: Word,
    token: &str,
    known: &[Option<TcpStream>],
    timeout: Duration,
) -> io::Result<(usize, TcpStream)> {
    let reason = match word {
        Word::Hello { protocol, .. } if protocol != PROTOCOL => {
            format!("rank 0 speaks protocol {PROTOCOL}, not {protocol}")
        }
        Word::Hello { token: shown, .. } if shown != token => "the token is that of another job".into(),
        Word::Hello { rank, .. } => match known.get(rank) {
            // One that has gone may come again.
            Some(place) if rank != 0 && !place.as_ref().is_some_and(is_open) => {
                send_word(&stream, &Word::Welcome { timeout }, Instant::now() + ANSWER)?;
                return Ok((rank, stream));
            }
            _ => format!("there is no such rank, or it is here already: {rank}"),
        },
        _ => "a rank says hello first".into(),
    };
    send_word(&stream, &Word::Refused { reason: reason.clone() }, Instant::now() + ANSWER)?;
    Err(io::Error::new(ErrorKind::PermissionDenied, reason))
}

/// Another rank: connects to rank 0.
fn knock(invitation: &Invitation, rank: usize, host: &str) -> Result<(TcpStream, Duration), String> {
    let deadline = Instant::now() + PATIENCE;
    let mut reasons = Vec::new();
    while Instant::now() < deadline {
        reasons.clear();
        for address in &invitation.addresses {
            match knock_at(*address, &invitation.token, rank) {
                Ok(welcomed) => return Ok(welcomed),
                Err(error) => reasons.push(format!("{address}: {error}")),
            }
        }
        if reasons.is_empty() {
            reasons.push("it has no address but the loopback one".into());
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!(
        "cannot reach the control plane of rank 0 on {host} ({}): ranks need a TCP connection to rank 0",
        reasons.join("; ")
    ))
}

fn knock_at(address: SocketAddr, token: &str, rank: usize) -> io::Result<(TcpStream, Duration)> {
    let stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_nodelay(true)?;
    let deadline = Instant::now() + ANSWER;
    send_word(&stream, &Word::Hello { protocol: PROTOCOL, token: token.to_owned(), rank }, deadline)?;
    match receive_word(&stream, LONGEST_WORD, deadline)? {
        Word::Welcome { timeout } => Ok((stream, timeout)),
        Word::Refused { reason } => Err(io::Error::new(ErrorKind::PermissionDenied, reason)),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "no answer of ours")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::in_process::on_each_comm_thread;

    #[test]
    fn every_rank_is_connected_with_rank_0_and_learns_its_timeout() {
        for world_size in [2, 5] {
            let connections = on_each_comm_thread(world_size, |comm| {
                // Others ask for something else; rank 0 decides.
                meet(comm, Duration::from_secs(10 + comm.topology().rank as u64)).unwrap()
            });
            for (rank, connections) in connections.iter().enumerate() {
                let peers: Vec<_> = connections.streams.iter().map(|&(peer, _)| peer).collect();
                let expected: Vec<_> = if rank == 0 { (1..world_size).collect() } else { vec![0] };
                assert_eq!(peers, expected);
                assert_eq!(connections.timeout, Duration::from_secs(10));
                assert_eq!(connections.hosts[world_size - 1], format!("host{}", world_size - 1));
                for (_, stream) in &connections.streams {
                    assert!(stream.local_addr().unwrap().ip().is_loopback(), "all are on one host");
                }
            }
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    fn listener() -> (TcpListener, SocketAddr) {
        let (listener, port) = listen_at(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        (listener, (Ipv4Addr::LOCALHOST, port).into())
    }

    fn hosts() -> Vec<String> {
        vec!["here".to_owned(), "there".to_owned()]
    }

    #[test]
    fn strangers_and_impostors_are_turned_away() {
        let (listener, address) = listener();
        let hosts = hosts();
        let hello = |protocol, token: &str, rank| Word::Hello { protocol, token: token.into(), rank };
        let soon = || Instant::now() + ANSWER;
        std::thread::scope(|scope| {
            let admitted =
                scope.spawn(|| admit(&listener, "secret", &hosts, Duration::from_secs(1), PATIENCE).unwrap());
            let refused = [
                (hello(PROTOCOL + 1, "secret", 1), "protocol"),
                (hello(PROTOCOL, "guess", 1), "token"),
                (hello(PROTOCOL, "secret", 2), "no such rank"),
                (hello(PROTOCOL, "secret", 0), "no such rank"),
                (Word::Refused { reason: String::new() }, "hello first"),
            ];
            for (word, expected) in refused {
                let stream = TcpStream::connect(address).unwrap();
                send_word(&stream, &word, soon()).unwrap();
                match receive_word(&stream, LONGEST_WORD, soon()).unwrap() {
                    Word::Refused { reason } => assert!(reason.contains(expected), "{reason}"),
                    other => panic!("{other:?}"),
                }
            }
            // Whoever speaks another language is not answered at all.
            let stream = TcpStream::connect(address).unwrap();
            io::Write::write_all(&mut &stream, b"GET / HTTP/1.1\r\n\r\n").unwrap();
            assert!(receive_word::<Word>(&stream, LONGEST_WORD, soon()).is_err());
            drop(TcpStream::connect(address).unwrap());
            // Whoever says nothing is not waited for.
            let _silent = [(); 8].map(|()| TcpStream::connect(address).unwrap());
            let begin = Instant::now();
            let (_, timeout) = knock_at(address, "secret", 1).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            assert_eq!(timeout, Duration::from_secs(1));
            assert_eq!(admitted.join().unwrap().1.len(), 1);
        });
    }

    #[test]
    fn the_meeting_has_a_limit_however_many_knock() {
        let (listener, address) = listener();
        let hosts = hosts();
        let patience = Duration::from_millis(500);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let stranger = TcpStream::connect(address);
                    std::thread::sleep(Duration::from_millis(1));
                    drop(stranger);
                }
            });
            let begin = Instant::now();
            let refused = admit(&listener, "secret", &hosts, Duration::from_secs(1), patience).unwrap_err();
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(begin.elapsed() < 4 * patience, "{:?}", begin.elapsed());
            assert!(refused.starts_with("rank 1 on there has not reached the control plane"), "{refused}");
        });
    }

    #[test]
    fn nobody_goes_on_with_a_rank_that_has_gone_while_others_came() {
        let (listener, address) = listener();
        let hosts = vec![String::new(); 3];
        std::thread::scope(|scope| {
            let admitted =
                scope.spawn(|| admit(&listener, "secret", &hosts, Duration::from_secs(1), PATIENCE).unwrap());
            drop(knock_at(address, "secret", 1).unwrap());
            let second = knock_at(address, "secret", 2).unwrap();
            let first = knock_at(address, "secret", 1).unwrap();
            let (_, mut streams) = admitted.join().unwrap();
            for ((rank, stream), (mut knocked, _)) in streams.iter_mut().zip([first, second]) {
                io::Write::write_all(&mut knocked, &[*rank as u8]).unwrap();
                let mut heard = [0];
                io::Read::read_exact(stream, &mut heard).unwrap();
                assert_eq!(heard, [*rank as u8]);
            }
        });
    }

    #[test]
    fn a_rank_that_has_gone_may_come_again() {
        let (listener, address) = listener();
        let hosts = vec![String::new(); 3];
        std::thread::scope(|scope| {
            let admitted =
                scope.spawn(|| admit(&listener, "secret", &hosts, Duration::from_secs(1), PATIENCE).unwrap());
            drop(knock_at(address, "secret", 1).unwrap());
            let begin = Instant::now();
            let again = loop {
                match knock_at(address, "secret", 1) {
                    Ok(again) => break again,
                    Err(error) => assert!(begin.elapsed() < PATIENCE / 2, "{error}"),
                }
            };
            knock_at(address, "secret", 2).unwrap();
            let (_, mut streams) = admitted.join().unwrap();
            io::Write::write_all(&mut &again.0, b"a").unwrap();
            assert_eq!(streams.len(), 2);
            io::Read::read_exact(&mut streams[0].1, &mut [0]).unwrap();
        });
    }
}
