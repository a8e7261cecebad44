//! The few numbers of a step that the host wants to know: what the ranks told each other at the end of the exchange, and
//! the norm of the gradient. Where the device goes on by itself they are on their way meanwhile.

use std::ops::Range;

use tch::{Device, Kind, Tensor};
use torch_ext::copy::Readback;

use super::Engine;
use crate::error::Error;
use crate::flat::Tail;

/// What the host reads.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    /// The tail, and what each rank tells of itself.
    told: Vec<f64>,
    /// L2 norm of the averaged gradient, where it is clipped.
    pub(super) gradient_norm: Option<f64>,
}

impl Numbers {
    pub(super) fn tail(&self, entry: Tail) -> f32 {
        // It was fp32 before.
        self.told[entry as usize] as f32
    }
}

impl Engine<'_> {
    /// Of each rank, the mean loss over its samples; of a bad sample it is zero.
    pub(super) fn losses_of_ranks(&self, numbers: &Numbers) -> Vec<f32> {
        let ranks = self.plan.batches.world_size() as f64;
        self.told_by_ranks(numbers, self.state.layout.rank_losses())
            .map(|loss| (loss * ranks) as f32)
            .collect()
    }

    /// Ranks whose own gradient was infinite or NaN somewhere, where they look for that.
    pub(super) fn ranks_not_finite(&self, numbers: &Numbers) -> Vec<usize> {
        let marks = self.told_by_ranks(numbers, self.state.layout.rank_marks());
        marks.enumerate().filter(|(_, mark)| *mark != 0.0).map(|(rank, _)| rank).collect()
    }

    fn told_by_ranks<'a>(
        &self,
        numbers: &'a Numbers,
        places: Range<usize>,
    ) -> impl Iterator<Item = f64> + use<'a> {
        let begin = places.start - self.state.layout.tail_offset();
        numbers.told[begin..begin + places.len()].iter().copied()
    }
}

/// The numbers of one step.
pub(super) enum Told {
    Read(Numbers),
    UnderWay(Readback),
    /// This rank failed, and has nothing to read.
    OfAFailure,
}

impl Engine<'_> {
    /// Waits for all but the norm.
    pub(super) fn read_numbers(&self) -> Result<Numbers, Error> {
        let told = self.state.whole_tail()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        Ok(Numbers { told: Vec::try_from(&told)?, gradient_norm: None })
    }

    /// Queues a copy of the numbers to the host.
    pub(super) fn queue_numbers(&mut self, gradient_norm: Option<&Tensor>) -> Result<Readback, Error> {
        let tail = self.state.whole_tail()?.f_to_kind(Kind::Double)?;
        let numbers =
            Tensor::f_cat(&[Some(&tail), gradient_norm].into_iter().flatten().collect::<Vec<_>>(), 0)?;
        let mut readback = match self.readbacks.pop() {
            Some(readback) => readback,
            None => Readback::new(numbers.numel(), self.compute.device)?,
        };
        readback.queue(&numbers)?;
        Ok(readback)
    }

    /// Waits for numbers that are under way.
    pub(super) fn await_numbers(&mut self, mut readback: Readback) -> Result<Numbers, Error> {
        let mut told = readback.read()?;
        self.readbacks.push(readback);
        let layout = &self.state.layout;
        let norm = told.split_off(layout.exchange_len() - layout.tail_offset());
        Ok(Numbers { told, gradient_norm: norm.first().copied() })
    }
}
