//! Messages between ranks over the connections of a mesh: a length, then the elements as they lie in memory, so that
//! all hosts must have one byte order.
//!
//! A rank that waits looks again for some microseconds, then sleeps in the system until something arrives. The end of a
//! connection in the middle of an exchange is the other rank's death.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use zerocopy::IntoBytes;

use crate::CommError;
use crate::communicator::AbortSignal;
use crate::transport::{Element, Transport};

/// For less than this after the last progress, the next look follows at once, unless a thread has a core to spare.
const SPIN: Duration = Duration::from_micros(20);
/// Asleep, a rank wakes up this often to look at the abort signal.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// So much is moved over one connection before the others have their turn.
const TURN_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 8;

/// The connections of one rank to all others.
pub(super) struct Mesh {
    rank: usize,
    /// By rank.
    hosts: Vec<String>,
    /// By rank; none to this one.
    streams: Vec<Option<TcpStream>>,
    poll: Poll,
    events: Events,
    signal: AbortSignal,
    spin: Duration,
    /// The first failure, after which messages would be taken for others.
    failure: Option<CommError>,
}

impl Mesh {
    /// Takes over a connection to every rank but `rank`, by rank.
    pub(super) fn new(
        rank: usize,
        hosts: Vec<String>,
        streams: Vec<Option<std::net::TcpStream>>,
    ) -> io::Result<Mesh> {
        let poll = Poll::new()?;
        let register = |(peer, stream): (usize, Option<std::net::TcpStream>)| {
            let Some(stream) = stream else { return Ok(None) };
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(peer), both)?;
            Ok(Some(stream))
        };
        let streams = streams.into_iter().enumerate().map(register).collect::<io::Result<Vec<_>>>()?;
        let events = Events::with_capacity(streams.len().max(1));
        Ok(Mesh { rank, hosts, streams, poll, events, signal: AbortSignal::new(), spin: SPIN, failure: None })
    }

    pub(super) fn interrupt_by(&mut self, signal: AbortSignal) {
        self.signal = signal;
    }

    pub(super) fn spin_for(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Closes all connections; what was sent still arrives.
    pub(super) fn close(&mut self) {
        self.streams.iter_mut().for_each(|stream| *stream = None);
        self.failure.get_or_insert(CommError::Ended);
    }

    fn run(&mut self, sends: &mut Vec<Sending>, receives: &mut Vec<Receiving>) -> Result<(), CommError> {
        let mut progress = Instant::now();
        loop {
            let moved = self.look(sends, receives)?;
            if sends.is_empty() && receives.is_empty() {
                return Ok(());
            }
            if self.signal.raised().is_some() {
                return Err(CommError::Aborted);
            }
            if moved {
                progress = Instant::now();
            } else if progress.elapsed() < self.spin {
                std::hint::spin_loop();
            } else {
                // What comes between the look and this is reported at once. An interrupted sleep is short.
                let _ = self.poll.poll(&mut self.events, Some(LONGEST_SLEEP));
            }
        }
    }

    /// Moves what can be moved without waiting; whether that was anything.
    fn look(&mut self, sends: &mut Vec<Sending>, receives: &mut Vec<Receiving>) -> Result<bool, CommError> {
        let mut moved = false;
        // Messages to or from one rank keep their order, and stand beside each other.
        let mut unfinished = None;
        for message in &mut *sends {
            if unfinished != Some(message.to) {
                moved |= message
                    .advance(self.stream(message.to)?)
                    .map_err(|error| self.lost(message.to, &error))?;
                if !message.is_done() {
                    unfinished = Some(message.to);
                }
            }
        }
        sends.retain(|message| !message.is_done());
        unfinished = None;
        for message in &mut *receives {
            if unfinished != Some(message.from) {
                let stream = self.stream(message.from)?;
                moved |= message.advance(stream).map_err(|error| self.lost(message.from, &error))?;
                message.check_length()?;
                if !message.is_done() {
                    unfinished = Some(message.from);
                }
            }
        }
        receives.retain(|message| !message.is_done());
        Ok(moved)
    }

    fn stream(&self, peer: usize) -> Result<&TcpStream, CommError> {
        let none = CommError::NoSuchRank { root: peer, world_size: self.streams.len() };
        self.streams.get(peer).and_then(Option::as_ref).ok_or(none)
    }

    fn lost(&self, peer: usize, error: &io::Error) -> CommError {
        CommError::Lost { rank: peer, host: self.hosts[peer].clone(), reason: error.to_string() }
    }
}

impl Transport for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.hosts.len()
    }

    fn exchange<'a, E: Element>(
        &mut self,
        outgoing: impl Iterator<Item = (usize, &'a [E])>,
        incoming: impl Iterator<Item = (usize, &'a mut [E])>,
    ) -> Result<(), CommError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let mut sends: Vec<Sending> =
            outgoing.map(|(to, slice)| Sending::new(to, slice.as_bytes())).collect();
        let mut receives: Vec<Receiving> =
            incoming.map(|(from, slice)| Receiving::new(from, slice.as_mut_bytes())).collect();
        sends.sort_by_key(|message| message.to);
        receives.sort_by_key(|message| message.from);
        let result = self.run(&mut sends, &mut receives);
        self.failure = result.clone().err();
        result
    }
}

struct Sending<'a> {
    to: usize,
    header: [u8; HEADER_BYTES],
    bytes: &'a [u8],
    /// Of header and bytes.
    sent: usize,
}

impl<'a> Sending<'a> {
    fn new(to: usize, bytes: &'a [u8]) -> Self {
        Sending { to, header: (bytes.len() as u64).to_le_bytes(), bytes, sent: 0 }
    }

    fn is_done(&self) -> bool {
        self.sent == HEADER_BYTES + self.bytes.len()
    }

    fn advance(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let begin = self.sent;
        while !self.is_done() && self.sent - begin < TURN_BYTES {
            let header = &self.header[self.sent.min(HEADER_BYTES)..];
            let bytes = &self.bytes[self.sent.saturating_sub(HEADER_BYTES)..];
            match stream.write_vectored(&[IoSlice::new(header), IoSlice::new(bytes)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.sent > begin)
    }
}

struct Receiving<'a> {
    from: usize,
    header: [u8; HEADER_BYTES],
    bytes: &'a mut [u8],
    /// Of header and bytes.
    received: usize,
}

impl<'a> Receiving<'a> {
    fn new(from: usize, bytes: &'a mut [u8]) -> Self {
        Receiving { from, header: [0; HEADER_BYTES], bytes, received: 0 }
    }

    fn is_done(&self) -> bool {
        self.received == HEADER_BYTES + self.bytes.len()
    }

    fn advance(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let begin = self.received;
        while !self.is_done() && self.received - begin < TURN_BYTES {
            let header = &mut self.header[self.received.min(HEADER_BYTES)..];
            let bytes = &mut self.bytes[self.received.saturating_sub(HEADER_BYTES)..];
            match stream.read_vectored(&mut [IoSliceMut::new(header), IoSliceMut::new(bytes)]) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "its connection closed")),
                Ok(len) => self.received += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.received > begin)
    }

    /// Another length shows that the ranks run different operations.
    fn check_length(&self) -> Result<(), CommError> {
        let announced = usize::try_from(u64::from_le_bytes(self.header)).unwrap_or(usize::MAX);
        match self.received >= HEADER_BYTES && announced != self.bytes.len() {
            true => {
                Err(CommError::OutOfStep { peer: self.from, expected: self.bytes.len(), received: announced })
            }
            false => Ok(()),
        }
    }
}
