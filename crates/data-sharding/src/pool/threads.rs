//! How many decoder threads a process has.

/// Most threads that [`default_workers`] gives one process: what a GPU needs of ImageNet's images.
const MOST: usize = 16;

/// Decoder threads for one of `ranks_on_node` processes: its share of the processors this process may use
/// (affinity mask and cgroup quota), less the `compute_threads` on which libtorch computes, 1 to 16.
///
/// A launcher that binds every rank to processors of its own leaves it an affinity mask that is its share
/// already; which it did shows by the mask holding fewer processors than the machine has.
#[must_use]
pub fn default_workers(ranks_on_node: usize, compute_threads: usize) -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    share(usable, ranks_on_node, compute_threads)
}

fn share(usable: usize, ranks_on_node: usize, compute_threads: usize) -> usize {
    (usable / ranks_on_node.max(1)).saturating_sub(compute_threads.max(1)).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_room_for_computing() {
        for (usable, ranks, compute, expected) in [
            (2, 1, 1, 1),
            (2, 2, 1, 1),
            (16, 1, 1, 15),
            (16, 1, 8, 8),
            (96, 8, 2, 10),
            (256, 2, 2, 16),
            (4, 0, 0, 3),
            (1, usize::MAX, usize::MAX, 1),
        ] {
            assert_eq!(share(usable, ranks, compute), expected, "{usable} {ranks} {compute}");
        }
    }
}
