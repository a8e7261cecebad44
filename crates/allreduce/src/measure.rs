//! Times all-reduces one after the other on the communication thread, and checks their sums. What is printed of
//! them is the caller's business.

use std::time::{Duration, Instant};

use crate::{CommError, CommThread, Wire};

/// All-reduces of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Of each, on this rank.
    pub durations: Vec<Duration>,
    /// Elements of the last sum that are not what they must be.
    pub wrong: usize,
}

/// Elements repeat after so many; they are small whole numbers, whose sums fp32 forms without rounding.
const PATTERN: usize = 7;

/// Collective: `warmup` all-reduces of `len` elements, then `iterations` that count, each begun together by all
/// ranks. A sum is right when it is the exact one, rounded as it travels.
///
/// # Errors
/// When the exchange failed or was aborted.
pub fn measure_all_reduce(
    comm: &CommThread,
    len: usize,
    wire: Wire,
    warmup: usize,
    iterations: usize,
) -> Result<Measurement, CommError> {
    comm.call(move |communicator| {
        let world_size = communicator.topology().world_size;
        let rank = communicator.topology().rank;
        let mut values = vec![0.0; len];
        let mut durations = Vec::with_capacity(iterations);
        for iteration in 0..warmup + iterations {
            for (index, value) in values.iter_mut().enumerate() {
                *value = ((rank + index) % PATTERN) as f32;
            }
            communicator.barrier()?;
            let begin = Instant::now();
            communicator.all_reduce(&mut values, wire)?;
            if iteration >= warmup {
                durations.push(begin.elapsed());
            }
        }
        let sum = |index: usize| (0..world_size).map(|rank| ((rank + index) % PATTERN) as f32).sum::<f32>();
        let expected: Vec<f32> = (0..PATTERN).map(|index| wire.round(sum(index))).collect();
        let wrong =
            values.iter().enumerate().filter(|&(index, &value)| value != expected[index % PATTERN]).count();
        Ok(Measurement { durations, wrong })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_process::on_each_comm_thread;

    #[test]
    fn sums_are_checked_on_every_rank_in_every_format() {
        for wire in [Wire::Fp32, Wire::Bf16, Wire::Fp16] {
            for world_size in [1, 2, 3, 8, 100] {
                let measured =
                    on_each_comm_thread(world_size, |comm| measure_all_reduce(comm, 1000, wire, 1, 3));
                for measurement in measured {
                    let Measurement { durations, wrong } = measurement.unwrap();
                    assert_eq!((durations.len(), wrong), (3, 0), "{wire:?}, {world_size} ranks");
                }
            }
        }
    }
}
