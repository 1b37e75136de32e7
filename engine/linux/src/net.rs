//! Listening sockets.
//!
//! What every accepted connection needs is set on the listener, since Linux lets connections inherit
//! it: no Nagle delay, congestion control, send buffer. So accepting costs one system call, while there are few.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rohrpost_engine_core::disk::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::file::errno_of;

/// Connections that may wait for being accepted; the kernel lowers it to `net.core.somaxconn`.
pub const BACKLOG_DEFAULT: i32 = 4096;

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Let several listeners share the address; the kernel spreads connections over them.
    pub reuse_port: bool,
    /// Connections that may wait for being accepted.
    pub backlog: i32,
    /// Congestion control of accepted connections, by the kernel's name; `None` keeps the default.
    pub congestion: Option<String>,
    /// Fixed send buffer of accepted connections, bytes; `None` lets the kernel tune it.
    pub send_buffer_len: Option<usize>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { reuse_port: false, backlog: BACKLOG_DEFAULT, congestion: None, send_buffer_len: None }
    }
}

/// Listening failed: at what, where, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot listen on {address}: {action}: {errno}{}", errno.remedy())]
pub struct ListenError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What was tried: "bind", "set congestion control".
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

/// A listening, non-blocking TCP socket.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens on `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// [`ListenError`], mostly "address in use" and, below port 1024, "permission denied".
    pub fn bind(address: SocketAddr, options: &ListenOptions) -> Result<Self, ListenError> {
        let step =
            |action: &'static str| move |errno| ListenError { address, action, errno: errno_of(errno) };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(step("open a socket"))?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(step("reuse the address"))?;
        if options.reuse_port {
            sockopt::set_socket_reuseport(&socket, true).map_err(step("reuse the port"))?;
        }
        sockopt::set_tcp_nodelay(&socket, true).map_err(step("switch off Nagle's delay"))?;
        if let Some(len) = options.send_buffer_len {
            sockopt::set_socket_send_buffer_size(&socket, len).map_err(step("set the send buffer"))?;
        }
        if let Some(name) = &options.congestion {
            sockopt::set_tcp_congestion(&socket, name).map_err(step("set congestion control"))?;
        }
        rustix::net::bind(&socket, &address).map_err(step("bind"))?;
        rustix::net::listen(&socket, options.backlog).map_err(step("listen"))?;
        Ok(Self(socket))
    }

    /// Where it listens, with the port the kernel chose.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getsockname(&self.0)?;
        SocketAddr::try_from(address).map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))
    }

    /// Another handle on the same socket, for a shard that accepts from the same queue.
    ///
    /// # Errors
    /// The system's, mostly `EMFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl TryFrom<std::net::TcpListener> for Listener {
    type Error = io::Error;

    /// Takes a socket that listens already, with the options it has.
    fn try_from(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(listener.into()))
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.0
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a connection's peer is on another machine, as far as addresses tell: neither loopback nor this end's own
/// address. A container on the same host counts as remote.
pub(crate) fn is_remote(socket: &OwnedFd) -> bool {
    let ip = |address: Option<rustix::net::SocketAddrAny>| {
        SocketAddr::try_from(address?).ok().map(|address| address.ip())
    };
    let peer = rustix::net::getpeername(socket).ok().flatten();
    let own = rustix::net::getsockname(socket).ok();
    let (Some(peer), Some(own)) = (ip(peer), ip(own)) else {
        return false;
    };
    !peer.is_loopback() && peer != own
}

/// Open connections of a driver from which on a new one holds no more than [`UNSENT_LEN_MAX`] for a peer that does not
/// read. The kernel has one limit for the memory of all TCP sockets (`net.ipv4.tcp_mem`, about a tenth of the machine's
/// memory) and serves nobody beyond it; sockets that grow to `tcp_wmem` take it with a few hundred such peers.
const CROWD: usize = 128;

/// Unsent bytes of a socket in a crowd (`TCP_NOTSENT_LOWAT`); what is on its way through the network is not counted.
const UNSENT_LEN_MAX: u32 = 256 << 10;

/// Prepares a connection that joins so many others.
pub(crate) fn prepare(socket: &OwnedFd, others: usize) {
    if others < CROWD {
        return;
    }
    let len = UNSENT_LEN_MAX;
    // SAFETY: [U30] the kernel reads four bytes, which outlive the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const len).cast(),
            size_of_val(&len) as libc::socklen_t,
        )
    };
    // A socket that refuses it is one that its peer has reset.
    let _ = set;
}

/// Blocks `SIGPIPE` on this thread; `sendfile` and `splice` have no flag against it.
pub(crate) fn block_sigpipe() -> rustix::io::Result<()> {
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: [U4] initialises the set, which outlives the call.
    let emptied = unsafe { libc::sigemptyset(signals.as_mut_ptr()) };
    debug_assert_eq!(emptied, 0);
    // SAFETY: [U4] the set was initialised above.
    let added = unsafe { libc::sigaddset(signals.as_mut_ptr(), libc::SIGPIPE) };
    debug_assert_eq!(added, 0);
    // SAFETY: [U4] reads the initialised set and changes this thread's mask only.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut()) };
    if blocked == 0 { Ok(()) } else { Err(rustix::io::Errno::from_raw_os_error(blocked)) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// What is set on the listener is there on the accepted connection.
    #[test]
    fn connections_inherit_the_options() {
        let options = ListenOptions {
            congestion: Some("reno".to_owned()),
            send_buffer_len: Some(8192),
            ..Default::default()
        };
        let listener = Listener::bind(any(), &options).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = rustix::net::accept(&listener).unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert_eq!(sockopt::tcp_congestion(&accepted).unwrap(), "reno");
        assert_eq!(sockopt::socket_send_buffer_size(&accepted).unwrap(), 16384, "the kernel doubles it");
    }

    /// A peer that does not read: what its socket holds for it is what the kernel is willing to hold, or little.
    #[test]
    fn a_socket_in_a_crowd_holds_little() {
        const CHUNK_LEN: usize = 64 << 10;
        let held = |others: usize| {
            let options = ListenOptions { send_buffer_len: Some(4 << 20), ..Default::default() };
            let listener = Listener::bind(any(), &options).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let accepted = rustix::net::accept(&listener).unwrap();
            sockopt::set_socket_recv_buffer_size(&client, 8192).unwrap();
            prepare(&accepted, others);
            let chunk = vec![0; CHUNK_LEN];
            let send = || rustix::net::send(&accepted, &chunk, rustix::net::SendFlags::DONTWAIT);
            std::iter::from_fn(|| send().ok()).sum::<usize>()
        };
        let (alone, crowded) = (held(0), held(CROWD));
        // Alone it holds what `net.core.wmem_max` lets it, however little that is.
        let most = UNSENT_LEN_MAX as usize + 2 * CHUNK_LEN;
        assert!(crowded < alone && crowded <= most, "{crowded} of {alone}");
    }

    #[test]
    fn ports_are_shared_only_on_request() {
        let options = ListenOptions { reuse_port: true, ..Default::default() };
        let listener = Listener::bind(any(), &options).unwrap();
        let address = listener.local_addr().unwrap();
        Listener::bind(address, &options).unwrap();
        let error = Listener::bind(address, &ListenOptions::default()).unwrap_err();
        assert_eq!((error.action, error.errno), ("bind", Errno(libc::EADDRINUSE)));
        let clone = listener.try_clone().unwrap();
        assert_eq!(clone.local_addr().unwrap(), address);
    }

    #[test]
    fn unknown_congestion_control_is_named() {
        let options = ListenOptions { congestion: Some("no-such".to_owned()), ..Default::default() };
        let error = Listener::bind(any(), &options).unwrap_err();
        assert_eq!((error.action, error.errno), ("set congestion control", Errno::NOENT));
    }
}
