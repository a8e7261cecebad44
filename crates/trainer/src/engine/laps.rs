//! How long each part of a step takes: by the host's clock, or on a GPU by events on the stream of the computation, which
//! are read when the step is over. Knows what the parts are called, not what happens in them.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tch::Device;
use torch_ext::cuda::{Event, Stream};

use super::outcome::Phases;
use crate::error::Error;

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    DataWait,
    Input,
    Forward,
    Backward,
    Exchange,
    Optimizer,
}

/// The parts of one step, one after the other.
pub(super) struct Laps {
    device: Device,
    begin: Rc<Moment>,
    /// Each part with its end.
    ends: Vec<(Part, Rc<Moment>)>,
    /// What the host waited for other ranks, within which part.
    waits: Vec<(Part, Duration)>,
}

enum Moment {
    OfHost(Instant),
    OfGpu(Event),
}

impl Moment {
    /// The host's now, or when the GPU will be through with what is queued.
    fn now(device: Device) -> Result<Self, Error> {
        let Device::Cuda(index) = device else { return Ok(Moment::OfHost(Instant::now())) };
        let mut event = Event::timed()?;
        event.record(Stream::current(index)?)?;
        Ok(Moment::OfGpu(event))
    }

    fn since(&self, earlier: &Moment) -> Result<Duration, Error> {
        match (earlier, self) {
            (Moment::OfHost(earlier), Moment::OfHost(now)) => Ok(*now - *earlier),
            (Moment::OfGpu(earlier), Moment::OfGpu(now)) => Ok(now.since(earlier)?),
            _ => Err(Error::Other("one moment is the host's and the other is a GPU's".into())),
        }
    }
}

impl Laps {
    /// A step begins, or follows the one `before` without a pause.
    pub(super) fn begin(device: Device, before: Option<&Laps>) -> Result<Self, Error> {
        let begin = match before {
            Some(Laps { begin, ends, .. }) => Rc::clone(ends.last().map_or(begin, |(_, end)| end)),
            None => Rc::new(Moment::now(device)?),
        };
        Ok(Laps { device, begin, ends: Vec::new(), waits: Vec::new() })
    }

    /// What came since the part before was `part`.
    pub(super) fn lap(&mut self, part: Part) -> Result<(), Error> {
        self.ends.push((part, Rc::new(Moment::now(self.device)?)));
        Ok(())
    }

    /// `waited` of a part was a wait of the host for other ranks.
    pub(super) fn waited(&mut self, part: Part, waited: Duration) {
        self.waits.push((part, waited));
    }

    /// The sums of the parts. Waits for the GPU.
    pub(super) fn read(&self) -> Result<Phases, Error> {
        if let Some((_, end)) = self.ends.last()
            && let Moment::OfGpu(end) = &**end
        {
            end.synchronize()?;
        }
        let mut phases = Phases::default();
        let mut begin = &self.begin;
        for (part, end) in &self.ends {
            *part.of(&mut phases) += end.since(begin)?;
            begin = end;
        }
        // A GPU waits by itself, within the part.
        for (part, waited) in self.waits.iter().filter(|_| self.device == Device::Cpu) {
            let sum = part.of(&mut phases);
            *sum = sum.saturating_sub(*waited);
            phases.exposed_communication += *waited;
        }
        Ok(phases)
    }
}

impl Part {
    fn of(self, phases: &mut Phases) -> &mut Duration {
        match self {
            Part::DataWait => &mut phases.data_wait,
            Part::Input => &mut phases.input,
            Part::Forward => &mut phases.forward,
            Part::Backward => &mut phases.backward,
            Part::Exchange => &mut phases.exposed_communication,
            Part::Optimizer => &mut phases.optimizer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(3);

    #[test]
    fn parts_are_summed_and_waits_for_others_are_communication() {
        let mut laps = Laps::begin(Device::Cpu, None).unwrap();
        for part in [Part::DataWait, Part::Forward, Part::Forward, Part::Exchange] {
            std::thread::sleep(SHORT);
            laps.lap(part).unwrap();
        }
        laps.waited(Part::Forward, SHORT);
        let phases = laps.read().unwrap();
        assert!(phases.data_wait >= SHORT && phases.forward >= SHORT, "{phases:?}");
        assert!(phases.exposed_communication >= 2 * SHORT, "{phases:?}");
        assert_eq!((phases.input, phases.backward), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_step_that_follows_another_begins_where_that_one_ends() {
        let mut first = Laps::begin(Device::Cpu, None).unwrap();
        first.lap(Part::Optimizer).unwrap();
        std::thread::sleep(SHORT);
        for (before, waits) in [(Some(&first), true), (None, false)] {
            let mut laps = Laps::begin(Device::Cpu, before).unwrap();
            laps.lap(Part::DataWait).unwrap();
            assert_eq!(laps.read().unwrap().data_wait >= SHORT, waits);
        }
    }
}
