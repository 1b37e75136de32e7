//! Waiting for events with a time limit that holds to the microsecond.
//!
//! `epoll_wait` counts in milliseconds and rounds up: a commit that waits 200 us for company would wait five times as
//! long. Short limits are therefore waited for by `ppoll` on the epoll descriptor. `epoll_pwait2` would save that call;
//! it came with 5.11, and filters written before that refuse it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

/// Up to a millisecond more does not matter to longer limits.
const SHORT_MAX: Duration = Duration::from_millis(10);

/// Collects events, after waiting for the first until `timeout` is over, for ever without one. Returns the number of
/// system calls made.
pub(super) fn wait_for(
    epoll: &OwnedFd,
    events: &mut Vec<epoll::Event>,
    timeout: Option<Duration>,
) -> Result<u64, Errno> {
    events.clear();
    let mut timeout = timeout.map(timespec);
    let mut calls = 1;
    if timeout.is_some_and(|timeout| timeout != ZERO && timeout < timespec(SHORT_MAX)) {
        match poll(&mut [PollFd::new(epoll, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(calls),
            Ok(_) => timeout = Some(ZERO),
            Err(errno) => return Err(errno),
        }
        calls += 1;
    }
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(calls),
        Err(errno) => Err(errno),
    }
}

const ZERO: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

fn timespec(time: Duration) -> Timespec {
    // Limits come from a monotonic clock in 64-bit nanoseconds: they fit.
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}
