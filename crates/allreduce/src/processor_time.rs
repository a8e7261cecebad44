//! How long a thread has computed, however long it has waited.
#![allow(unsafe_code)]

use std::time::Duration;

/// Processor time of the calling thread; zero where the system does not count it.
pub(crate) fn of_this_thread() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place to write to.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    if status != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn computing_counts_and_sleeping_does_not() {
        let begin = of_this_thread();
        std::thread::sleep(Duration::from_millis(50));
        let slept = of_this_thread() - begin;
        assert!(slept < Duration::from_millis(20), "{slept:?}");
        let limit = Instant::now() + Duration::from_secs(20);
        while of_this_thread() - begin < Duration::from_millis(25) {
            assert!(Instant::now() < limit, "25 ms of computing are not seen");
        }
    }
}
