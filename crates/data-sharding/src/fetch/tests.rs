//! Downloads from a small server on the loopback interface that can do what bad connections and servers do.

#![allow(clippy::unwrap_used)] // All of it is test code.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use md5::{Digest, Md5};
use tempfile::tempdir;

use super::{Address, fetch_files, partial};
use crate::progress::Progress;
use crate::published::{Checksum, Published};

/// What the server does with each connection, in turn; the last one is repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    /// Ends the connection after so many bytes of the body.
    BreakAfter(usize),
    Whole,
    /// Sends the whole file although a part was asked for.
    IgnoreRange,
    Answer(&'static str),
}

struct Server {
    url: String,
    /// First byte that each request asked for.
    ranges: Arc<Mutex<Vec<usize>>>,
}

fn serve(content: Vec<u8>, behaviours: Vec<Behaviour>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/data/", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ranges);
    std::thread::spawn(move || {
        let mut behaviours = behaviours.into_iter();
        let mut behaviour = behaviours.next().unwrap();
        for stream in listener.incoming() {
            answer(stream.unwrap(), &content, behaviour, &seen);
            behaviour = behaviours.next().unwrap_or(behaviour);
        }
    });
    Server { url, ranges }
}

fn answer(mut stream: TcpStream, content: &[u8], behaviour: Behaviour, seen: &Mutex<Vec<usize>>) {
    let mut begin = 0;
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let line = line.unwrap().to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            begin = range.trim_end_matches('-').parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    seen.lock().unwrap().push(begin);
    let mut head = String::new();
    let mut body = content;
    match behaviour {
        Behaviour::Answer(status) => {
            write!(head, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            body = &[];
        }
        _ if begin > 0 && behaviour != Behaviour::IgnoreRange => {
            body = &content[begin..];
            let range = format!("bytes {begin}-{}/{}", content.len() - 1, content.len());
            write!(head, "HTTP/1.1 206 Partial Content\r\nContent-Range: {range}\r\n").unwrap();
            write!(head, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()).unwrap();
        }
        _ => write!(head, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
            .unwrap(),
    }
    if let Behaviour::BreakAfter(bytes) = behaviour {
        body = &body[..bytes.min(body.len())];
    }
    // The client hangs up on what it does not want.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn published(content: &[u8], bytes: Option<u64>) -> [Published; 1] {
    let digest = Md5::digest(content).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    [Published { file: "set.bin", bytes, checksum: Checksum::Md5(digest.leak()), from: None }]
}

fn fetch_from(server: &Server, files: &[Published], folder: &Path) -> Result<(), String> {
    fetch_files(files, folder, Some(&server.url.parse().unwrap()), &Progress::silent())
        .map_err(|error| error.to_string())
}

#[test]
fn broken_connections_are_gone_on_from_where_they_broke() {
    use Behaviour::{BreakAfter, Whole};
    let dir = tempdir().unwrap();
    let server = serve(content(), vec![BreakAfter(100_000), BreakAfter(70_000), Whole]);
    let files = published(&content(), Some(300_000));
    fetch_from(&server, &files, dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("set.bin")).unwrap(), content());
    assert_eq!(*server.ranges.lock().unwrap(), [0, 100_000, 170_000]);
    // What is there is not fetched again.
    fetch_from(&server, &files, dir.path()).unwrap();
    assert_eq!(server.ranges.lock().unwrap().len(), 3);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_later_command_goes_on_with_what_an_earlier_one_received() {
    let dir = tempdir().unwrap();
    let files = published(&content(), Some(300_000));
    fs::write(partial(&dir.path().join("set.bin")), &content()[..123_456]).unwrap();
    let server = serve(content(), vec![Behaviour::Whole]);
    fetch_from(&server, &files, dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("set.bin")).unwrap(), content());
    assert_eq!(*server.ranges.lock().unwrap(), [123_456]);
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let dir = tempdir().unwrap();
    let files = published(&content(), None);
    let server = serve(content(), vec![Behaviour::BreakAfter(200_000), Behaviour::IgnoreRange]);
    fetch_from(&server, &files, dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("set.bin")).unwrap(), content());
}

#[test]
fn a_busy_server_is_asked_again_and_a_dead_one_is_given_up() {
    let dir = tempdir().unwrap();
    let files = published(&content(), Some(300_000));
    let busy = serve(content(), vec![Behaviour::Answer("503 Service Unavailable"), Behaviour::Whole]);
    fetch_from(&busy, &files, dir.path()).unwrap();

    let dir = tempdir().unwrap();
    let dead = serve(content(), vec![Behaviour::BreakAfter(1000), Behaviour::BreakAfter(0)]);
    let error = fetch_from(&dead, &files, dir.path()).unwrap_err();
    assert!(error.contains("1000 bytes are kept, and the same command goes on"), "{error}");
    assert_eq!(fs::read(partial(&dir.path().join("set.bin"))).unwrap(), content()[..1000]);
}

#[test]
fn wrong_files_are_refused_and_never_get_the_name() {
    let mut other = content();
    other[77] ^= 1;
    let cases = [
        (content()[1..].to_vec(), Some(300_000), "the server has a file of 299999 bytes; expected 300000"),
        (other, Some(300_000), "is not what was published"),
        (content()[1..].to_vec(), None, "is not what was published"),
    ];
    for (sent, bytes, message) in cases {
        let dir = tempdir().unwrap();
        let server = serve(sent, vec![Behaviour::Whole]);
        let error = fetch_from(&server, &published(&content(), bytes), dir.path()).unwrap_err();
        assert!(error.starts_with(&format!("{}set.bin: ", server.url)) && error.contains(message), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let dir = tempdir().unwrap();
    let server = serve(content(), vec![Behaviour::Answer("404 Not Found")]);
    let error = fetch_from(&server, &published(&content(), None), dir.path()).unwrap_err();
    assert!(error.contains("404 Not Found"), "{error}");
}

#[test]
fn a_wrong_file_that_is_there_is_named_and_kept() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("set.bin"), b"mine").unwrap();
    let server = serve(content(), vec![Behaviour::Whole]);
    let error = fetch_from(&server, &published(&content(), Some(300_000)), dir.path()).unwrap_err();
    assert!(error.contains("set.bin: has 4 bytes; expected 300000"), "{error}");
    assert_eq!(fs::read(dir.path().join("set.bin")).unwrap(), b"mine");
    assert!(server.ranges.lock().unwrap().is_empty());
}

#[test]
fn what_is_no_address_is_refused_with_an_example() {
    for text in ["nonsense", "", "http://", "ftp://host/x", "/some/folder", "http://a b/", "https:///"] {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert_eq!(error, format!("{text}: is no address; expected one such as https://example.org/folder"));
    }
    for text in ["http://127.0.0.1:80/data/", "https://example.org"] {
        assert_eq!(text.parse::<Address>().unwrap(), Address(text.into()));
    }
}
