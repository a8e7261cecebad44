//! What travels while ranks meet: a mark, a length, and that many bytes. Every read and write has a deadline, and no
//! length is believed beyond a limit, since anybody may connect.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

const MARK: [u8; 4] = *b"wrnd";
/// Bytes of mark and length.
const HEAD: usize = 8;
/// Of a frame from somebody who may be a stranger.
pub(crate) const LONGEST_WORD: usize = 64 << 10;
/// Of a frame from a rank of this job.
pub(crate) const LONGEST_FRAME: usize = 256 << 20;

/// Sends one frame.
pub(crate) fn send(mut stream: &TcpStream, body: &[u8], deadline: Instant) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| invalid("a frame that is too long"))?;
    let frame = [&MARK[..], &length.to_le_bytes(), body].concat();
    let mut left = &frame[..];
    while !left.is_empty() {
        // Anew for each part: the system counts from the beginning of a call.
        stream.set_write_timeout(Some(left_until(deadline)?))?;
        match stream.write(left) {
            Ok(0) => return Err(closed()),
            Ok(len) => left = &left[len..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(in_words(error)),
        }
    }
    Ok(())
}

/// Receives one frame and not a byte beyond it.
pub(crate) fn receive(stream: &TcpStream, longest: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut head = [0; HEAD];
    fill(stream, &mut head, deadline)?;
    let mut body = vec![0; length_of_body(head, longest)?];
    fill(stream, &mut body, deadline)?;
    Ok(body)
}

fn length_of_body([m0, m1, m2, m3, length @ ..]: [u8; HEAD], longest: usize) -> io::Result<usize> {
    let length = u32::from_le_bytes(length) as usize;
    if [m0, m1, m2, m3] != MARK || length > longest {
        return Err(invalid("it does not speak as our ranks do"));
    }
    Ok(length)
}

/// A frame of which a part has arrived.
#[derive(Default)]
pub(crate) struct Incoming(Vec<u8>);

impl Incoming {
    /// Takes what has arrived at `stream`, which does not wait, and not a byte beyond the frame; gives the structure
    /// when all of it is there.
    pub(crate) fn read_word<T: DeserializeOwned>(
        &mut self,
        mut stream: &TcpStream,
        longest: usize,
    ) -> io::Result<Option<T>> {
        loop {
            let length = self.0.first_chunk().map(|head| length_of_body(*head, longest)).transpose()?;
            let whole = length.map_or(HEAD, |length| HEAD + length);
            let missing = whole - self.0.len();
            if length.is_some() && missing == 0 {
                return word(&self.0[HEAD..]).map(Some);
            }
            let mut part = [0; 4096];
            let part = &mut part[..missing.min(4096)];
            match stream.read(part) {
                Ok(0) => return Err(closed()),
                Ok(len) => self.0.extend_from_slice(&part[..len]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Sends one structure.
pub(crate) fn send_word(stream: &TcpStream, word: &impl Serialize, deadline: Instant) -> io::Result<()> {
    send(stream, &serde_json::to_vec(word)?, deadline)
}

/// Receives one structure.
pub(crate) fn receive_word<T: DeserializeOwned>(
    stream: &TcpStream,
    longest: usize,
    deadline: Instant,
) -> io::Result<T> {
    word(&receive(stream, longest, deadline)?)
}

fn word<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|_| invalid("it runs another version of this program"))
}

fn fill(mut stream: &TcpStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(left_until(deadline)?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(closed()),
            Ok(len) => buffer = &mut buffer[len..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(in_words(error)),
        }
    }
    Ok(())
}

/// The time that is left, an error where there is none.
pub(crate) fn left_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(no_answer()) } else { Ok(left) }
}

fn closed() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "its connection closed")
}

/// That somebody has not said in time what it should have.
pub(crate) fn no_answer() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

/// The system calls a time-out "Resource temporarily unavailable".
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => no_answer(),
        _ => error,
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_receiver_that_takes_little_by_little_buys_no_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let (limit, pause) = (Duration::from_millis(300), Duration::from_millis(20));
        // More than the system's buffers hold, by far more than is taken within the limit.
        let body = vec![0; 64 << 20];
        std::thread::scope(|scope| {
            let begin = Instant::now();
            let sending = scope.spawn(move || send(&sender, &body, Instant::now() + limit));
            while !sending.is_finished() {
                receiver.read_exact(&mut [0; 64 << 10]).unwrap();
                std::thread::sleep(pause);
            }
            let error = sending.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            assert!(begin.elapsed() < 5 * limit, "{:?}", begin.elapsed());
        });
    }
}
