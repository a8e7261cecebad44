//! The messages of the control plane: one line of JSON each, of bounded length.

use std::io;

use serde::{Deserialize, Serialize};

use super::pace::Pace;
use crate::flight::Status;

/// Ranks of another protocol are refused.
pub(super) const PROTOCOL: u32 = 3;
/// Longer lines come from a stranger.
const LONGEST_LINE: usize = 16 * 1024;
/// Longer sentences are cut.
const LONGEST_SENTENCE: usize = 2 * 1024;

/// What is sent between a rank and rank 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Heartbeat.
    Beat(Status),
    /// To rank 0: how fast a rank works.
    Pace(Pace),
    /// To rank 0: this rank failed; end the job.
    LastWords { exit_code: i32, sentence: String },
    /// From rank 0: the job ends, write down what you know and go.
    End { exit_code: i32, sentence: String },
    /// The connection ends because the job is done.
    Farewell,
}

impl Message {
    /// The message as it travels.
    pub(super) fn to_line(&self) -> Vec<u8> {
        // A structure of numbers and texts can always be written.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// A sentence short enough to travel.
pub(super) fn bounded(mut sentence: String) -> String {
    if sentence.len() > LONGEST_SENTENCE {
        let cut = (0..=LONGEST_SENTENCE).rev().find(|&at| sentence.is_char_boundary(at)).unwrap_or(0);
        sentence.truncate(cut);
        sentence.push('…');
    }
    sentence
}

/// Bytes that have arrived and do not make a whole line yet.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// Takes `bytes` and gives the messages that are complete.
    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<Vec<Message>> {
        self.0.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut begin = 0;
        while let Some(len) = self.0[begin..].iter().position(|&byte| byte == b'\n') {
            messages.push(parse(&self.0[begin..begin + len])?);
            begin += len + 1;
        }
        self.0.drain(..begin);
        if self.0.len() > LONGEST_LINE {
            return Err(invalid("a message without an end"));
        }
        Ok(messages)
    }
}

fn parse(line: &[u8]) -> io::Result<Message> {
    if line.len() > LONGEST_LINE {
        return Err(invalid("a message that is too long"));
    }
    serde_json::from_slice(line).map_err(|_| invalid("a message that is none of ours"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(sentence: &str) -> Message {
        Message::End { exit_code: 1, sentence: sentence.into() }
    }

    #[test]
    fn messages_survive_however_they_are_cut() {
        let sent = [
            Message::LastWords { exit_code: 2, sentence: "so".into() },
            end("größer\nals"),
            Message::Farewell,
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(Message::to_line).collect();
        for cut in 1..bytes.len() {
            let mut lines = Lines::default();
            let received: Vec<_> = bytes.chunks(cut).flat_map(|part| lines.add(part).unwrap()).collect();
            assert_eq!(received, sent, "parts of {cut} bytes");
        }
    }

    #[test]
    fn what_a_stranger_sends_is_an_error_of_bounded_size() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\n", b"{\"end\": 3}\n", &[0xff; LONGEST_LINE + 1]] {
            assert_eq!(Lines::default().add(bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn the_longest_sentence_still_fits() {
        let sentence = bounded("\u{1}\u{1}ü".repeat(LONGEST_SENTENCE));
        assert!(sentence.len() < LONGEST_SENTENCE + 4);
        let line = end(&sentence).to_line();
        assert!(Lines::default().add(&line).is_ok(), "{} bytes", line.len());
    }
}
