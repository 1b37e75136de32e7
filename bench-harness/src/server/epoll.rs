//! The epoll loop that every baseline shares: accept, parse requests, answer in order, one transfer at a time
//! per connection. How a body gets from the log to the socket is the [`Delivery`], chosen at compile time.
//!
//! Edge-triggered with both directions registered once, so there is no epoll_ctl on the data path; a receive
//! that comes back short has emptied the socket, so a request costs one receive. No allocation per request.

use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv};
use rustix::time::Timespec;

use crate::corpus::{BodyRange, ResolveError, ServedLog};
use crate::error::{BenchError, Result};
use crate::server::Stats;
use crate::server::acks::Acks;
pub use crate::server::send::{send_from_memory, send_header};
use crate::server::source::Source;
use crate::sys;
use crate::wire::{HEADER_LEN, Opcode, PIPELINE_COUNT_MAX, Request, Response, Status};

/// Epoll data of the listener and of a delivery's wake-up descriptor; connections are numbered from 0.
const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
const SOURCE: u64 = u64::MAX - 2;
/// Bytes received at once: 32 requests.
const RECV_LEN: usize = 32 * HEADER_LEN;

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// `epoll_wait` rounds up to whole milliseconds; that does not matter to longer waits.
const SHORT_WAIT_MAX: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// What one attempt to move bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes of the transfer are in the socket.
    Done,
    /// The socket is full; try again when it drains.
    Blocked,
    /// The bytes are not there yet; the delivery's wake-up descriptor will tell.
    Waiting,
}

/// One response under way.
#[derive(Debug)]
pub struct Transfer {
    /// Number of the connection, stable while it is open.
    pub conn: usize,
    /// The response header.
    pub header: [u8; HEADER_LEN],
    /// Where the body lies.
    pub body: BodyRange,
    /// Bytes of header and body that are in the socket.
    pub sent: usize,
}

impl Transfer {
    /// Bytes of the body that are in the socket.
    pub fn body_sent(&self) -> usize {
        self.sent.saturating_sub(HEADER_LEN)
    }

    /// Whether everything is in the socket.
    pub fn is_done(&self) -> bool {
        self.sent == HEADER_LEN + self.body.len
    }
}

/// Moves one response onto its socket.
pub trait Delivery<L = ServedLog> {
    /// Called once per transfer, before the first `advance`.
    ///
    /// # Errors
    /// The connection is answered with a storage error.
    fn begin(&mut self, _transfer: &Transfer, _log: &L) -> io::Result<()> {
        Ok(())
    }

    /// Moves as many bytes as it can.
    ///
    /// # Errors
    /// The connection is closed: the response is half sent.
    fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        transfer: &mut Transfer,
        log: &L,
        stats: &Stats,
    ) -> io::Result<Progress>;

    /// A descriptor that becomes readable when a `Waiting` transfer can go on.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Appends the connections whose transfers can go on.
    fn drain_woken(&mut self, _conns: &mut Vec<usize>) {}

    /// The connection is gone, perhaps amid a transfer.
    fn closed(&mut self, _conn: usize) {}
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    pending: VecDeque<Request>,
    current: Option<Transfer>,
    waiting: bool,
    closing: bool,
    /// A fetch at the end of the log, and when its wait is over.
    parked: Option<(Request, u64)>,
    acks: Acks,
}

/// The loop.
pub struct EpollServer<D, L = ServedLog> {
    epoll: rustix::fd::OwnedFd,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    log: L,
    delivery: D,
    stats: Arc<Stats>,
    parked_count: usize,
}

impl<D: Delivery<L>, L: Source> EpollServer<D, L> {
    /// A server ready to run.
    ///
    /// # Errors
    /// `System` with the failing call.
    pub fn new(listener: TcpListener, log: L, delivery: D, stats: Arc<Stats>) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(BenchError::system("epoll_create"))?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)
            .map_err(BenchError::system("epoll_ctl"))?;
        if let Some(fd) = delivery.wake_fd() {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)
                .map_err(BenchError::system("epoll_ctl"))?;
        }
        if let Some(fd) = log.wake_fd() {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(SOURCE), epoll::EventFlags::IN)
                .map_err(BenchError::system("epoll_ctl"))?;
        }
        Ok(Self { epoll, listener, connections: Vec::new(), log, delivery, stats, parked_count: 0 })
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// `System` if the kernel refuses to wait.
    pub fn run(mut self) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        let mut woken = Vec::with_capacity(256);
        loop {
            if self.log.turn()? {
                self.unpark(false);
            }
            events.clear();
            let mut timeout = self.timeout();
            if let Some(short) = timeout.filter(|timeout| *timeout > NO_TIME && *timeout < SHORT_WAIT_MAX) {
                self.stats.entered(1);
                sys::sleep_exactly(&self.epoll, &short)?;
                timeout = Some(NO_TIME);
            }
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(BenchError::system("epoll_wait")(error)),
            }
            self.stats.entered(1);
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    // Its next turn takes note.
                    SOURCE => {}
                    WAKE => {
                        self.stats.entered(1);
                        self.delivery.drain_woken(&mut woken);
                        for conn in woken.drain(..) {
                            self.turn(conn, true, epoll::EventFlags::empty());
                        }
                    }
                    conn => self.turn(conn as usize, false, event.flags),
                }
            }
            if timeout.is_some() {
                self.unpark(true);
            }
        }
    }

    /// Until the first parked fetch must be answered or the log has something to do; `None` without either.
    fn timeout(&self) -> Option<Timespec> {
        let mut until = self.log.next_due_ns();
        if self.parked_count > 0 {
            let deadlines = self.connections.iter().flatten().filter_map(|connection| connection.parked);
            until = deadlines.map(|(_, deadline)| deadline).fold(until, u64::min);
        }
        if until == u64::MAX {
            return None;
        }
        let wait = until.saturating_sub(sys::now_ns());
        Some(Timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as i64 })
    }

    /// Goes on with parked fetches: all of them, or those whose wait is over.
    fn unpark(&mut self, expired_only: bool) {
        if self.parked_count == 0 {
            return;
        }
        let now = sys::now_ns();
        for conn in 0..self.connections.len() {
            let parked = self.connections[conn].as_ref().and_then(|connection| connection.parked);
            if parked.is_some_and(|(_, deadline)| !expired_only || deadline <= now) {
                self.turn(conn, true, epoll::EventFlags::empty());
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(BenchError::system("accept")(error)),
            };
            stream.set_nonblocking(true).map_err(BenchError::system("make a socket non-blocking"))?;
            let free = self.connections.iter().position(Option::is_none);
            let conn = free.unwrap_or(self.connections.len());
            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(conn as u64), flags)
                .map_err(BenchError::system("epoll_ctl"))?;
            let connection = Connection {
                stream,
                received: Vec::with_capacity(RECV_LEN + 4 * self.log.append_len_max()),
                pending: VecDeque::with_capacity(PIPELINE_COUNT_MAX),
                current: None,
                waiting: false,
                closing: false,
                parked: None,
                acks: Acks::default(),
            };
            match free {
                Some(at) => self.connections[at] = Some(connection),
                None => self.connections.push(Some(connection)),
            }
        }
    }

    /// One connection's turn: receive, then answer what can be answered.
    fn turn(&mut self, conn: usize, woken: bool, flags: epoll::EventFlags) {
        let Some(mut connection) = self.connections.get_mut(conn).and_then(Option::take) else { return };
        if woken {
            connection.waiting = false;
        }
        let hung_up = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        let readable = flags.contains(epoll::EventFlags::IN);
        if !hung_up
            && (!readable || receive(&mut connection, &mut self.log, &self.stats))
            && self.answer(conn, &mut connection)
        {
            self.connections[conn] = Some(connection);
        } else {
            self.parked_count -= usize::from(connection.parked.is_some());
            self.delivery.closed(conn);
            self.log.closed(conn);
        }
    }

    /// Returns whether the connection stays open.
    fn answer(&mut self, conn: usize, connection: &mut Connection) -> bool {
        while !connection.waiting {
            if connection.current.is_none() {
                let parked = connection.parked.take();
                self.parked_count -= usize::from(parked.is_some());
                let next = parked.or_else(|| connection.pending.pop_front().map(|request| (request, 0)));
                let Some((request, deadline)) = next else { break };
                let now_or_later = self.park(&request, deadline);
                if now_or_later > 0 {
                    connection.parked = Some((request, now_or_later));
                    self.parked_count += 1;
                    connection.waiting = true;
                    break;
                }
                if request.opcode == Opcode::Append && self.log.append_len_max() > 0 {
                    connection.acks.push(&self.appended(&request));
                    self.stats.responded();
                    continue;
                }
                connection.current = Some(self.begin(conn, &request));
            }
            let Some(transfer) = &mut connection.current else { break };
            let socket = connection.stream.as_fd();
            let moved = if !matches!(connection.acks.flush(socket, &self.stats), Ok(true)) {
                Ok(Progress::Blocked)
            } else if transfer.body.len == 0 {
                send_header(socket, transfer, SendFlags::empty(), &self.stats)
                    .map(|all| if all { Progress::Done } else { Progress::Blocked })
            } else {
                self.delivery.advance(socket, transfer, &self.log, &self.stats)
            };
            match moved {
                Ok(Progress::Done) => {
                    debug_assert!(transfer.is_done());
                    self.stats.responded();
                    connection.current = None;
                }
                Ok(Progress::Blocked) => return true,
                Ok(Progress::Waiting) => connection.waiting = true,
                Err(_) => return false,
            }
        }
        if connection.acks.flush(connection.stream.as_fd(), &self.stats).is_err() {
            return false;
        }
        // A request that could not be understood was answered; nothing after it can be.
        !(connection.closing && connection.current.is_none() && connection.pending.is_empty())
    }

    /// Until when a fetch has to wait for more of the log; 0 if it can be answered. `deadline` is 0 for a
    /// fetch that has not waited yet.
    fn park(&self, request: &Request, deadline: u64) -> u64 {
        if request.opcode == Opcode::Append && request.offset >= self.log.high_watermark(request.partition) {
            return if self.log.append_len_max() > 0 { u64::MAX } else { 0 };
        }
        let at_end =
            request.opcode == Opcode::Fetch && request.offset == self.log.high_watermark(request.partition);
        if !at_end || request.max_wait_ms == 0 {
            return 0;
        }
        let now = sys::now_ns();
        let until = if deadline > 0 { deadline } else { now + u64::from(request.max_wait_ms) * 1_000_000 };
        if until > now { until } else { 0 }
    }

    /// The answer to an append that has ended; one that failed has no offset.
    fn appended(&self, request: &Request) -> Response {
        match request.offset {
            -1 => Response::refused(request, Status::StorageError),
            _ => Response::ok(request, 0, self.log.high_watermark(request.partition)),
        }
    }

    fn begin(&mut self, conn: usize, request: &Request) -> Transfer {
        let empty = |response: Response| Transfer {
            conn,
            header: response.encode(),
            body: BodyRange::default(),
            sent: 0,
        };
        match request.opcode {
            Opcode::Ping if request.partition == u32::MAX => return empty(Response::bad_request()),
            Opcode::Ping => {
                return empty(Response::ok(request, 0, self.log.high_watermark(request.partition)));
            }
            Opcode::Append => return empty(Response::refused(request, Status::Unsupported)),
            Opcode::Fetch => {}
        }
        if request.partition >= self.log.partition_count() {
            return empty(Response::refused(request, Status::UnknownPartition));
        }
        self.log.fetched(conn, request);
        let body = match self.log.resolve(request.partition, request.offset, request.max_bytes as usize) {
            Ok(body) => body,
            Err(ResolveError::OutOfRange) => {
                return empty(Response::refused(request, Status::OffsetOutOfRange));
            }
            Err(_) => return empty(Response::refused(request, Status::StorageError)),
        };
        let response = Response::ok(request, body.len as u32, self.log.high_watermark(request.partition));
        let transfer = Transfer { conn, header: response.encode(), body, sent: 0 };
        if body.len > 0 && self.delivery.begin(&transfer, &self.log).is_err() {
            return empty(Response::refused(request, Status::StorageError));
        }
        transfer
    }
}

/// Receives and parses what there is. Returns whether the connection stays open.
fn receive(connection: &mut Connection, log: &mut impl Source, stats: &Stats) -> bool {
    loop {
        let room = connection.received.capacity() - connection.received.len();
        let got =
            match recv(&connection.stream, spare_capacity(&mut connection.received), RecvFlags::DONTWAIT) {
                Ok((n, _)) => n,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => continue,
                Err(_) => return false,
            };
        stats.entered(1);
        if got == 0 {
            return false;
        }
        let mut at = 0;
        while let Some(header) = connection.received[at..].first_chunk::<HEADER_LEN>() {
            if connection.closing {
                return true;
            }
            match Request::decode(header) {
                Ok(mut request) if request.opcode == Opcode::Append && log.append_len_max() > 0 => {
                    let len = request.body_len as usize;
                    let Some(batch) = connection.received.get_mut(at + HEADER_LEN..at + HEADER_LEN + len)
                    else {
                        // A longer one would never fit.
                        if len > log.append_len_max() {
                            return false;
                        }
                        break;
                    };
                    request.offset = log.append(request.partition, batch).unwrap_or(-1);
                    connection.pending.push_back(request);
                    at += len;
                }
                Ok(request) if connection.pending.len() < PIPELINE_COUNT_MAX => {
                    connection.closing = request.body_len > 0;
                    connection.pending.push_back(request);
                }
                Ok(_) => return false,
                Err(_) => {
                    let request = Request { partition: u32::MAX, ..Request::fetch(0, -1, 1) };
                    connection.pending.push_back(Request { opcode: Opcode::Ping, ..request });
                    connection.closing = true;
                }
            }
            at += HEADER_LEN;
        }
        connection.received.drain(..at);
        if got < room {
            return true;
        }
    }
}
