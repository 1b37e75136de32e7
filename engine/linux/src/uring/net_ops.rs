//! Connections: receiving, sending, closing.
//!
//! Owns the table of connections and the receive buffers. Always holds: bytes leave a connection in
//! the order asked for, because one transfer at most is under way; a receive that found no buffer is
//! armed again as soon as one is free; `Closed` comes after every other event of its connection.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use io_uring::{opcode, squeue, types};
use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, NetOp, Send, SendHow};

use super::UringPlatform;
use super::conn::{Conn, RecvState, Transfer, left_before_recall};
use super::features::{Feature, FeatureSet};
use super::pipe_ops::PipeTable;
use super::recv::{BUFFER_GROUP, RecvBuf, RecvPool};
use super::ring::{Cqe, Ring, RingError};
use super::slab::{Key, Kind};
use super::socket::receive_now;
use super::zero_copy::ZeroCopies;
use crate::reference::Reference;

pub(super) type Events = Vec<Event<UringPlatform>>;

/// Whether the ring still works.
pub(super) type Outcome = Result<(), RingError>;

/// See the module.
pub(super) struct ConnTable {
    /// Allocated once for `capacity`, so that nothing in it moves: the kernel reads message headers in it.
    pub(super) conns: Vec<Conn>,
    free: Vec<u32>,
    capacity: usize,
    starved: VecDeque<ConnId>,
    pool: RecvPool,
    pub(super) reference: Option<Reference>,
    pub(super) features: FeatureSet,
    pub(super) pipes: PipeTable,
    pub(super) zero_copies: ZeroCopies,
    /// Requests in the ring, over all connections.
    pub(super) requests: usize,
    /// Receives that found no free buffer.
    pub(super) starved_count: u64,
    /// System calls made beside the ring.
    pub(super) inline_count: u64,
}

impl ConnTable {
    /// A table for `capacity` connections.
    pub(super) fn new(
        capacity: usize,
        pool: RecvPool,
        reference: Option<Reference>,
        features: FeatureSet,
    ) -> Self {
        Self {
            conns: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
            starved: VecDeque::with_capacity(capacity),
            pool,
            reference,
            features,
            pipes: PipeTable::new(),
            zero_copies: ZeroCopies::new(),
            requests: 0,
            starved_count: 0,
            inline_count: 0,
        }
    }

    /// Bytes of memory that a table for `capacity` connections takes, with its pipes and zero-copy sends.
    pub(super) const fn memory_len(capacity: usize) -> usize {
        let conns = table_len::<Conn>(capacity) + table_len::<u32>(capacity) + table_len::<ConnId>(capacity);
        conns + PipeTable::memory_len() + ZeroCopies::memory_len()
    }

    /// Whether another connection fits.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.conns.len() < self.capacity
    }

    /// Requests whose last completion is still to come.
    pub(super) fn live_count(&self) -> usize {
        self.requests
    }

    /// Connections.
    pub(super) fn open_count(&self) -> usize {
        self.conns.len() - self.free.len()
    }

    /// Adds a connection; gives the socket back when the table is full.
    pub(super) fn open(&mut self, socket: OwnedFd) -> Result<ConnId, OwnedFd> {
        if !self.has_room() {
            return Err(socket);
        }
        let slot = self.free.pop().unwrap_or(self.conns.len() as u32);
        if slot as usize == self.conns.len() {
            assert!(slot < self.capacity as u32, "a table that grows would move");
            self.conns.push(Conn::vacant(slot));
        }
        Ok(self.conns[slot as usize].open(socket))
    }

    pub(super) fn find(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.slot as usize)?;
        (conn.id == id && conn.socket.is_some()).then_some(conn)
    }

    /// Starts an operation; what ends on the spot is reported at once.
    pub(super) fn push(&mut self, ring: &mut Ring, op: NetOp<UringPlatform>, events: &mut Events) -> Outcome {
        match op {
            NetOp::Receive(id) => self.receive(ring, id),
            NetOp::Pause(id) => self.pause(ring, id),
            NetOp::Send(send) => self.send(ring, send, events),
            NetOp::SendFile(file) => self.send_file(ring, file, events),
            NetOp::Drain { conn, len } => self.drain(ring, conn, len, events),
            NetOp::Recall(id) => self.recall(ring, id, events),
            NetOp::Close(id) => self.close(ring, id, events),
        }
    }

    fn receive(&mut self, ring: &mut Ring, id: ConnId) -> Outcome {
        let Some(conn) = self.find(id) else { return Ok(()) };
        if conn.closing {
            return Ok(());
        }
        conn.wants_bytes = true;
        if conn.recv == RecvState::Idle { self.arm_recv(ring, id.slot) } else { Ok(()) }
    }

    fn pause(&mut self, ring: &mut Ring, id: ConnId) -> Outcome {
        let kind = self.recv_kind();
        let Some(conn) = self.find(id) else { return Ok(()) };
        conn.wants_bytes = false;
        match conn.recv {
            RecvState::Starved => conn.recv = RecvState::Idle,
            RecvState::Armed => {
                conn.recv = RecvState::Cancelling;
                let builder = types::CancelBuilder::user_data(conn.key(kind).encode());
                let entry = opcode::AsyncCancel2::new(builder).build();
                return self.submit(ring, id.slot, Kind::ConnCancel, entry);
            }
            RecvState::Idle | RecvState::Cancelling => {}
        }
        Ok(())
    }

    fn recv_kind(&self) -> Kind {
        if self.features.has(Feature::BufRing) { Kind::Recv } else { Kind::RecvPoll }
    }

    fn arm_recv(&mut self, ring: &mut Ring, slot: u32) -> Outcome {
        let buffer_len = self.pool.buffer_len() as u32;
        let conn = &mut self.conns[slot as usize];
        conn.recv = RecvState::Armed;
        let socket = types::Fd(conn.fd());
        let entry = if self.features.has(Feature::MultishotRecv) {
            opcode::RecvMulti::new(socket, BUFFER_GROUP).build()
        } else if self.features.has(Feature::BufRing) {
            let request = opcode::Recv::new(socket, std::ptr::null_mut(), buffer_len);
            request.buf_group(BUFFER_GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::PollAdd::new(socket, (libc::POLLIN | libc::POLLRDHUP) as u32).build()
        };
        self.submit(ring, slot, self.recv_kind(), entry)
    }

    /// Arms the receives that found no buffer, as far as buffers have come back.
    pub(super) fn feed_starved(&mut self, ring: &mut Ring) -> Outcome {
        for _ in 0..self.starved.len().min(self.pool.free_count()) {
            let Some(id) = self.starved.pop_front() else { break };
            if self.find(id).is_some_and(|conn| conn.recv == RecvState::Starved) {
                self.arm_recv(ring, id.slot)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, ring: &mut Ring, send: Send<UringPlatform>, events: &mut Events) -> Outcome {
        let id = send.conn;
        let Some(conn) = self.find(id).filter(|conn| !conn.closing) else {
            events.push(Event::Sent { result: Err(Errno::CONNRESET), send });
            return Ok(());
        };
        assert!(matches!(conn.transfer, Transfer::None), "two transfers on {id:?}");
        if send.how == SendHow::ZeroCopy && self.features.has(Feature::SendmsgZc) {
            return self.send_zero_copy(ring, send, events);
        }
        if send.how == SendHow::Reference && self.reference.is_some() {
            return self.continue_transfer(ring, id.slot, Transfer::Reference(send), events);
        }
        let all = 0..send.parts.len();
        self.send_parts(ring, send, all)
    }

    /// Submits some parts of a send, to be copied into the socket.
    pub(super) fn send_parts(
        &mut self,
        ring: &mut Ring,
        send: Send<UringPlatform>,
        parts: Range<usize>,
    ) -> Outcome {
        let id = send.conn;
        let conn = &mut self.conns[id.slot as usize];
        let more = if send.more || parts.end < send.parts.len() { libc::MSG_MORE } else { 0 };
        conn.transfer = Transfer::Memory(send);
        let message = conn.message(parts);
        let request = opcode::SendMsg::new(types::Fd(conn.fd()), message);
        let entry = request.flags((libc::MSG_NOSIGNAL | more) as u32).build();
        self.submit(ring, id.slot, Kind::Send, entry)
    }

    /// Ends a send that waits for the peer.
    fn recall(&mut self, ring: &mut Ring, id: ConnId, events: &mut Events) -> Outcome {
        let Some(conn) = self.find(id).filter(|conn| !conn.closing) else { return Ok(()) };
        if let Transfer::Memory(_) = conn.transfer {
            conn.recalled = true;
            let builder = types::CancelBuilder::user_data(conn.key(Kind::Send).encode());
            let entry = opcode::AsyncCancel2::new(builder).build();
            return self.submit(ring, id.slot, Kind::ConnCancel, entry);
        }
        match std::mem::replace(&mut conn.transfer, Transfer::None) {
            // It has just ended by itself.
            Transfer::None => self.await_room(ring, id.slot),
            // It waits beside the ring already.
            Transfer::Reference(send) => {
                conn.transfer = Transfer::Room;
                events.push(Event::Sent { result: Ok(0), send });
                Ok(())
            }
            _ => unreachable!("only sends from memory are recalled"),
        }
    }

    fn close(&mut self, ring: &mut Ring, id: ConnId, events: &mut Events) -> Outcome {
        let Some(conn) = self.find(id).filter(|conn| !conn.closing) else { return Ok(()) };
        conn.closing = true;
        conn.wants_bytes = false;
        if conn.requests > 0 {
            // Ends sends and receives that wait for the peer; a peer already gone has ended them.
            if let Some(socket) = &conn.socket {
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            }
            let builder = types::CancelBuilder::fd(types::Fd(conn.fd())).all();
            let entry = opcode::AsyncCancel2::new(builder).build();
            self.submit(ring, id.slot, Kind::ConnCancel, entry)?;
        }
        self.close_if_quiet(id.slot, events);
        Ok(())
    }

    pub(super) fn close_if_quiet(&mut self, slot: u32, events: &mut Events) {
        let conn = &mut self.conns[slot as usize];
        if conn.closing && conn.requests == 0 {
            if let Some(loaded) = conn.pipe.take() {
                self.pipes.pool.unload(loaded);
            }
            events.push(Event::Closed(conn.vacate()));
            self.free.push(slot);
        }
    }

    /// Closes every connection; for the end of the driver.
    pub(super) fn close_all(&mut self, ring: &mut Ring, events: &mut Events) -> Outcome {
        for index in 0..self.conns.len() {
            let id = self.conns[index].id;
            self.close(ring, id, events)?;
        }
        Ok(())
    }

    /// Gives up the memory of everything under way, for when the kernel may still use it.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.conns));
        self.leak_zero_copies();
        std::mem::forget(std::mem::replace(&mut self.pipes, PipeTable::new()));
        std::mem::forget(self.pool.clone());
    }

    pub(super) fn submit(&mut self, ring: &mut Ring, slot: u32, kind: Kind, entry: squeue::Entry) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        conn.requests += 1;
        self.requests += 1;
        let entry = entry.user_data(conn.key(kind).encode());
        // SAFETY: [U20] the connection, which never moves, owns the socket, the message header and the transfer's
        // memory until `requests` says that the last completion has come.
        unsafe { ring.push(&entry) }
    }

    /// Takes a completion of one of the connections' requests.
    pub(super) fn complete(&mut self, ring: &mut Ring, key: Key, cqe: Cqe, events: &mut Events) -> Outcome {
        if key.kind == Kind::ZeroCopy {
            return self.complete_zero_copy(ring, key, cqe, events);
        }
        let Some(conn) = self.conns.get_mut(key.index as usize).filter(|conn| conn.key(key.kind) == key)
        else {
            debug_assert!(false, "a completion outlived its connection: {key:?}");
            return Ok(());
        };
        if !cqe.more() {
            conn.requests -= 1;
            self.requests -= 1;
        }
        match key.kind {
            Kind::Send => self.complete_send(ring, key.index, cqe, events)?,
            Kind::WritablePoll => self.complete_writable(ring, key.index, events)?,
            Kind::Recv => self.complete_recv(ring, key.index, cqe, events)?,
            Kind::RecvPoll => self.complete_readable(ring, key.index, cqe, events)?,
            _ => {}
        }
        self.close_if_quiet(key.index, events);
        Ok(())
    }

    fn complete_send(&mut self, ring: &mut Ring, slot: u32, cqe: Cqe, events: &mut Events) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        let Transfer::Memory(send) = std::mem::replace(&mut conn.transfer, Transfer::None) else {
            unreachable!("a send completed that is not under way");
        };
        let result = match cqe.outcome() {
            // Interrupted before the first byte: nothing was taken, nothing is wrong.
            Err(Errno(libc::EINTR) | Errno::AGAIN) if !conn.closing => Ok(0),
            Err(_) if conn.closing => Err(Errno::CANCELED),
            Err(Errno::CANCELED) if conn.recalled => Ok(left_before_recall(&send)),
            result => result,
        };
        events.push(Event::Sent { result, send });
        if conn.recalled && !conn.closing { self.await_room(ring, slot) } else { Ok(()) }
    }

    fn complete_recv(&mut self, ring: &mut Ring, slot: u32, cqe: Cqe, events: &mut Events) -> Outcome {
        let outcome = cqe.outcome();
        // Lent first, so that it returns to the ring on every path.
        let buffer = cqe.buffer().map(|index| self.pool.lend(index, outcome.unwrap_or(0)));
        if !cqe.more() {
            self.conns[slot as usize].recv = RecvState::Idle;
        }
        let bytes = match outcome {
            Ok(0) => Ok(RecvBuf::end_of_stream()),
            Ok(_) => Ok(buffer.expect("the kernel names the buffer it filled")),
            Err(errno) => Err(errno),
        };
        self.received(ring, slot, bytes, events)
    }

    fn complete_readable(&mut self, ring: &mut Ring, slot: u32, cqe: Cqe, events: &mut Events) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        conn.recv = RecvState::Idle;
        if let Err(errno) = cqe.outcome() {
            return self.received(ring, slot, Err(errno), events);
        }
        if !conn.wants_bytes {
            return Ok(());
        }
        let fd = conn.socket.as_ref().expect("a connection with requests has its socket").as_fd();
        let bytes = match self.pool.receive_with(|start, len| receive_now(fd, start, len)) {
            None => Err(Errno(libc::ENOBUFS)),
            Some(Ok(buffer)) if buffer.as_ref().is_empty() => Ok(RecvBuf::end_of_stream()),
            Some(result) => result,
        };
        self.inline_count += 1;
        self.received(ring, slot, bytes, events)
    }

    /// Passes on what a receive brought, and arms the next one where it is wanted.
    fn received(
        &mut self,
        ring: &mut Ring,
        slot: u32,
        bytes: Result<RecvBuf, Errno>,
        events: &mut Events,
    ) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        match bytes {
            Err(Errno(libc::ENOBUFS)) if conn.wants_bytes => {
                conn.recv = RecvState::Starved;
                self.starved.push_back(conn.id);
                self.starved_count += 1;
                self.pool.hand_over_more();
                return Ok(());
            }
            Err(Errno::CANCELED | Errno::AGAIN | Errno(libc::EINTR | libc::ENOBUFS)) => {}
            _ if conn.closing => {}
            bytes => {
                let last = bytes.as_ref().map_or(true, |buffer| buffer.as_ref().is_empty());
                conn.wants_bytes &= !last;
                events.push(Event::Received { conn: conn.id, bytes });
            }
        }
        let rearm = conn.wants_bytes && conn.recv == RecvState::Idle;
        if rearm { self.arm_recv(ring, slot) } else { Ok(()) }
    }
}
