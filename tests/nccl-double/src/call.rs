//! One operation: which bytes it sends to whom, which it waits for, and what it makes of them.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;

use nccl_rs::sys::{ncclDataType_t, ncclRedOp_t};

use crate::numbers;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    AllReduce(ncclRedOp_t),
    Broadcast { root: usize },
    ReduceScatter(ncclRedOp_t),
    AllGather,
    Send { peer: usize },
    Receive { peer: usize },
}

/// A rank's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) rank: usize,
    pub(crate) size: usize,
}

impl Place {
    fn others(self) -> impl Iterator<Item = usize> {
        (0..self.size).filter(move |&peer| peer != self.rank)
    }
}

/// An operation with its memory, which belongs to the caller and is valid until the operation is complete.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) send: *const u8,
    pub(crate) receive: *mut u8,
    /// Elements of one block.
    pub(crate) count: usize,
    pub(crate) data_type: ncclDataType_t,
}

/// What two ranks must agree on for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    kind: u8,
    data_type: u8,
    /// Reduction or root.
    detail: u16,
    count: u64,
}

impl Header {
    pub(crate) const BYTES: usize = 12;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.kind;
        bytes[1] = self.data_type;
        bytes[2..4].copy_from_slice(&self.detail.to_le_bytes());
        bytes[4..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [kind, data_type, detail_low, detail_high, count @ ..] = bytes;
        let detail = u16::from_le_bytes([detail_low, detail_high]);
        Header { kind, data_type, detail, count: u64::from_le_bytes(count) }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = ["all-reduce", "broadcast", "reduce-scatter", "all-gather", "send and receive"]
            .get(usize::from(self.kind))
            .unwrap_or(&"something unknown");
        write!(f, "{kind} ({}) of {} elements of type {}", self.detail, self.count, self.data_type)
    }
}

impl Call {
    pub(crate) fn header(&self) -> Header {
        let (kind, detail) = match self.operation {
            Operation::AllReduce(operation) => (0, operation as u16),
            Operation::Broadcast { root } => (1, root as u16),
            Operation::ReduceScatter(operation) => (2, operation as u16),
            Operation::AllGather => (3, 0),
            Operation::Send { .. } | Operation::Receive { .. } => (4, 0),
        };
        Header { kind, data_type: self.data_type as u8, detail, count: self.count as u64 }
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.count * numbers::bytes(self.data_type).unwrap_or(1)
    }

    fn block(&self, index: usize) -> Range<usize> {
        index * self.block_bytes()..(index + 1) * self.block_bytes()
    }

    /// Receivers, and the bytes for each.
    pub(crate) fn outgoing(&self, place: Place) -> Vec<(usize, Vec<u8>)> {
        // SAFETY: the caller of NCCL's function promised as many elements.
        let read = |range: Range<usize>| unsafe { bytes_at(self.send, range) }.to_vec();
        match self.operation {
            Operation::AllReduce(_) | Operation::AllGather => {
                place.others().map(|peer| (peer, read(self.block(0)))).collect()
            }
            Operation::Broadcast { root } if root == place.rank => {
                place.others().map(|peer| (peer, read(self.block(0)))).collect()
            }
            Operation::ReduceScatter(_) => {
                place.others().map(|peer| (peer, read(self.block(peer)))).collect()
            }
            Operation::Send { peer } => vec![(peer, read(self.block(0)))],
            Operation::Broadcast { .. } | Operation::Receive { .. } => Vec::new(),
        }
    }

    /// Senders of a block each.
    pub(crate) fn senders(&self, place: Place) -> Vec<usize> {
        match self.operation {
            Operation::AllReduce(_) | Operation::AllGather | Operation::ReduceScatter(_) => {
                place.others().collect()
            }
            Operation::Broadcast { root } if root != place.rank => vec![root],
            Operation::Receive { peer } => vec![peer],
            Operation::Broadcast { .. } | Operation::Send { .. } => Vec::new(),
        }
    }

    /// Everything has arrived: writes the result. `received` are the blocks of [`Call::senders`].
    pub(crate) fn finish(&self, place: Place, received: &[Vec<u8>]) {
        // Copied, since the operation may be in place.
        // SAFETY: as in `outgoing`.
        let own = |index: usize| unsafe { bytes_at(self.send, self.block(index)) }.to_vec();
        // SAFETY: the caller promised as many elements to write to.
        let write = |index: usize, bytes: &[u8]| unsafe {
            std::ptr::copy(bytes.as_ptr(), self.receive.add(self.block(index).start), bytes.len());
        };
        let by_rank = |own: Vec<u8>| {
            let mut rows = received.to_vec();
            rows.insert(place.rank, own);
            rows
        };
        let reduced = |own: Vec<u8>, operation: ncclRedOp_t| {
            let rows = by_rank(own);
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            numbers::reduce(&rows, self.data_type, operation)
        };
        match self.operation {
            Operation::AllReduce(operation) => write(0, &reduced(own(0), operation)),
            Operation::ReduceScatter(operation) => write(0, &reduced(own(place.rank), operation)),
            Operation::AllGather => {
                for (rank, block) in by_rank(own(0)).iter().enumerate() {
                    write(rank, block);
                }
            }
            Operation::Broadcast { root } if root == place.rank => write(0, &own(0)),
            Operation::Broadcast { .. } | Operation::Receive { .. } => {
                received.iter().for_each(|block| write(0, block));
            }
            Operation::Send { .. } => {}
        }
    }
}

/// # Safety
/// The memory holds the range.
unsafe fn bytes_at<'a>(start: *const u8, range: Range<usize>) -> &'a [u8] {
    match range.is_empty() {
        true => &[],
        // SAFETY: the caller's promise; an empty range may have any pointer.
        false => unsafe { std::slice::from_raw_parts(start.add(range.start), range.len()) },
    }
}
