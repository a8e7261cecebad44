//! The loop of the control plane's thread: heartbeats out, messages in, and the decision that the job ends.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use mio::{Events, Poll, Token, Waker};

use super::link::Link;
use super::meeting::Connections;
use super::pace::{Pace, Paces};
use super::verdict::{self, Seen};
use super::wire::{Message, bounded};
use super::{EXIT_FAILURE, End, Ending};
use crate::flight::{FlightRecorder, Status};

/// No rank has that number.
pub(super) const WAKER: Token = Token(usize::MAX);
/// How long rank 0 waits for the others to go before it goes itself, and others for rank 0's word.
const PARTING: Duration = Duration::from_secs(2);
/// The time between heartbeats, in which a rank's step and phase grow old.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Many ranks speak less often, so that rank 0 hears some thousand heartbeats a second at most.
const HEARTBEAT_PER_RANK: Duration = Duration::from_millis(1);

/// What the process asks of its own control plane.
pub(super) enum Command {
    /// This rank failed: end the job.
    Fail { exit_code: i32, sentence: String },
    /// Tell rank 0 how fast this rank works.
    TellPace(Pace),
    /// The job is done.
    Leave,
}

/// What a rank knows of another one.
struct Peer {
    host: String,
    link: Option<Link>,
    status: Option<Status>,
    heard: Instant,
    /// It said farewell.
    left: bool,
}

/// One rank's end of the control plane.
pub(super) struct Plane {
    rank: usize,
    host: String,
    timeout: Duration,
    heartbeat: Duration,
    /// Rank 0 is connected with all others, they with rank 0.
    peers: BTreeMap<usize, Peer>,
    flight: FlightRecorder,
    paces: Paces,
    commands: Receiver<Command>,
    poll: Poll,
    /// Nobody is blamed before this moment.
    judge_from: Instant,
    /// The job is ending; what is still heard changes nothing.
    ending: bool,
    end: End,
    /// Disconnected when the loop ends.
    _running: Sender<()>,
}

/// Whether the loop goes on.
type Next = Result<(), Ended>;
struct Ended;

impl Plane {
    pub(super) fn new(
        rank: usize,
        connections: Connections,
        flight: FlightRecorder,
        paces: Paces,
        commands: Receiver<Command>,
        end: End,
        running: Sender<()>,
    ) -> io::Result<(Plane, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let world_size = connections.hosts.len() as u32;
        let mut peers = BTreeMap::new();
        for (peer, stream) in connections.streams {
            let link = Link::new(stream, poll.registry(), Token(peer))?;
            let host = connections.hosts[peer].clone();
            peers.insert(
                peer,
                Peer { host, link: Some(link), status: None, heard: Instant::now(), left: false },
            );
        }
        let plane = Plane {
            rank,
            host: connections.hosts[rank].clone(),
            timeout: connections.timeout,
            heartbeat: HEARTBEAT.max(HEARTBEAT_PER_RANK * world_size).min(connections.timeout / 10),
            peers,
            flight,
            paces,
            commands,
            poll,
            judge_from: Instant::now(),
            ending: false,
            end,
            _running: running,
        };
        Ok((plane, waker))
    }

    /// Runs until the job ends.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut next_beat = Instant::now();
        loop {
            let now = Instant::now();
            if now > next_beat + 3 * self.heartbeat {
                // This process itself was stopped for a while, and maybe the others with it.
                self.judge_from = now + self.timeout;
            }
            if now >= next_beat {
                next_beat = now + self.heartbeat;
                if self.beat().is_err() {
                    return;
                }
            }
            if let Err(error) = self.poll.poll(&mut events, Some(next_beat.saturating_duration_since(now)))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::warn!(%error, "the control plane cannot wait for messages");
                std::thread::sleep(self.heartbeat);
            }
            if self.receive(&events).and_then(|()| self.obey()).is_err() {
                return;
            }
        }
    }

    fn is_leader(&self) -> bool {
        self.rank == 0
    }

    fn me(&self) -> Seen {
        Seen {
            rank: self.rank,
            host: self.host.clone(),
            status: Some(self.flight.status()),
            age: Duration::ZERO,
        }
    }

    /// Tells the others what this rank is doing, and judges what they said.
    fn beat(&mut self) -> Next {
        let beat = Message::Beat(self.flight.status());
        for link in self.peers.values_mut().filter_map(|peer| peer.link.as_mut()) {
            link.send(&beat);
        }
        // After a farewell nothing is expected of a rank any more.
        if self.peers.values().any(|peer| peer.left) {
            return Ok(());
        }
        if Instant::now() < self.judge_from {
            return Ok(());
        }
        let others = self.peers.iter().map(|(&rank, peer)| peer.seen(rank));
        if self.is_leader() {
            let silence = (self.timeout / 2).max(3 * self.heartbeat);
            let ranks: Vec<Seen> = std::iter::once(self.me()).chain(others).collect();
            return match verdict::stuck(&ranks, self.timeout, silence) {
                Some(sentence) => self.end_job(EXIT_FAILURE, sentence),
                None => Ok(()),
            };
        }
        // Rank 0 sees more, so it speaks first if it can.
        let patience = self.timeout + 3 * self.heartbeat + PARTING;
        match others.into_iter().find(|leader| leader.age > patience) {
            Some(leader) => self.end_without_leader(verdict::silent(&leader, self.timeout)),
            None => Ok(()),
        }
    }

    fn receive(&mut self, events: &Events) -> Next {
        let mut deaths = Vec::new();
        for rank in events.iter().map(|event| event.token().0).filter(|&rank| Token(rank) != WAKER) {
            let Some(peer) = self.peers.get_mut(&rank) else { continue };
            let Some(link) = peer.link.as_mut() else { continue };
            let (messages, ended) = link.receive();
            for message in messages {
                self.hear(rank, message)?;
            }
            let Some(why) = ended else { continue };
            let registry = self.poll.registry();
            if let Some(peer) = self.peers.get_mut(&rank) {
                if let Some(link) = peer.link.take() {
                    link.close(registry);
                }
                if !peer.left {
                    deaths.push((rank, why));
                }
            }
        }
        let Some((rank, why)) = deaths.first() else { return Ok(()) };
        let Some(dead) = self.peers.get(rank).map(|peer| peer.seen(*rank)) else { return Ok(()) };
        let sentence = verdict::died(&dead, why, &self.me());
        match self.is_leader() {
            true => self.end_job(EXIT_FAILURE, sentence),
            false => self.end_without_leader(sentence),
        }
    }

    fn hear(&mut self, rank: usize, message: Message) -> Next {
        let Some(peer) = self.peers.get_mut(&rank) else { return Ok(()) };
        peer.heard = Instant::now();
        match message {
            Message::Beat(status) => peer.status = Some(status),
            Message::Pace(pace) => self.paces.note(rank, &peer.host, pace),
            Message::Farewell => peer.left = true,
            _ if self.ending && self.rank == 0 => {}
            Message::LastWords { exit_code, sentence } if self.rank == 0 => {
                let host = peer.host.clone();
                return self.end_job_for(rank, &host, exit_code, sentence);
            }
            Message::End { exit_code, sentence } => {
                return self.finish(Ending { exit_code, sentence, printed: None });
            }
            other => tracing::debug!(rank, ?other, "the control plane ignores a message"),
        }
        Ok(())
    }

    fn obey(&mut self) -> Next {
        // One wake may stand for several commands.
        while let Ok(command) = self.commands.try_recv() {
            self.obey_one(command)?;
        }
        Ok(())
    }

    fn obey_one(&mut self, command: Command) -> Next {
        match command {
            Command::TellPace(pace) => {
                if let Some(link) = self.peers.get_mut(&0).and_then(|leader| leader.link.as_mut()) {
                    link.send(&Message::Pace(pace));
                }
                Ok(())
            }
            Command::Leave => self.leave(),
            Command::Fail { exit_code, sentence } if self.is_leader() => {
                let host = self.host.clone();
                self.end_job_for(0, &host, exit_code, sentence)
            }
            Command::Fail { exit_code, sentence } => {
                let sentence = bounded(sentence);
                if let Some(link) = self.peers.get_mut(&0).and_then(|leader| leader.link.as_mut()) {
                    link.send(&Message::LastWords { exit_code, sentence: sentence.clone() });
                }
                // Rank 0 prints it and ends all, this rank too.
                self.listen_until(Instant::now() + PARTING, |plane| {
                    plane.peers.values().all(|peer| peer.link.is_none())
                })?;
                let printed = format!("error (rank {} on {}): {sentence}", self.rank, self.host);
                self.finish(Ending { exit_code, sentence, printed: Some(printed) })
            }
        }
    }

    /// Hears what comes until `enough` or the deadline; deaths do not count any more.
    fn listen_until(&mut self, deadline: Instant, enough: impl Fn(&Plane) -> bool) -> Next {
        let mut events = Events::with_capacity(64);
        while !enough(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = self.poll.poll(&mut events, Some(left));
            for peer in self.peers.values_mut() {
                peer.left = true;
            }
            self.receive(&events)?;
        }
        Ok(())
    }

    /// Rank 0: the job ends because of one rank's failure.
    fn end_job_for(&mut self, rank: usize, host: &str, exit_code: i32, sentence: String) -> Next {
        let printed = format!("error (rank {rank} on {host}): {sentence}");
        self.end_job_saying(exit_code, sentence, printed)
    }

    /// Rank 0: the job ends because of what it found out.
    fn end_job(&mut self, exit_code: i32, sentence: String) -> Next {
        let printed = format!("error: {sentence}");
        self.end_job_saying(exit_code, sentence, printed)
    }

    fn end_job_saying(&mut self, exit_code: i32, sentence: String, printed: String) -> Next {
        self.ending = true;
        // First of all, since the launcher may already be killing.
        super::print(&printed);
        let end = Message::End { exit_code, sentence: bounded(sentence.clone()) };
        for link in self.peers.values_mut().filter_map(|peer| peer.link.as_mut()) {
            link.send(&end);
            link.close_writing();
        }
        self.flight_record(&sentence);
        // Those that still can write down what they know; a launcher kills them when the first rank is gone.
        self.listen_until(Instant::now() + PARTING, |plane| {
            plane.peers.values().all(|peer| peer.link.is_none())
        })?;
        self.finish(Ending { exit_code, sentence, printed: None })
    }

    /// Another rank: rank 0 is gone, so each has to go by itself. The launcher ends all when the first one
    /// goes, so rank 1 speaks, and others only if that does not help.
    fn end_without_leader(&mut self, sentence: String) -> Next {
        // A rank 0 that was only stopped finds this when it wakes, and has nothing to add.
        if let Some(link) = self.peers.get_mut(&0).and_then(|leader| leader.link.as_mut()) {
            link.send(&Message::End { exit_code: EXIT_FAILURE, sentence: bounded(sentence.clone()) });
        }
        if self.rank > 1 {
            self.flight_record(&sentence);
            std::thread::sleep(PARTING);
        }
        let printed = Some(format!("error: {sentence}"));
        self.finish(Ending { exit_code: EXIT_FAILURE, sentence, printed })
    }

    /// Ends this process.
    fn finish(&mut self, ending: Ending) -> Next {
        if let Some(printed) = &ending.printed {
            super::print(printed);
        }
        self.flight_record(&ending.sentence);
        (self.end)(ending);
        Err(Ended)
    }

    fn flight_record(&self, reason: &str) {
        if let Err(error) = self.flight.write(reason) {
            tracing::warn!(%error, "cannot write the flight record");
        }
    }

    /// All ranks came to the end of the job; rank 0 goes last.
    fn leave(&mut self) -> Next {
        for link in self.peers.values_mut().filter_map(|peer| peer.link.as_mut()) {
            link.send(&Message::Farewell);
            link.close_writing();
        }
        if self.is_leader() {
            self.listen_until(Instant::now() + PARTING, |plane| {
                plane.peers.values().all(|peer| peer.link.is_none())
            })?;
        }
        Err(Ended)
    }
}

impl Peer {
    fn seen(&self, rank: usize) -> Seen {
        Seen { rank, host: self.host.clone(), status: self.status.clone(), age: self.heard.elapsed() }
    }
}
