//! Times all-reduces one after the other on the communication thread, and tells which of their sums are wrong. Where the
//! values lie, and what is printed of the times, is the caller's business.

use std::time::{Duration, Instant};

use crate::nccl::RegionDevice;
use crate::on_device;
use crate::{CommError, CommThread, Region, Wire};

/// Elements repeat after so many; they are small whole numbers, whose sums fp32 forms without rounding.
const PATTERN: usize = 7;

/// `len` values that rank `rank` brings to a measurement.
#[must_use]
pub fn values_to_sum(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|index| ((rank + index) % PATTERN) as f32).collect()
}

/// How many of `sums`, of what `world_size` ranks brought, are not the exact sum, rounded as it travels.
#[must_use]
pub fn wrong_sums(sums: &[f32], world_size: usize, wire: Wire) -> usize {
    let sum = |index: usize| (0..world_size).map(|rank| ((rank + index) % PATTERN) as f32).sum::<f32>();
    let expected: Vec<f32> = (0..PATTERN).map(|index| wire.round(sum(index))).collect();
    sums.iter().enumerate().filter(|&(index, &value)| value != expected[index % PATTERN]).count()
}

/// Collective: `warmup` all-reduces of copies of `source` in `values`, then `iterations` that count, each begun together
/// by all ranks. Gives the time of each on this rank; the last sum stays in `values`.
///
/// # Errors
/// When the exchange failed or was aborted.
///
/// # Panics
/// When the two differ in length, or only one of them is on a device.
pub fn measure_all_reduce(
    comm: &CommThread,
    [source, values]: [&Region; 2],
    wire: Wire,
    warmup: usize,
    iterations: usize,
) -> Result<Vec<Duration>, CommError> {
    assert_eq!(source.len(), values.len(), "both have the same length");
    assert_eq!(source.device().is_some(), values.device().is_some(), "both are in the same memory");
    let (source, values) = (source.clone(), values.clone());
    let mut computed = values.device().map(RegionDevice::mark);
    comm.call(move |communicator| {
        let mut durations = Vec::with_capacity(iterations);
        for iteration in 0..warmup + iterations {
            let duration = if let Some(device) = values.device() {
                let computed = computed.take().unwrap_or_else(|| device.mark());
                on_device::time_all_reduce(communicator, [&source, &values], computed, wire)?
            } else {
                let mut values = values.lock();
                values.copy_from_slice(&source.lock());
                communicator.barrier()?;
                let begin = Instant::now();
                communicator.all_reduce(&mut values, wire)?;
                begin.elapsed()
            };
            if iteration >= warmup {
                durations.push(duration);
            }
        }
        Ok(durations)
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
                let measured = on_each_comm_thread(world_size, |comm| {
                    let source = Region::from_vec(values_to_sum(comm.topology().rank, 1000));
                    let values = Region::from_vec(vec![0.0; 1000]);
                    let durations = measure_all_reduce(comm, [&source, &values], wire, 1, 3).unwrap();
                    (durations.len(), values.to_vec())
                });
                for (count, mut sums) in measured {
                    assert_eq!(
                        (count, wrong_sums(&sums, world_size, wire)),
                        (3, 0),
                        "{wire:?}, {world_size} ranks"
                    );
                    sums[17] += 1.0;
                    assert_eq!(wrong_sums(&sums, world_size, wire), 1);
                }
            }
        }
    }
}
