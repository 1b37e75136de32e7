//! Accepting connections on one listener.
//!
//! Owns the listener. Always holds: at most one accept request is in the ring; a connection that finds
//! the table full is closed and counted. When the process has no descriptor left, accepting rests
//! until a connection has closed or [`RETRY_MS`] have passed.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use io_uring::{opcode, types};
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::Event;
use rohrpost_engine_core::types::Nanos;

use super::UringPlatform;
use super::features::{Feature, FeatureSet};
use super::net_ops::ConnTable;
use super::ring::{Cqe, Ring, RingError};
use super::slab::{Key, Kind};
use crate::net::{Listener, is_remote, prepare};

/// How long accepting rests when descriptors or memory are short, milliseconds.
const RETRY_MS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No request in the ring.
    Idle,
    /// A request waits for connections.
    Armed,
    /// The request is being cancelled.
    Cancelling,
    /// The listener is broken or the driver ends.
    Stopped,
}

/// See the module.
pub(super) struct Acceptor {
    listener: Option<Listener>,
    state: State,
    retry_at: Option<Nanos>,
    /// Connections closed at once because the table was full.
    pub(super) refused_count: u64,
    /// Accepts that failed for want of descriptors or memory.
    pub(super) starved_count: u64,
    /// Why accepting has ended for good, if it has.
    pub(super) broken: Option<Errno>,
}

impl Acceptor {
    /// Accepts on `listener`, if there is one.
    pub(super) fn new(listener: Option<Listener>) -> Self {
        let state = if listener.is_some() { State::Idle } else { State::Stopped };
        Self { listener, state, retry_at: None, refused_count: 0, starved_count: 0, broken: None }
    }

    /// When to try again, if accepting rests.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.retry_at
    }

    /// Whether a completion is still to come.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Armed | State::Cancelling)
    }

    /// A connection has closed: its descriptor may be what was missing.
    pub(super) fn handle_closed(&mut self) {
        self.retry_at = None;
    }

    /// Puts the request into the ring if none is there and a connection could be taken.
    pub(super) fn arm(
        &mut self,
        ring: &mut Ring,
        features: FeatureSet,
        has_room: bool,
        now: Nanos,
    ) -> Result<(), RingError> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let resting = self.retry_at.is_some_and(|at| now < at);
        if self.state != State::Idle || !has_room || resting {
            return Ok(());
        }
        self.retry_at = None;
        self.state = State::Armed;
        let listener = types::Fd(listener.as_fd().as_raw_fd());
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let entry = if features.has(Feature::MultishotAccept) {
            opcode::AcceptMulti::new(listener).flags(flags).build()
        } else {
            opcode::Accept::new(listener, ptr::null_mut(), ptr::null_mut()).flags(flags).build()
        };
        // SAFETY: [U20] the entry points to no memory; the listener is closed after its completion.
        unsafe { ring.push(&entry.user_data(Key::lone(Kind::Accept).encode())) }
    }

    /// Ends accepting for good.
    pub(super) fn stop(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        match self.state {
            State::Armed => self.cancel(ring),
            State::Idle => {
                self.state = State::Stopped;
                Ok(())
            }
            State::Cancelling | State::Stopped => Ok(()),
        }
    }

    fn cancel(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        self.state = State::Cancelling;
        let builder = types::CancelBuilder::user_data(Key::lone(Kind::Accept).encode());
        let entry = opcode::AsyncCancel2::new(builder).build();
        // SAFETY: [U20] the entry points to no memory.
        unsafe { ring.push(&entry.user_data(Key::lone(Kind::Cancel).encode())) }
    }

    /// Takes a completion of the accept request.
    pub(super) fn complete(
        &mut self,
        ring: &mut Ring,
        cqe: Cqe,
        conns: &mut ConnTable,
        now: Nanos,
        events: &mut Vec<Event<UringPlatform>>,
    ) -> Result<(), RingError> {
        if !cqe.more() {
            self.state = State::Idle;
        }
        match cqe.outcome() {
            Ok(descriptor) => {
                // SAFETY: [U26] the kernel made the descriptor for this completion; nobody else owns it.
                let socket = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
                let remote = is_remote(&socket);
                prepare(&socket, conns.open_count());
                match conns.open(socket) {
                    Ok(conn) => events.push(Event::Accepted { conn, remote }),
                    Err(_socket) => self.refused_count += 1,
                }
            }
            Err(errno) => match errno.0 {
                libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                    self.starved_count += 1;
                    self.retry_at = Some(now.plus_millis(RETRY_MS));
                }
                libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP => {
                    self.state = State::Stopped;
                    self.broken = Some(errno);
                }
                // The connection broke before it was taken, or the request was cancelled.
                _ => {}
            },
        }
        let must_rest = !conns.has_room() && self.state == State::Armed;
        if must_rest { self.cancel(ring) } else { Ok(()) }
    }
}
