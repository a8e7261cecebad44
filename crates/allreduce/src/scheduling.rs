//! Lets the communication thread run at once when its data has arrived, although every core computes, and wake
//! when it said.
//!
//! It needs a few microseconds now and then. Linux's scheduler lets a computing thread finish its slice
//! first, some 3 ms, unless the thread that wakes has asked for shorter slices (EEVDF, from Linux 6.12 on).
//! Asking needs no privilege and takes nothing from anyone: the share of time stays the same.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The shortest slice that Linux grants.
const SLICE: Duration = Duration::from_micros(100);

/// `struct sched_attr` of sched_setattr(2), first version.
#[repr(C)]
#[derive(Default)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_nanoseconds: u64,
    deadline_nanoseconds: u64,
    period_nanoseconds: u64,
}

/// Asks for short slices for the calling thread. Older kernels ignore the wish.
///
/// # Errors
/// The system's reason, for example a sandbox that forbids the call.
pub(crate) fn ask_for_short_slices() -> io::Result<()> {
    const THIS_THREAD: libc::pid_t = 0;
    const NO_FLAGS: libc::c_uint = 0;
    let mut attributes = SchedulingAttributes::default();
    let size = size_of::<SchedulingAttributes>() as u32;
    // SAFETY: a valid place of `size` bytes for the kernel to write the present attributes to, then to read
    // them from.
    let status = unsafe {
        match libc::syscall(libc::SYS_sched_getattr, THIS_THREAD, &raw mut attributes, size, NO_FLAGS) {
            0 => {
                attributes.size = size;
                attributes.runtime_nanoseconds = SLICE.as_nanos() as u64;
                libc::syscall(libc::SYS_sched_setattr, THIS_THREAD, &raw const attributes, NO_FLAGS)
            }
            failed => failed,
        }
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks that sleeps of the calling thread end when they should. Linux else lets them end up to 50 µs later, to
/// wake for several threads at once.
///
/// # Errors
/// The system's reason.
pub(crate) fn ask_for_exact_sleeps() -> io::Result<()> {
    let slack_nanoseconds: libc::c_ulong = 1;
    // SAFETY: no pointers.
    match unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_nanoseconds, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wish_is_granted_or_refused_with_a_reason_and_policy_stays() {
        // SAFETY: no pointers.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        if let Err(error) = ask_for_short_slices() {
            assert!(error.raw_os_error().is_some(), "{error}");
        }
        assert_eq!(policy(), before);
    }

    #[test]
    fn sleeps_may_be_asked_to_be_exact() {
        ask_for_exact_sleeps().unwrap();
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) }, 1);
    }
}
