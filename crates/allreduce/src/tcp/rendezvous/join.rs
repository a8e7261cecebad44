//! Another rank's part of the meeting: looks for rank 0 wherever it may listen, and waits until everybody is there.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::{ANSWER, Hello, Met, Place, Word, own};
use crate::CommError;
use crate::frames::{LONGEST_FRAME, LONGEST_WORD, receive_word, send_word};
use crate::tcp::environment::MeetingPoint;

/// Within this time an address must answer.
const CONNECT: Duration = Duration::from_secs(5);
/// A rank 0 that refuses for longer than this is no remnant of an earlier start.
const REFUSALS: Duration = Duration::from_secs(5);

/// Another rank: finds rank 0 and waits until everybody is there.
pub(super) fn join(
    point: &MeetingPoint,
    me: &Hello,
    patience: Duration,
    deadline: Instant,
) -> Result<Met, CommError> {
    let mut refused_since = None;
    loop {
        let mut reasons = Vec::new();
        let mut refused = false;
        for (name, address) in addresses(point, &mut reasons) {
            match knock(address, me, deadline) {
                Ok(Welcome::All(stream, places)) => {
                    let at = format!("{name}:{}", address.port());
                    return Ok(Met { places, at, streams: vec![stream] });
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
