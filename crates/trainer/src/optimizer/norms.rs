//! Norms of whole tensors of which a rank may have a part: the same bits on every rank and for every number of ranks.
//! What the norms are for is the update rule's business.

use std::ops::Range;

use allreduce::CommThread;
use tch::{Device, Kind, Tensor};
use torch_ext::copy::to_device;

use super::memory::narrow;
use super::square_sum::{Branch, LEAF, SquareSum};
use crate::error::Error;

/// Elements that are read at once: they stay in the second-level cache.
const READ: usize = 1 << 15;
const _: () = assert!(READ.is_multiple_of(LEAF));

/// A part of one tensor of the network.
pub(super) struct Piece {
    /// Index of the tensor's segment in the flat layout.
    pub(super) segment: usize,
    /// Where the segment begins in the flat parameters.
    pub(super) segment_begin: usize,
    /// Elements of the flat parameters.
    pub(super) range: Range<usize>,
}

/// Adds up squares over this rank's pieces, and over those of the others.
pub(super) struct Norms {
    pub(super) pieces: Vec<Piece>,
    pub(super) segments: usize,
    /// Where the pieces of all ranks together make up the tensors.
    pub(super) comm: Option<CommThread>,
}

impl Norms {
    /// Whether the host has no part in a norm: it would have to wait for the device.
    pub(super) fn stay_on_device(&self) -> bool {
        self.comm.is_none()
    }

    /// For each of `flats`, laid out as the flat parameters, the sum of squares of every segment: `[segments]` in fp64,
    /// where the flats are. Collective where ranks have pieces.
    pub(super) fn square_sums<const FLATS: usize>(
        &self,
        flats: [&Tensor; FLATS],
    ) -> Result<[Tensor; FLATS], Error> {
        let device = flats.first().map_or(Device::Cpu, |flat| flat.device());
        let sums = match device == Device::Cpu || !self.stay_on_device() {
            true => {
                let sums = self.sums_of_host(&flats)?;
                let tensor = |sums: Vec<f64>| to_device(&Tensor::from_slice(&sums), device);
                sums.into_iter().map(tensor).collect::<Result<Vec<_>, _>>()?
            }
            false => flats.iter().map(|flat| self.sums_of_device(flat)).collect::<Result<_, Error>>()?,
        };
        sums.try_into().map_err(|_| Error::Other("there are not as many sums as buffers".into()))
    }

    /// The sum of squares of all of `flat`, `[1]` in fp64 where it is. Collective where ranks have pieces.
    pub(super) fn square_sum(&self, flat: &Tensor) -> Result<Tensor, Error> {
        let [sums] = self.square_sums([flat])?;
        if flat.device() != Device::Cpu {
            return Ok(sums.f_sum(Kind::Double)?.f_view([1])?);
        }
        // One after the other, whatever vectors this host has: all ranks must agree.
        let sums: Vec<f64> = Vec::try_from(&sums)?;
        Ok(Tensor::from_slice(&[sums.iter().sum::<f64>()]))
    }

    /// In the order that makes the bits those of any number of ranks.
    fn sums_of_host(&self, flats: &[&Tensor]) -> Result<Vec<Vec<f64>>, Error> {
        let mut sums = vec![vec![SquareSum::default(); self.segments]; flats.len()];
        for (flat, sums) in flats.iter().zip(&mut sums) {
            if flat.device() != Device::Cpu {
                for (piece, sum) in self.pieces.iter().zip(read_sums(flat, &self.pieces)?) {
                    let index = (piece.begin() / LEAF) as u64;
                    sums[piece.segment].push(Branch { height: 0, index, sum });
                }
                continue;
            }
            for piece in &self.pieces {
                add_piece(&mut sums[piece.segment], flat, piece)?;
            }
        }
        if let Some(comm) = &self.comm {
            sums = join(comm, &sums)?;
        }
        Ok(sums.iter().map(|sums| sums.iter().map(SquareSum::total).collect()).collect())
    }

    /// Where this rank has all pieces, each a whole tensor.
    fn sums_of_device(&self, flat: &Tensor) -> Result<Tensor, Error> {
        let sums = self.pieces.iter().map(|piece| square_sum_on_device(flat, piece));
        Ok(Tensor::f_stack(&sums.collect::<Result<Vec<_>, Error>>()?, 0)?)
    }
}

impl Piece {
    /// Where it begins within its tensor.
    fn begin(&self) -> usize {
        self.range.start - self.segment_begin
    }
}

fn square_sum_on_device(flat: &Tensor, piece: &Piece) -> Result<Tensor, Error> {
    let values = narrow(flat, &piece.range)?.f_to_kind(Kind::Double)?;
    Ok(values.f_square()?.f_sum(Kind::Double)?)
}

/// The sum of squares of each piece, for all of which the host waits once.
fn read_sums(flat: &Tensor, pieces: &[Piece]) -> Result<Vec<f64>, Error> {
    if pieces.is_empty() {
        return Ok(Vec::new());
    }
    let sums = pieces.iter().map(|piece| square_sum_on_device(flat, piece));
    let sums = Tensor::f_stack(&sums.collect::<Result<Vec<_>, Error>>()?, 0)?;
    Ok(Vec::try_from(&sums.f_to_device(Device::Cpu)?)?)
}

fn add_piece(sum: &mut SquareSum, flat: &Tensor, piece: &Piece) -> Result<(), Error> {
    let mut block = vec![0.0; READ.min(piece.range.len())];
    for start in piece.range.clone().step_by(READ) {
        let end = piece.range.end.min(start + READ);
        let block = &mut block[..end - start];
        narrow(flat, &(start..end))?.f_copy_data(block, end - start)?;
        sum.extend(start - piece.segment_begin, block);
    }
    Ok(())
}

/// Bytes of a branch on its way: which sum it belongs to, height, index, sum.
const BRANCH_BYTES: usize = 4 + 4 + 8 + 8;

/// Collective: the sums over the pieces of all ranks.
fn join(comm: &CommThread, own: &[Vec<SquareSum>]) -> Result<Vec<Vec<SquareSum>>, Error> {
    let segments = own.first().map_or(0, Vec::len);
    let mut bytes = Vec::new();
    for (place, sum) in own.iter().flatten().enumerate() {
        for branch in sum.branches() {
            bytes.extend((place as u32).to_le_bytes());
            bytes.extend(branch.height.to_le_bytes());
            bytes.extend(branch.index.to_le_bytes());
            bytes.extend(branch.sum.to_le_bytes());
        }
    }
    let mut branches: Vec<(u32, Branch)> = Vec::new();
    for bytes in comm.all_gather(bytes)? {
        branches.extend(bytes.chunks_exact(BRANCH_BYTES).map(decode));
    }
    // By sum, and from the beginning of the tensor to its end, whichever rank has which part.
    branches.sort_by_key(|(place, branch)| (*place, branch.begin()));
    let mut joined = vec![vec![SquareSum::default(); segments]; own.len()];
    let mut flat: Vec<&mut SquareSum> = joined.iter_mut().flatten().collect();
    for (place, branch) in branches {
        let sum = flat.get_mut(place as usize).ok_or_else(|| {
            Error::Other(format!(
                "a rank sent the norm of tensor {place}, but there are {}",
                own.len() * segments
            ))
        })?;
        sum.push(branch);
    }
    Ok(joined)
}

fn decode(bytes: &[u8]) -> (u32, Branch) {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    (word(0), Branch { height: word(4), index: long(8), sum: f64::from_bits(long(16)) })
}
