//! A TCP connection between every two ranks that have met.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::rendezvous::{Place, Rendezvous};
use crate::CommError;
use crate::callers::{Callers, listen_at};
use crate::control::addresses::{HostAddress, choose, of_this_host};
use crate::frames::{LONGEST_WORD, left_until, receive_word, send_word};

/// Within this time a rank that has shown the key must confirm that it still waits.
const CONFIRMATION: Duration = Duration::from_secs(2);
/// Within this time an address must answer.
const ANSWER: Duration = Duration::from_secs(5);
/// After the deadline, what a rank has begun to reach another one may take so long.
const LAST_ATTEMPT: Duration = ANSWER;
/// So long after the deadline a rank that is to be reached gives up: later than those who try, and know why it fails.
const LAST_CALL: Duration = Duration::from_secs(10);

/// Where a rank listens, and a key that strangers do not know.
#[derive(Serialize, Deserialize)]
struct Card {
    addresses: Vec<SocketAddr>,
    key: String,
}

/// How a rank introduces itself to another.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hello {
    key: String,
    from: usize,
    to: usize,
}

/// Collective: connects every two ranks. The result has a connection to each rank but this one, by rank.
pub(super) fn connect_all(rendezvous: &mut Rendezvous) -> Result<Vec<Option<TcpStream>>, CommError> {
    let rank = rendezvous.topology().rank;
    let places = rendezvous.places().to_vec();
    let own_addresses = serde_json::to_vec(&of_this_host()).unwrap_or_default();
    let hosts: Vec<Vec<HostAddress>> = rendezvous
        .all_gather(&own_addresses)?
        .iter()
        .map(|bytes| serde_json::from_slice(bytes).unwrap_or_default())
        .collect();

    let listening = rendezvous.agree(listen(rank, &places, hosts))?;
    let card = serde_json::to_vec(&listening.1).unwrap_or_default();
    let cards: Vec<Card> =
        rendezvous.all_gather(&card)?.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
    let all_there =
        if cards.len() == places.len() { Ok(()) } else { Err("a rank does not say where it listens".into()) };
    rendezvous.agree(all_there)?;

    // A rank connects to those above it. Of two that do not come together, the lower one is heard, and knows why.
    let patience = rendezvous.patience();
    let deadline = Instant::now() + patience;
    let (below, above) = std::thread::scope(|scope| {
        let below = scope.spawn(|| accept(&listening.0, rank, &cards[rank].key, &places, deadline));
        let above: Result<Vec<TcpStream>, String> = (rank + 1..places.len())
            .map(|peer| connect(rank, peer, &cards[peer], &places, deadline))
            .collect();
        (below.join().unwrap_or_else(|_| Err(format!("rank {rank} cannot accept connections"))), above)
    });
    // Ranks that have all their connections wait for those that find out at their deadlines which one is missing.
    let longest = patience + LAST_CALL + 2 * CONFIRMATION;
    let (above, below) = (rendezvous.agree_after(longest, above)?, rendezvous.agree(below)?);
    let streams = below.into_iter().map(Some).chain([None]).chain(above.into_iter().map(Some));
    Ok(streams.collect())
}

fn listen(
    rank: usize,
    places: &[Place],
    mut hosts: Vec<Vec<HostAddress>>,
) -> Result<(TcpListener, Card), String> {
    let one_machine =
        places.iter().all(|place| (&place.host, &place.machine) == (&places[0].host, &places[0].machine));
    let own = hosts.remove(rank);
    hosts.insert(0, own);
    let place = choose(one_machine, &hosts);
    let (listener, port) = listen_at(place.bind, 0).map_err(|error| {
        format!("rank {rank} on {} cannot listen on {}: {error}", places[rank].host, place.bind)
    })?;
    let addresses = place.reach.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    Ok((listener, Card { addresses, key: format!("{:032x}", rand::random::<u128>()) }))
}

/// Connects to a rank above.
fn connect(
    rank: usize,
    peer: usize,
    card: &Card,
    places: &[Place],
    deadline: Instant,
) -> Result<TcpStream, String> {
    let hello = Hello { key: card.key.clone(), from: rank, to: peer };
    let soon = || (Instant::now() + ANSWER).min(deadline + LAST_ATTEMPT);
    let knock = |address: &SocketAddr| {
        let stream = TcpStream::connect_timeout(address, left_until(soon())?)?;
        stream.set_nodelay(true)?;
        send_word(&stream, &hello, soon())?;
        // It answers by its own name, else this address belongs to somebody else.
        let answer: usize = receive_word(&stream, LONGEST_WORD, soon())?;
        if answer != peer {
            return Err(io::Error::other(format!("rank {answer} is there")));
        }
        send_word(&stream, &rank, soon())?;
        Ok(stream)
    };
    loop {
        let mut reasons = Vec::new();
        for address in &card.addresses {
            match knock(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => reasons.push(format!("{address}: {error}")),
            }
        }
        if reasons.is_empty() {
            reasons.push("it has no address but the loopback one".into());
        }
        if card.addresses.is_empty() || Instant::now() > deadline {
            return Err(format!(
                "rank {rank} on {} cannot connect to rank {peer} on {} ({}): every two ranks need a TCP connection",
                places[rank].host,
                places[peer].host,
                reasons.join("; ")
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Accepts a connection from each rank below, and from nobody else.
fn accept(
    listener: &TcpListener,
    rank: usize,
    key: &str,
    places: &[Place],
    deadline: Instant,
) -> Result<Vec<TcpStream>, String> {
    let mut streams: Vec<Option<TcpStream>> = (0..rank).map(|_| None).collect();
    let deadline = deadline + LAST_CALL;
    let mut callers = Callers::new(listener);
    while let Some(missing) = streams.iter().position(Option::is_none) {
        for (from, called) in callers.hear::<Hello>() {
            match called.and_then(|(stream, hello)| admit(stream, &hello, rank, key)) {
                Ok((peer, stream)) if peer < rank => streams[peer] = Some(stream),
                Ok((peer, _)) => callers.turn_away(from, format!("rank {peer} waits to be called itself")),
                Err(error) => callers.turn_away(from, error),
            }
        }
        if Instant::now() > deadline {
            return Err(format!(
                "rank {missing} on {} has not connected to rank {rank} on {}",
                places[missing].host, places[rank].host
            ));
        }
    }
    Ok(streams.into_iter().flatten().collect())
}

/// Lets a rank in that still waits: one that has given up meanwhile comes again.
fn admit(stream: TcpStream, hello: &Hello, rank: usize, key: &str) -> io::Result<(usize, TcpStream)> {
    if *hello != (Hello { key: key.to_owned(), from: hello.from, to: rank }) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it does not know the key"));
    }
    send_word(&stream, &rank, Instant::now() + CONFIRMATION)?;
    let confirmed: usize = receive_word(&stream, LONGEST_WORD, Instant::now() + CONFIRMATION)?;
    if confirmed != hello.from {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it changes its name"));
    }
    Ok((hello.from, stream))
}

#[cfg(test)]
mod tests;
