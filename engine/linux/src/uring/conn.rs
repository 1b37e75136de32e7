//! One connection's state in the ring.
//!
//! Owns the socket and the memory of the transfer under way. Always holds: `requests` counts the
//! requests in the ring that name this socket, and the socket is closed only when it is zero, so a
//! completion never meets another connection's state.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use rohrpost_engine_core::ops::{ConnId, SEND_PARTS_MAX, Send, SendFile};
use rohrpost_engine_core::planted::{Bug, is_planted};

use super::UringPlatform;
use super::disk_ops::NO_IOVEC;
use super::slab::{Key, Kind};
use crate::pipe::Loaded;

/// Where receiving stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecvState {
    /// No request in the ring.
    Idle,
    /// A request waits for bytes.
    Armed,
    /// A request is being cancelled; its last completion is still to come.
    Cancelling,
    /// Bytes are waiting, but no buffer was free.
    Starved,
}

/// The one transfer a connection has under way.
pub(super) enum Transfer {
    /// None.
    None,
    /// From memory; the kernel reads it until the completion.
    Memory(Send<UringPlatform>),
    /// From memory that the kernel reads in place. So many bytes were copied before it.
    ZeroCopy(Send<UringPlatform>, usize),
    /// From memory by reference, waiting until the socket takes more.
    Reference(Send<UringPlatform>),
    /// From a file, waiting until the socket takes more.
    File(SendFile<UringPlatform>),
    /// At most so many bytes of the connection's pipe, waiting until the socket takes more.
    Drain(usize),
    /// Nothing, after a recall, waiting until the socket takes more.
    Room,
}

/// See the module.
pub(super) struct Conn {
    pub(super) socket: Option<OwnedFd>,
    pub(super) id: ConnId,
    pub(super) recv: RecvState,
    /// Whether the shard wants bytes.
    pub(super) wants_bytes: bool,
    /// Whether `Close` was asked for.
    pub(super) closing: bool,
    /// Requests in the ring that name the socket.
    pub(super) requests: u32,
    pub(super) transfer: Transfer,
    /// Whether the transfer's memory was asked back.
    pub(super) recalled: bool,
    /// The connection's pipe, while there is something in it.
    pub(super) pipe: Option<Loaded>,
    message: libc::msghdr,
    iovecs: [libc::iovec; SEND_PARTS_MAX],
}

impl Conn {
    /// A free slot.
    pub(super) fn vacant(slot: u32) -> Self {
        Self {
            socket: None,
            id: ConnId { slot, generation: 0 },
            recv: RecvState::Idle,
            wants_bytes: false,
            closing: false,
            requests: 0,
            transfer: Transfer::None,
            recalled: false,
            pipe: None,
            message: EMPTY_MESSAGE,
            iovecs: [NO_IOVEC; SEND_PARTS_MAX],
        }
    }

    /// The slot's next connection.
    pub(super) fn open(&mut self, socket: OwnedFd) -> ConnId {
        assert!(self.socket.is_none(), "a connection slot is filled twice");
        assert_eq!(self.requests, 0, "a request outlived its connection");
        self.socket = Some(socket);
        self.recv = RecvState::Idle;
        self.wants_bytes = false;
        self.closing = false;
        self.recalled = false;
        self.id
    }

    /// Closes the socket; later keys and ids of this connection find nothing.
    pub(super) fn vacate(&mut self) -> ConnId {
        assert_eq!(self.requests, 0, "a socket is closed while requests name it");
        let id = self.id;
        self.socket = None;
        self.recv = RecvState::Idle;
        self.id.generation = self.id.generation.wrapping_add(1);
        id
    }

    /// The descriptor.
    ///
    /// # Panics
    /// If the slot is vacant.
    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_ref().expect("callers have checked that the slot is taken").as_raw_fd()
    }

    /// The key of this connection's requests of one kind.
    pub(super) fn key(&self, kind: Kind) -> Key {
        let generation = self.id.generation & super::slab::GENERATION_MASK;
        Key { kind, generation, index: self.id.slot }
    }

    /// Describes these parts of the transfer's memory for the kernel. The result points into this value, which must
    /// not move, and is valid until the transfer is replaced.
    pub(super) fn message(&mut self, parts: Range<usize>) -> *const libc::msghdr {
        let (Transfer::Memory(send) | Transfer::ZeroCopy(send, _)) = &self.transfer else {
            unreachable!("only memory has a message");
        };
        let count = parts.len();
        let mut skip = if parts.start == 0 { send.skip } else { 0 };
        for (iovec, part) in self.iovecs.iter_mut().zip(&send.parts[parts]) {
            let bytes = &part.as_ref()[skip..];
            skip = 0;
            *iovec = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        }
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = count;
        &raw const self.message
    }
}

/// Bytes that have left of a send that was taken back while it waited: none.
pub(super) fn left_before_recall(send: &Send<UringPlatform>) -> usize {
    let whole = || send.parts.iter().map(|part| part.as_ref().len()).sum::<usize>() - send.skip;
    if is_planted(Bug::CancelledCountsAsSent) { whole() } else { 0 }
}

const EMPTY_MESSAGE: libc::msghdr = libc::msghdr {
    msg_name: ptr::null_mut(),
    msg_namelen: 0,
    msg_iov: ptr::null_mut(),
    msg_iovlen: 0,
    msg_control: ptr::null_mut(),
    msg_controllen: 0,
    msg_flags: 0,
};
