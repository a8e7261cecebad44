//! Those who connect to a rank that listens, until each has said its first word. Anybody may connect, so nobody is
//! waited for: all are heard side by side, each within its own time. What a word means is for others to judge.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::frames::{Incoming, LONGEST_WORD, no_answer};

/// Within this time a caller must have said its whole first word; ranks do at once.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// Between looks at who has called.
const PAUSE: Duration = Duration::from_millis(5);
/// More callers than this do not wait: the longest waiting one goes, and comes again if it is a rank.
const MOST: usize = 128;
/// So many are let in at a time, that each is heard several times before others can push it out.
const AT_ONCE: usize = 16;

/// A listener that does not wait, and its port, which the system chooses where `port` is 0.
pub(crate) fn listen_at(interface: IpAddr, port: u16) -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((interface, port))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// The callers at one listener.
pub(crate) struct Callers<'a> {
    listener: &'a TcpListener,
    /// By age, the oldest first.
    waiting: VecDeque<Caller>,
    has_complained: bool,
    /// Those who were turned away.
    turned_away: usize,
}

struct Caller {
    stream: TcpStream,
    from: SocketAddr,
    word: Incoming,
    deadline: Instant,
}

/// Who called, and its connection, which waits from now on, with its word; or why it has been turned away.
pub(crate) type Called<T> = (SocketAddr, io::Result<(TcpStream, T)>);

impl<'a> Callers<'a> {
    /// Of a listener that does not wait.
    pub(crate) fn new(listener: &'a TcpListener) -> Self {
        Callers { listener, waiting: VecDeque::new(), has_complained: false, turned_away: 0 }
    }

    /// Those whose first word is whole by now, and those that are turned away. Where there are none it comes back after a
    /// moment.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> Vec<Called<T>> {
        self.let_in();
        let now = Instant::now();
        let mut called = Vec::new();
        for mut caller in std::mem::take(&mut self.waiting) {
            match caller.hear() {
                Ok(None) if now < caller.deadline => self.waiting.push_back(caller),
                Ok(None) => called.push((caller.from, Err(no_answer()))),
                Ok(Some(word)) => called.push((caller.from, Ok((caller.stream, word)))),
                Err(error) => called.push((caller.from, Err(error))),
            }
        }
        if called.is_empty() {
            std::thread::sleep(PAUSE);
        }
        called
    }

    /// Somebody who called is not let in. Only the first is told of at once: strangers may come by the thousand.
    pub(crate) fn turn_away(&mut self, from: SocketAddr, reason: impl Display) {
        self.turned_away += 1;
        if self.turned_away == 1 {
            tracing::warn!(%from, %reason, "somebody was turned away; more will only be counted");
        }
    }

    fn let_in(&mut self) {
        for _ in 0..AT_ONCE {
            match self.listener.accept().and_then(Caller::new) {
                Ok(caller) => self.waiting.push_back(caller),
                Err(error) => {
                    // Nobody is there, or has gone again; else descriptors are short, maybe for a moment.
                    let usual = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted];
                    if !usual.contains(&error.kind()) && !std::mem::replace(&mut self.has_complained, true) {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    break;
                }
            }
        }
        self.waiting.drain(..self.waiting.len().saturating_sub(MOST));
    }
}

impl Drop for Callers<'_> {
    fn drop(&mut self) {
        if self.turned_away > 1 {
            tracing::warn!(times = self.turned_away, "somebody was turned away");
        }
    }
}

impl Caller {
    fn new((stream, from): (TcpStream, SocketAddr)) -> io::Result<Caller> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Caller { stream, from, word: Incoming::default(), deadline: Instant::now() + FIRST_WORD })
    }

    fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let word = self.word.read_word(&self.stream, LONGEST_WORD)?;
        if word.is_some() {
            self.stream.set_nonblocking(false)?;
        }
        Ok(word)
    }
}

/// Whether the other side, which has nothing to say now, has not closed the connection.
pub(crate) fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let open = peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    open && stream.set_nonblocking(false).is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::{Event, Metadata, Subscriber, span};

    use super::*;
    use crate::frames::send_word;

    fn listener() -> (TcpListener, SocketAddr) {
        let (listener, port) = listen_at(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        (listener, (Ipv4Addr::LOCALHOST, port).into())
    }

    /// Hears until somebody is through, or turned away.
    fn first(callers: &mut Callers) -> io::Result<(TcpStream, usize)> {
        let begin = Instant::now();
        loop {
            if let Some((_, called)) = callers.hear().into_iter().next() {
                return called;
            }
            assert!(begin.elapsed() < 2 * FIRST_WORD);
        }
    }

    #[test]
    fn a_caller_who_says_nothing_or_little_by_little_holds_up_nobody_and_is_sent_away_in_time() {
        let (listener, address) = listener();
        let mut callers = Callers::new(&listener);
        let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(address).unwrap()).collect();
        let begin = Instant::now();
        let rank = TcpStream::connect(address).unwrap();
        send_word(&rank, &7, Instant::now() + FIRST_WORD).unwrap();
        assert_eq!(first(&mut callers).unwrap().1, 7);
        assert!(begin.elapsed() < FIRST_WORD / 5, "{:?}", begin.elapsed());
        // A byte now and then buys no more time than silence does.
        let mut bytes = b"wrnd\xff\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".iter();
        let mut sent_away = 0;
        while sent_away < silent.len() {
            if let Some(byte) = bytes.next() {
                let _ = (&silent[0]).write_all(&[*byte]);
            }
            for (_, called) in callers.hear::<usize>() {
                assert_eq!(called.unwrap_err().kind(), ErrorKind::TimedOut);
                sent_away += 1;
            }
            assert!(begin.elapsed() < 2 * FIRST_WORD);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[test]
    fn a_rank_gets_through_a_crowd() {
        let (listener, address) = listener();
        let mut callers = Callers::new(&listener);
        let mut crowd = Vec::new();
        for _ in 0..3 * MOST / AT_ONCE {
            crowd.extend((0..AT_ONCE).map(|_| TcpStream::connect(address).unwrap()));
            assert!(callers.hear::<usize>().is_empty());
            assert!(callers.waiting.len() <= MOST);
        }
        let rank = TcpStream::connect(address).unwrap();
        send_word(&rank, &7, Instant::now() + FIRST_WORD).unwrap();
        assert_eq!(first(&mut callers).unwrap().1, 7);
    }

    /// Counts what is told.
    struct Told(Arc<AtomicUsize>);

    impl Subscriber for Told {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn of_many_who_are_turned_away_the_first_and_the_number_are_told() {
        let (listener, address) = listener();
        for (times, lines) in [(0, 0), (1, 1), (1000, 2)] {
            let told = Arc::new(AtomicUsize::new(0));
            tracing::subscriber::with_default(Told(Arc::clone(&told)), || {
                let mut callers = Callers::new(&listener);
                (0..times).for_each(|_| callers.turn_away(address, "a stranger"));
            });
            assert_eq!(told.load(Ordering::Relaxed), lines, "{times} times");
        }
    }

    #[test]
    fn a_connection_is_open_until_the_other_side_closes_it() {
        let (listener, address) = listener();
        let mut callers = Callers::new(&listener);
        let rank = TcpStream::connect(address).unwrap();
        send_word(&rank, &7, Instant::now() + FIRST_WORD).unwrap();
        let (stream, _) = first(&mut callers).unwrap();
        assert!(is_open(&stream));
        drop(rank);
        let begin = Instant::now();
        while is_open(&stream) {
            assert!(begin.elapsed() < FIRST_WORD);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
