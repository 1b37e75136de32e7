//! The driver without a ring: epoll, non-blocking `sendmsg` and `sendfile` on the shard's thread, and a small pool
//! of threads for the disk. It runs where io_uring is forbidden, and is the engine's own baseline.
//!
//! Connections are watched edge-triggered, once, so that a request costs one receive, one send and a
//! share of one `epoll_wait`. Cold bytes are read by the pool, never by the shard; only the mode
//! `sendfile`, which is meant for resident bytes, may wait for the page cache.

mod accept;
mod config;
mod connections;
mod disk_pool;
mod pipes;
mod recv;
#[cfg(test)]
mod tests;
mod transfer;
mod wait;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::fetch::{Mode, ModeSet};
use rohrpost_engine_core::ops::{ConnId, DiskOp, Driver, Event, NetOp, Now, Ops};
use rohrpost_engine_core::platform::Platform;
use rohrpost_engine_core::types::{Nanos, Timestamp};
use rustix::event::epoll;
use rustix::time::{ClockId, clock_gettime};

use crate::arena::{LinuxArena, LinuxChunk, LinuxLease, LinuxSlab, NOT_REPLACED, PageRound};
use crate::disk::LinuxDisk;
use crate::file::{LinuxFile, errno_of};
use crate::helper::ShardHelper;
use crate::inbox::{Inbox, ReplySink};
use crate::net::{Listener, block_sigpipe};
use crate::reference::Reference;
use crate::stats::DriverStats;
use accept::{Accepting, watch_listener};
use connections::{Connection, Connections, Transfer, from_data};
use disk_pool::DiskPool;
use pipes::Pipes;
use recv::RecvPool;
use transfer::{continue_transfer, ended, receive_once};
use wait::wait_for;

pub use config::PollConfig;
pub use recv::PollRecvBuf;

/// Events taken from the kernel in one turn.
const EVENTS_MAX: usize = 256;

const DATA_LISTENER: u64 = u64::MAX;
const DATA_INBOX: u64 = u64::MAX - 1;

/// The types of the `poll` driver.
#[derive(Clone, Copy, Debug)]
pub struct PollPlatform;

impl Platform for PollPlatform {
    type Disk = LinuxDisk;
    type File = LinuxFile;
    type Arena = LinuxArena;
    type Slab = LinuxSlab;
    type Chunk = LinuxChunk;
    type Lease = LinuxLease;
    type RecvBuf = PollRecvBuf;

    const MODES: ModeSet = ModeSet::of(Mode::ALL).without(&[Mode::SendZc, Mode::DirectSendZc]);
}

/// The driver cannot start or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("poll driver: cannot {action}: {errno}{}", errno.remedy())]
pub struct PollError {
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

/// Executes a shard's operations by epoll; see [`Driver`].
pub struct PollDriver {
    epoll: OwnedFd,
    inbox: Inbox<PollPlatform>,
    helper: ShardHelper<PollPlatform>,
    pages: PageRound,
    replies: Box<dyn ReplySink<PollPlatform>>,
    pool: DiskPool<PollPlatform>,
    pipes: Pipes,
    listener: Option<Listener>,
    accepting: Accepting,
    connections: Connections,
    /// `None` where no pipe is to be had: then nothing is sent by reference.
    reference: Option<Reference>,
    recv_pool: RecvPool,
    /// Connections to receive from in this turn, and those found in it for the next.
    ready: Vec<ConnId>,
    ready_next: Vec<ConnId>,
    kernel_events: Vec<epoll::Event>,
    stats: DriverStats,
    kernel_entries: u64,
}

impl PollDriver {
    /// A driver for the shard that the calling thread will run: `SIGPIPE` is blocked on this thread, as
    /// `sendfile` to a closed connection raises it.
    ///
    /// # Errors
    /// [`PollError`], mostly for lack of descriptors or threads.
    pub fn new(
        config: PollConfig,
        listener: Option<Listener>,
        inbox: Inbox<PollPlatform>,
        helper: ShardHelper<PollPlatform>,
        replies: Box<dyn ReplySink<PollPlatform>>,
    ) -> Result<Self, PollError> {
        let failed = |action| move |errno| PollError { action, errno: errno_of(errno) };
        let failed_io =
            |action| move |error: io::Error| PollError { action, errno: crate::file::errno_of_io(&error) };
        block_sigpipe().map_err(failed("block SIGPIPE"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("open an epoll"))?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, inbox.wake_fd(), epoll::EventData::new_u64(DATA_INBOX), edge)
            .map_err(failed("watch the inbox"))?;
        if let Some(listener) = &listener {
            watch_listener(&epoll, listener).map_err(failed("watch the listener"))?;
        }
        let pool = DiskPool::start(config.read_threads, config.write_threads, &inbox.mailbox())
            .map_err(failed_io("start the disk threads"))?;
        Ok(Self {
            epoll,
            inbox,
            pages: PageRound::default(),
            stats: DriverStats::new(helper.replaced_len()),
            helper,
            replies,
            pool,
            pipes: Pipes::new(),
            listener,
            accepting: Accepting::Watched,
            connections: Connections::new(config.connections_max),
            reference: Reference::open().ok(),
            recv_pool: RecvPool::new(config.recv_buf_len, config.recv_buf_count),
            ready: Vec::with_capacity(EVENTS_MAX),
            ready_next: Vec::with_capacity(EVENTS_MAX),
            kernel_events: Vec::with_capacity(EVENTS_MAX),
            kernel_entries: 0,
        })
    }

    /// The driver's counters.
    pub fn stats(&self) -> DriverStats {
        self.stats.clone()
    }

    fn execute(&mut self, ops: &mut Ops<PollPlatform>, events: &mut Vec<Event<PollPlatform>>) {
        self.stats.add_writes(&ops.disk);
        for op in ops.disk.drain(..) {
            match op {
                DiskOp::Fill(fill) => self.pipes.start(fill, &mut self.connections, &self.pool, events),
                op => self.pool.submit(op),
            }
        }
        for op in ops.net.drain(..) {
            match op {
                NetOp::Receive(id) => self.receive(id),
                NetOp::Pause(id) => self.pause(id),
                NetOp::Send(send) => self.start_transfer(send.conn, Transfer::Send(send), events),
                NetOp::SendFile(send) => self.start_transfer(send.conn, Transfer::File(send), events),
                NetOp::Drain { conn, len } => self.start_transfer(conn, Transfer::Drain(len), events),
                NetOp::Recall(id) => self.recall(id, events),
                NetOp::Close(id) => self.close(id, events),
            }
        }
        for (token, step) in ops.steps.drain(..) {
            self.helper.submit_step(token, step);
        }
        for (ticket, reply) in ops.replies.drain(..) {
            self.replies.reply(ticket, reply);
        }
        self.inbox.send(&mut ops.to_shards);
        if std::mem::take(&mut ops.grow) {
            self.helper.grow();
        }
        self.pages.take_wanted(|pages| self.helper.replace(pages));
    }

    fn receive(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.receiving = true;
            list_if_ready(connection, id, &mut self.ready_next);
        }
    }

    fn pause(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.receiving = false;
        }
    }

    fn close(&mut self, id: ConnId, events: &mut Vec<Event<PollPlatform>>) {
        let Some(connection) = self.connections.remove(id) else {
            return;
        };
        if let Some(transfer) = connection.transfer.filter(|transfer| !matches!(transfer, Transfer::Room)) {
            events.push(ended(id, transfer, Err(Errno::CANCELED)));
        }
        self.kernel_entries += 1;
        drop(connection.socket);
        if let Some(loaded) = connection.pipe {
            self.pipes.pool.unload(loaded);
        }
        // A fill still to end is answered first.
        if !self.pipes.is_filling(id) {
            self.closed(id, events);
        }
    }

    fn closed(&mut self, id: ConnId, events: &mut Vec<Event<PollPlatform>>) {
        self.connections.free(id);
        events.push(Event::Closed(id));
        self.resume_accepting();
    }

    /// Waits for the kernel; with something to do already, only looks.
    fn wait(&mut self, something: bool, deadline: Option<Nanos>) -> Result<(), PollError> {
        let receivable = !self.ready_next.is_empty() && self.recv_pool.has_room();
        let busy = something || receivable || self.inbox.prepare_wait();
        let deadline = match self.accepting {
            Accepting::Short { until } => Some(deadline.map_or(until, |deadline| deadline.min(until))),
            Accepting::Watched | Accepting::Full => deadline,
        };
        let timeout = if busy { Some(0) } else { deadline.map(|at| at.get().saturating_sub(mono().get())) };
        let waited = wait_for(&self.epoll, &mut self.kernel_events, timeout.map(Duration::from_nanos));
        self.inbox.after_wait();
        self.kernel_entries +=
            waited.map_err(|errno| PollError { action: "wait for events", errno: errno_of(errno) })?;
        Ok(())
    }

    fn handle_kernel_events(&mut self, events: &mut Vec<Event<PollPlatform>>) {
        for at in 0..self.kernel_events.len() {
            let event = self.kernel_events[at];
            match event.data.u64() {
                DATA_INBOX => {}
                DATA_LISTENER => self.accept(events),
                data => self.handle_edge(from_data(data), event.flags, events),
            }
        }
        if let Accepting::Short { until } = self.accepting
            && mono() >= until
        {
            self.resume_accepting();
        }
    }

    fn handle_edge(&mut self, id: ConnId, flags: epoll::EventFlags, events: &mut Vec<Event<PollPlatform>>) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        if failed || flags.contains(epoll::EventFlags::RDHUP) {
            connection.ended = true;
        }
        if connection.ended || flags.contains(epoll::EventFlags::IN) {
            connection.readable = true;
            list_if_ready(connection, id, &mut self.ready_next);
        }
        if (failed || flags.contains(epoll::EventFlags::OUT))
            && let Some(transfer) = connection.transfer.take()
        {
            self.kernel_entries += 1;
            continue_transfer(connection, &mut self.pipes, &mut self.reference, id, transfer, events);
        }
    }

    fn take_messages(&mut self, events: &mut Vec<Event<PollPlatform>>) {
        let first = events.len();
        self.inbox.drain(events);
        self.pages.watch_grown(&events[first..]);
        if self.pages.take_backed(|_| {}) {
            self.replies.remark(&NOT_REPLACED);
        }
    }

    /// Receives once from every connection that has something; the rest of it waits for the next turn.
    fn receive_ready(&mut self, events: &mut Vec<Event<PollPlatform>>) {
        std::mem::swap(&mut self.ready, &mut self.ready_next);
        for at in 0..self.ready.len() {
            let id = self.ready[at];
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            connection.listed = false;
            if !connection.receiving {
                continue;
            }
            // Without a buffer it stays listed; one is free again when the core has dropped it.
            if let Some(buffer) = self.recv_pool.take() {
                self.kernel_entries += 1;
                if let Some(bytes) = receive_once(connection, buffer) {
                    events.push(Event::Received { conn: id, bytes });
                }
            }
            list_if_ready(connection, id, &mut self.ready_next);
        }
        self.ready.clear();
    }
}

impl Driver for PollDriver {
    type Platform = PollPlatform;
    type Error = PollError;

    fn modes(&self) -> ModeSet {
        match self.reference {
            Some(_) => PollPlatform::MODES,
            None => PollPlatform::MODES.without(&[Mode::SendRef]),
        }
    }

    fn now(&self) -> Now {
        let wall = clock_gettime(ClockId::Realtime);
        Now { mono: mono(), wall: Timestamp::new(wall.tv_sec * 1000 + wall.tv_nsec / 1_000_000) }
    }

    fn turn(
        &mut self,
        ops: &mut Ops<PollPlatform>,
        events: &mut Vec<Event<PollPlatform>>,
        deadline: Option<Nanos>,
    ) -> Result<(), PollError> {
        self.execute(ops, events);
        self.wait(!events.is_empty(), deadline)?;
        self.handle_kernel_events(events);
        self.receive_ready(events);
        let first = events.len();
        self.take_messages(events);
        self.finish_fills(first, events);
        let inline = std::mem::take(&mut self.kernel_entries) + std::mem::take(&mut self.pipes.pool.calls);
        self.stats.add_turn(inline);
        Ok(())
    }
}

fn mono() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    Nanos::new(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

fn list_if_ready(connection: &mut Connection, id: ConnId, list: &mut Vec<ConnId>) {
    if connection.receiving && connection.readable && !connection.listed {
        connection.listed = true;
        list.push(id);
    }
}
