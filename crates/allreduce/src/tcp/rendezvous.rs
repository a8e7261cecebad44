//! How ranks that no MPI library knows find each other. Rank 0 listens at an address that all of them know; the others
//! connect to it, in whatever order and however late they start. When all are there nobody listens any more, and bytes
//! can be gathered over these connections. Gradients never travel here.
//!
//! Only ranks of the same job are let in: those that name the same job, number of ranks and token. That keeps apart jobs
//! that share hosts; nothing is encrypted.

mod invite;
mod join;

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::invite::invite;
use self::join::join;
use crate::communicator::hostname;
use crate::frames::{LONGEST_FRAME, receive, send};
use crate::{CommError, LaunchedRank, Topology, Way};

/// Ranks of another protocol are refused.
const PROTOCOL: u32 = 2;
/// Within this time a rank must take a word of rank 0.
const HELLO: Duration = Duration::from_secs(2);
/// Within this time rank 0 must answer.
const ANSWER: Duration = Duration::from_secs(10);
/// When all have met, what is gathered comes within this time, or within that which ranks wait for each other.
const LONGEST_GATHER: Duration = Duration::from_secs(120);
/// Within this time all ranks have what was gathered.
const REPLIES: Duration = Duration::from_secs(20);

/// What a rank says of itself.
#[derive(Clone, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    job: String,
    token: String,
    rank: usize,
    world_size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    host: String,
    /// Differs between machines of the same host name.
    machine: String,
    node: String,
}

/// Where a rank stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) machine: String,
    pub(super) local_rank: usize,
    pub(super) local_size: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Hello(Hello),
    /// Rank 0 knows the rank and waits for others.
    Known,
    /// Rank 0 does not take it; the ranks of another job may wait for their own rank 0.
    Refused {
        reason: String,
        other_job: bool,
    },
    /// Everybody is there.
    All {
        places: Vec<Place>,
    },
    /// The ranks do not come together.
    Failed {
        sentence: String,
    },
}

/// All ranks of a job, each connected with rank 0.
#[derive(Debug)]
pub(crate) struct Rendezvous {
    rank: usize,
    met: Met,
    /// For what is gathered.
    patience: Duration,
}

/// Whom a rank has met.
#[derive(Debug)]
struct Met {
    /// Of every rank, by rank.
    places: Vec<Place>,
    /// Where they met, for people.
    at: String,
    /// Rank 0: the others by rank, from 1. Others: rank 0.
    streams: Vec<TcpStream>,
}

impl Rendezvous {
    /// Collective: meets all other ranks, waiting for them for at most `patience`.
    ///
    /// # Errors
    /// [`CommError::NoMeeting`] with the ranks that are missing, or why rank 0 cannot be reached or does not take this
    /// rank.
    pub(crate) fn meet(launched: &LaunchedRank, patience: Duration) -> Result<Rendezvous, CommError> {
        let Way::Tcp(point) = &launched.way else {
            return Err(own(format!("{} started the ranks, which meet through MPI", launched.launcher)));
        };
        let hello = Hello {
            protocol: PROTOCOL,
            job: point.job.clone(),
            token: point.token.clone(),
            rank: launched.rank,
            world_size: launched.world_size,
            local_rank: launched.local_rank,
            local_size: point.local_size,
            host: hostname(),
            machine: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            node: point.node.clone(),
        };
        let deadline = Instant::now() + patience;
        let met = match launched.rank {
            0 => invite(point, hello, patience, deadline),
            _ => join(point, &hello, patience, deadline),
        }?;
        Ok(Rendezvous { rank: launched.rank, met, patience: patience.min(LONGEST_GATHER) })
    }

    /// Where this rank stands.
    #[must_use]
    pub(crate) fn topology(&self) -> Topology {
        let Place { host, local_rank, local_size, .. } = self.met.places[self.rank].clone();
        Topology { rank: self.rank, world_size: self.met.places.len(), local_rank, local_size, host }
    }

    /// Of every rank, by rank.
    pub(super) fn places(&self) -> &[Place] {
        &self.met.places
    }

    /// How long ranks that have met wait for each other.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Where the ranks met, for people.
    pub(super) fn at(&self) -> &str {
        &self.met.at
    }

    /// Collective: the bytes of every rank, by rank. Lengths may differ.
    ///
    /// # Errors
    /// [`CommError::NoMeeting`] when a rank has gone.
    pub(crate) fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.all_gather_after(Duration::ZERO, bytes)
    }

    /// Collective: the value if every rank succeeded, else the sentence of the lowest rank that failed.
    pub(super) fn agree<T>(&mut self, local: Result<T, String>) -> Result<T, CommError> {
        self.agree_after(Duration::ZERO, local)
    }

    /// As [`Rendezvous::agree`], on something that may take one rank up to `longest` and another no time.
    pub(super) fn agree_after<T>(
        &mut self,
        longest: Duration,
        local: Result<T, String>,
    ) -> Result<T, CommError> {
        let word = local.as_ref().err().map_or("", String::as_str).as_bytes();
        let words = self.all_gather_after(longest, word)?;
        let failed = words.iter().position(|word| !word.is_empty());
        match (failed, local) {
            (None, Ok(value)) => Ok(value),
            (Some(rank), _) => {
                let sentence = String::from_utf8_lossy(&words[rank]).into_owned();
                Err(CommError::NoMeeting { sentence, mine: rank == self.rank })
            }
            (None, Err(sentence)) => Err(own(sentence)),
        }
    }

    /// As [`Rendezvous::all_gather`], after something that may take one rank up to `longest` and another no time.
    fn all_gather_after(&mut self, longest: Duration, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let wait = self.patience + longest;
        if self.rank == 0 {
            self.gather_and_tell(bytes, Instant::now() + wait)
        } else {
            // Rank 0 may come as late as any other, and then wait for one that comes later still: which one that is,
            // is for it to say.
            self.tell_and_hear(bytes, Instant::now() + 2 * wait + REPLIES + HELLO)
        }
    }

    /// Rank 0's part.
    fn gather_and_tell(&mut self, bytes: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, CommError> {
        let mut all = vec![bytes.to_vec()];
        for (rank, stream) in (1..).zip(&self.met.streams) {
            match receive(stream, LONGEST_FRAME, deadline) {
                Ok(bytes) => all.push(bytes),
                Err(error) => return Err(self.give_up(rank, &error, None)),
            }
        }
        let mut reply = vec![GATHERED];
        for bytes in &all {
            reply.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            reply.extend_from_slice(bytes);
        }
        // Also where the last word came late there is time for all answers.
        let deadline = Instant::now() + REPLIES;
        for (rank, stream) in (1..).zip(&self.met.streams) {
            // In the middle of an answer nothing else would be understood.
            send(stream, &reply, deadline).map_err(|error| self.give_up(rank, &error, Some(rank)))?;
        }
        Ok(all)
    }

    /// Rank 0: rank `gone` has left. Tells all but one, so that it is said once; those that have been answered find it
    /// where they expect the next answer.
    fn give_up(&self, gone: usize, error: &io::Error, but: Option<usize>) -> CommError {
        let sentence = self.left(gone, error);
        let reply = [&[FAILED], sentence.as_bytes()].concat();
        for (rank, stream) in (1..).zip(&self.met.streams) {
            if but != Some(rank) {
                let _ = send(stream, &reply, Instant::now() + HELLO);
            }
        }
        own(sentence)
    }

    fn left(&self, rank: usize, error: &io::Error) -> String {
        format!("rank {rank} on {} left while the ranks met: {error}", self.met.places[rank].host)
    }

    /// Another rank's part.
    fn tell_and_hear(&mut self, bytes: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, CommError> {
        let [leader] = &self.met.streams[..] else { return Err(CommError::Ended) };
        // A rank 0 that takes no word any more may have said why.
        let sent = send(leader, bytes, deadline);
        let reply = receive(leader, LONGEST_FRAME, deadline);
        let reply = reply.map_err(|error| own(self.left(0, &sent.err().unwrap_or(error))))?;
        match reply.split_first() {
            Some((&GATHERED, rest)) => {
                let all = parts(rest).filter(|all| all.len() == self.met.places.len());
                all.ok_or_else(|| own("rank 0 does not speak as this rank does".into()))
            }
            _ => Err(CommError::NoMeeting {
                sentence: String::from_utf8_lossy(reply.get(1..).unwrap_or_default()).into_owned(),
                mine: false,
            }),
        }
    }
}

/// First byte of rank 0's answer to what it gathered.
const FAILED: u8 = 0;
const GATHERED: u8 = 1;

fn parts(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk()?;
        let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        parts.push(part.to_vec());
        bytes = rest;
    }
    Some(parts)
}

fn own(sentence: String) -> CommError {
    CommError::NoMeeting { sentence, mine: true }
}

#[cfg(test)]
mod tests;
