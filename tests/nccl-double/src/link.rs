//! The connections between the ranks of a communicator: each rank listens under a name that the unique id gives, and
//! connects to those of lower rank. Nothing here waits.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use crate::call::{Header, Place};

/// Bytes on their way to and from one rank.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Absent while the rank is not there yet.
    stream: Option<UnixStream>,
    outgoing: VecDeque<u8>,
    /// Beginning of the next message.
    header: Vec<u8>,
}

impl Link {
    pub(crate) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    pub(crate) fn queue(&mut self, header: Header, payload: &[u8]) {
        self.outgoing.extend(header.to_bytes());
        self.outgoing.extend(payload);
    }

    /// Writes what can be written; whether nothing is left. A rank that is no more gets nothing, and nobody is told.
    pub(crate) fn flush(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return self.outgoing.is_empty() };
        while !self.outgoing.is_empty() {
            match stream.write(self.outgoing.as_slices().0) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The header of the next message, once it is whole.
    pub(crate) fn next_header(&mut self) -> Option<Header> {
        let missing = Header::BYTES - self.header.len();
        let mut header = std::mem::take(&mut self.header);
        self.read_to(&mut header, missing);
        self.header = header;
        self.header.as_slice().try_into().ok().map(Header::from_bytes)
    }

    /// Appends up to `wanted` bytes of the message whose header has been seen.
    pub(crate) fn read_to(&mut self, into: &mut Vec<u8>, wanted: usize) {
        let Some(stream) = &mut self.stream else { return };
        let start = into.len();
        into.resize(start + wanted, 0);
        let mut filled = start;
        while filled < into.len() {
            match stream.read(&mut into[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        into.truncate(filled);
    }

    /// The message is through.
    pub(crate) fn next_message(&mut self) {
        self.header.clear();
    }
}

/// The meeting of the ranks.
#[derive(Debug)]
pub(crate) struct Meeting {
    name: String,
    place: Place,
    listener: UnixListener,
    /// Connections whose rank is not known yet.
    strangers: Vec<(UnixStream, Vec<u8>)>,
}

impl Meeting {
    pub(crate) fn new(name: String, place: Place) -> io::Result<Self> {
        let listener = UnixListener::bind_addr(&address(&name, place.rank)?)?;
        listener.set_nonblocking(true)?;
        Ok(Meeting { name, place, listener, strangers: Vec::new() })
    }

    /// Connects with those that are there; whether all are.
    pub(crate) fn progress(&mut self, links: &mut [Link]) -> io::Result<bool> {
        for (rank, link) in links.iter_mut().enumerate().take(self.place.rank) {
            if link.is_connected() {
                continue;
            }
            if let Ok(mut stream) = UnixStream::connect_addr(&address(&self.name, rank)?) {
                stream.write_all(&(self.place.rank as u32).to_le_bytes())?;
                stream.set_nonblocking(true)?;
                link.stream = Some(stream);
            }
        }
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            self.strangers.push((stream, Vec::new()));
        }
        let mut unknown = Vec::new();
        for (stream, mut word) in self.strangers.drain(..) {
            let mut link = Link { stream: Some(stream), ..Link::default() };
            let missing = size_of::<u32>() - word.len();
            link.read_to(&mut word, missing);
            let known = word.as_slice().try_into().ok().map(|bytes| u32::from_le_bytes(bytes) as usize);
            match (known.and_then(|rank| links.get_mut(rank)), link.stream.take()) {
                (Some(of_rank), stream) => of_rank.stream = stream,
                (None, Some(stream)) => unknown.push((stream, word)),
                (None, None) => {}
            }
        }
        self.strangers = unknown;
        let others = links.iter().enumerate().filter(|&(rank, _)| rank != self.place.rank);
        Ok(others.into_iter().all(|(_, link)| link.is_connected()))
    }
}

/// In Linux's abstract namespace, which leaves no file behind.
fn address(name: &str, rank: usize) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{name}-{rank}"))
}
