//! Small safe wrappers over the system calls that several modules need: clocks, cores, socket options.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::error::{BenchError, Result};

/// Monotonic nanoseconds, the same in all processes of one boot.
#[inline]
pub fn now_ns() -> u64 {
    nanos(ClockId::Monotonic)
}

/// Nanoseconds of CPU this process has used, all its threads together, kernel workers of its rings included.
pub fn process_cpu_ns() -> u64 {
    nanos(ClockId::ProcessCPUTime)
}

fn nanos(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Waits until something arrives or the time is over. The call behind `epoll::wait` counts in milliseconds and rounds
/// up: what is due would be up to one late, and that would count as latency.
///
/// # Errors
/// `System` if the kernel refuses to wait.
pub fn sleep_exactly(epoll: &OwnedFd, timeout: &Timespec) -> Result<()> {
    match poll(&mut [PollFd::new(epoll, PollFlags::IN)], Some(timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(BenchError::system("poll")(error)),
    }
}

/// The cores this process may run on.
pub fn allowed_cores() -> Vec<usize> {
    sched_getaffinity(None)
        .map(|set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
        .unwrap_or_default()
}

/// Pins the calling thread, and every thread it starts later, to one core.
///
/// # Errors
/// `Usage` if the core does not exist or may not be used, naming those that may.
pub fn pin_to_core(core: usize) -> Result<()> {
    check_core(core)?;
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(BenchError::system("pin to a core"))
}

/// Whether `core` can be pinned to.
///
/// # Errors
/// `Usage`, naming the cores there are.
pub fn check_core(core: usize) -> Result<()> {
    let allowed = allowed_cores();
    if allowed.contains(&core) {
        return Ok(());
    }
    Err(BenchError::Usage(format!(
        "core {core} is absent or not allowed for this process; it may use {allowed:?}: \
         pass --server-core and --client-core"
    )))
}

/// Runs the calling thread, and those it starts, before other processes where that is allowed: both sides of a
/// measurement do. Says whether it was.
pub fn raise_priority() -> bool {
    rustix::process::setpriority_process(None, -19).is_ok()
}

/// Whether this process may raise its priority.
pub fn may_raise_priority() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nice).current;
    rustix::process::geteuid().is_root() || limit.is_none_or(|limit| limit >= 39)
}

/// Descriptors that this process, and those it starts from now on, may have open: raised as far as that is allowed.
pub fn descriptors_max() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A listening socket on loopback whose connections use `congestion`.
///
/// # Errors
/// `System` with the failing call.
pub fn listen(congestion: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .map_err(BenchError::system("listen on loopback"))?;
    // Accepted sockets inherit both options.
    sockopt::set_tcp_congestion(&listener, congestion)
        .map_err(BenchError::system("set the congestion control"))?;
    sockopt::set_tcp_nodelay(&listener, true).map_err(BenchError::system("set TCP_NODELAY"))?;
    rustix::net::listen(&listener, 1024).map_err(BenchError::system("listen on loopback"))?;
    Ok(listener)
}

/// A non-blocking connection to loopback with the same options as the server's side.
///
/// # Errors
/// `System` with the failing call.
pub fn connect(port: u16, congestion: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .map_err(BenchError::system("connect to the server"))?;
    sockopt::set_tcp_congestion(&stream, congestion)
        .map_err(BenchError::system("set the congestion control"))?;
    stream.set_nodelay(true).map_err(BenchError::system("set TCP_NODELAY"))?;
    stream.set_nonblocking(true).map_err(BenchError::system("make a socket non-blocking"))?;
    Ok(stream)
}

/// The congestion control to use on both sides: cubic where there is one, because pacing algorithms pace
/// loopback too and hide what delivery costs; else the system's default.
pub fn congestion_control() -> String {
    let Ok(probe) = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) else {
        return "cubic".to_string();
    };
    if sockopt::set_tcp_congestion(probe.as_fd(), "cubic").is_ok() {
        return "cubic".to_string();
    }
    sockopt::tcp_congestion(probe.as_fd()).unwrap_or_else(|_| "unknown".to_string())
}
