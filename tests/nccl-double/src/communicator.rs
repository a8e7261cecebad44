//! The state of one rank's communicator. It moves on whenever somebody asks how far it is.

use std::collections::VecDeque;
use std::io;

use nccl_rs::sys::{
    ncclInProgress, ncclInvalidUsage, ncclRemoteError, ncclResult_t, ncclSuccess, ncclSystemError,
};

use crate::call::{Call, Header, Place};
use crate::fault::{Fault, Kind};
use crate::last_error::fail;
use crate::link::{Link, Meeting};

/// One rank's communicator.
#[derive(Debug)]
pub(crate) struct Communicator {
    pub(crate) place: Place,
    pub(crate) blocking: bool,
    meeting: Option<Meeting>,
    links: Vec<Link>,
    /// Messages of this rank to itself.
    to_itself: VecDeque<(Header, Vec<u8>)>,
    group: Option<Group>,
    /// Groups begun.
    groups: u64,
    /// Buffers that were to be registered.
    registrations: u64,
    fault: Option<Fault>,
    /// The first error stays.
    failed: Option<ncclResult_t>,
}

/// Operations that run at the same time.
#[derive(Debug)]
struct Group {
    calls: Vec<Call>,
    /// Messages that are waited for; those of one sender come in this order.
    expected: Vec<Expected>,
}

#[derive(Debug)]
struct Expected {
    call: usize,
    sender: usize,
    header: Header,
    bytes: usize,
    received: Vec<u8>,
    complete: bool,
}

impl Communicator {
    pub(crate) fn new(
        name: String,
        place: Place,
        blocking: bool,
        fault: Option<Fault>,
    ) -> io::Result<Communicator> {
        let absent = fault.is_some_and(|fault| fault.strikes(0) && fault.kind == Kind::Absent);
        Ok(Communicator {
            place,
            blocking,
            // Who does not listen is not met.
            meeting: if absent { None } else { Some(Meeting::new(name, place)?) },
            links: (0..place.size).map(|_| Link::default()).collect(),
            to_itself: VecDeque::new(),
            group: None,
            groups: 0,
            registrations: 0,
            fault,
            failed: None,
        })
    }

    /// Begins a group; the one before must be complete.
    pub(crate) fn begin(&mut self, calls: Vec<Call>) {
        self.groups += 1;
        let mut expected = Vec::new();
        if self.struck_by(Kind::Absent) {
            self.group = Some(Group { calls, expected });
            return;
        }
        if self.struck_by(Kind::AsyncError) {
            let sentence = "the double was asked for an asynchronous error";
            self.failed = Some(fail(ncclRemoteError, sentence.into()));
        }
        for (index, call) in calls.iter().enumerate() {
            let header = call.header();
            for (peer, bytes) in call.outgoing(self.place) {
                match peer == self.place.rank {
                    true => self.to_itself.push_back((header, bytes)),
                    false => self.links[peer].queue(header, &bytes),
                }
            }
            for sender in call.senders(self.place) {
                let bytes = call.block_bytes();
                expected.push(Expected {
                    call: index,
                    sender,
                    header,
                    bytes,
                    received: Vec::new(),
                    complete: false,
                });
            }
        }
        self.group = Some(Group { calls, expected });
    }

    /// Counts a registration; whether it is to fail.
    pub(crate) fn registers_no_more(&mut self) -> bool {
        self.registrations += 1;
        let fault = self.fault.filter(|fault| fault.kind == Kind::Unregistered);
        fault.is_some_and(|fault| fault.strikes(self.registrations))
    }

    fn struck_by(&self, kind: Kind) -> bool {
        self.fault.is_some_and(|fault| fault.kind == kind && fault.strikes(self.groups))
    }

    /// Moves on as far as it goes without waiting, and says how far it is.
    pub(crate) fn progress(&mut self) -> ncclResult_t {
        if let Some(failed) = self.failed {
            return failed;
        }
        if self.struck_by(Kind::Absent) {
            return ncclInProgress;
        }
        if let Some(meeting) = &mut self.meeting {
            match meeting.progress(&mut self.links) {
                Ok(true) => self.meeting = None,
                Ok(false) => return ncclInProgress,
                Err(error) => {
                    let code = fail(ncclSystemError, format!("the ranks do not meet: {error}"));
                    self.failed = Some(code);
                    return code;
                }
            }
        }
        let Some(mut group) = self.group.take() else { return ncclSuccess };
        match self.move_data(&mut group) {
            Ok(true) => {
                for (index, call) in group.calls.iter().enumerate() {
                    let of_call = group.expected.iter_mut().filter(|expected| expected.call == index);
                    let received: Vec<_> =
                        of_call.map(|expected| std::mem::take(&mut expected.received)).collect();
                    call.finish(self.place, &received);
                }
                ncclSuccess
            }
            Ok(false) => {
                self.group = Some(group);
                ncclInProgress
            }
            Err(sentence) => {
                let code = fail(ncclInvalidUsage, sentence);
                self.failed = Some(code);
                code
            }
        }
    }

    /// Whether all messages of the group are through.
    fn move_data(&mut self, group: &mut Group) -> Result<bool, String> {
        let mut all = true;
        for link in &mut self.links {
            all &= link.flush();
        }
        let mut stuck = vec![false; self.place.size];
        for expected in group.expected.iter_mut().filter(|expected| !expected.complete) {
            // A sender's messages come one after the other.
            if stuck[expected.sender] {
                all = false;
                continue;
            }
            expected.complete = match expected.sender == self.place.rank {
                true => receive_from_itself(&mut self.to_itself, expected)?,
                false => receive(&mut self.links[expected.sender], expected)?,
            };
            stuck[expected.sender] = !expected.complete;
            all &= expected.complete;
        }
        Ok(all)
    }
}

fn receive_from_itself(
    queue: &mut VecDeque<(Header, Vec<u8>)>,
    expected: &mut Expected,
) -> Result<bool, String> {
    let Some((header, bytes)) = queue.pop_front() else { return Ok(false) };
    compare(expected, header)?;
    expected.received = bytes;
    Ok(true)
}

fn receive(link: &mut Link, expected: &mut Expected) -> Result<bool, String> {
    let Some(header) = link.next_header() else { return Ok(false) };
    compare(expected, header)?;
    let missing = expected.bytes - expected.received.len();
    link.read_to(&mut expected.received, missing);
    let complete = expected.received.len() == expected.bytes;
    if complete {
        link.next_message();
    }
    Ok(complete)
}

fn compare(expected: &Expected, header: Header) -> Result<(), String> {
    let Expected { sender, header: own, .. } = expected;
    match *own == header {
        true => Ok(()),
        false => Err(format!("rank {sender} runs {header} where this rank runs {own}")),
    }
}
