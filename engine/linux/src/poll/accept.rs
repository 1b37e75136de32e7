//! Accepting connections, and not accepting them while there is no room: a listener that cannot be
//! served would make every turn fail anew, so it is not watched then. Peers wait in the backlog.

use std::os::fd::OwnedFd;

use rohrpost_engine_core::ops::{ConnId, Event};
use rohrpost_engine_core::types::Nanos;
use rustix::event::epoll;
use rustix::net::SocketFlags;

use super::connections::{Connections, to_data};
use super::{DATA_LISTENER, PollDriver, PollPlatform, mono};
use crate::net::{Listener, is_remote, prepare};

/// Connections accepted in one turn, before the open ones get theirs.
const ACCEPTS_MAX: usize = 64;

/// How long accepting pauses when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Nanos = Nanos::new(100_000_000);

/// Whether the listener is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    Watched,
    /// All slots are taken: until one is free.
    Full,
    /// Descriptors or memory are short: until a connection closes or time has passed.
    Short {
        until: Nanos,
    },
}

impl PollDriver {
    pub(super) fn accept(&mut self, events: &mut Vec<Event<PollPlatform>>) {
        let Some(listener) = &self.listener else {
            return;
        };
        for _ in 0..ACCEPTS_MAX {
            if self.connections.is_full() {
                unwatch_listener(&self.epoll, listener);
                self.accepting = Accepting::Full;
                return;
            }
            self.kernel_entries += 2;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let watched = match rustix::net::accept_with(listener, flags) {
                Ok(socket) => watch(&self.epoll, &mut self.connections, socket),
                // The peer gave up while it waited.
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => continue,
                Err(errno) => Err(errno),
            };
            match watched {
                Ok((conn, remote)) => events.push(Event::Accepted { conn, remote }),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    // Out of descriptors or memory: the backlog would make every turn fail anew.
                    unwatch_listener(&self.epoll, listener);
                    let until = Nanos::new(mono().get() + ACCEPT_PAUSE.get());
                    self.accepting = Accepting::Short { until };
                    return;
                }
            }
        }
    }

    pub(super) fn resume_accepting(&mut self) {
        if let Some(listener) = &self.listener
            && self.accepting != Accepting::Watched
            && !self.connections.is_full()
        {
            self.accepting = match watch_listener(&self.epoll, listener) {
                Ok(()) => Accepting::Watched,
                Err(_) => Accepting::Short { until: Nanos::new(mono().get() + ACCEPT_PAUSE.get()) },
            };
        }
    }
}

fn watch(
    epoll: &OwnedFd,
    connections: &mut Connections,
    socket: OwnedFd,
) -> rustix::io::Result<(ConnId, bool)> {
    let remote = is_remote(&socket);
    prepare(&socket, connections.open_count());
    // Callers look for a free slot first.
    let id = connections.insert(socket).ok_or(rustix::io::Errno::MFILE)?;
    let Some(connection) = connections.get_mut(id) else {
        return Err(rustix::io::Errno::MFILE);
    };
    use epoll::EventFlags as Flags;
    let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
    let data = epoll::EventData::new_u64(to_data(id));
    if let Err(errno) = epoll::add(epoll, &connection.socket, data, flags) {
        connections.remove(id);
        return Err(errno);
    }
    Ok((id, remote))
}

pub(super) fn watch_listener(epoll: &OwnedFd, listener: &Listener) -> rustix::io::Result<()> {
    // Exclusive: of several shards on one socket, a connection wakes one.
    let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
    epoll::add(epoll, listener, epoll::EventData::new_u64(DATA_LISTENER), flags)
}

fn unwatch_listener(epoll: &OwnedFd, listener: &Listener) {
    let deleted = epoll::delete(epoll, listener);
    debug_assert!(deleted.is_ok(), "the listener was watched: {deleted:?}");
}
