//! One connection of the control plane, non-blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::wire::{Lines, Message};

/// A connection to another rank.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    lines: Lines,
    /// A message could not be written whole; what follows would not be understood.
    torn: bool,
}

impl Link {
    /// Takes over a connection and has `registry` report, as `token`, when something arrives.
    pub(super) fn new(stream: std::net::TcpStream, registry: &Registry, token: Token) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE)?;
        Ok(Link { stream, lines: Lines::default(), torn: false })
    }

    /// Sends without waiting. Messages to a rank that does not read them are lost once the system's buffer is
    /// full, and the end of a connection is noticed by [`Link::receive`].
    pub(super) fn send(&mut self, message: &Message) {
        let line = message.to_line();
        if !self.torn {
            match self.stream.write(&line) {
                Ok(written) => self.torn = written < line.len(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.torn = true,
            }
        }
    }

    /// Everything that has arrived, and why the connection has ended, if it has.
    pub(super) fn receive(&mut self) -> (Vec<Message>, Option<String>) {
        let mut messages = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return (messages, Some("its connection closed without a farewell".into())),
                Ok(len) => match self.lines.add(&buffer[..len]) {
                    Ok(more) => messages.extend(more),
                    Err(error) => return (messages, Some(format!("it sent {error}"))),
                },
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return (messages, None),
                    ErrorKind::Interrupted => {}
                    _ => return (messages, Some(format!("its connection broke: {error}"))),
                },
            }
        }
    }

    /// Tells the other side that nothing more comes.
    pub(super) fn close_writing(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        self.torn = true;
    }

    /// Ends the connection.
    pub(super) fn close(mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.stream);
    }
}
