//! Simulated connections: bytes arrive in pieces of any length, sends are taken in part, peers reset, what was sent
//! without a copy is read late, pipes are refused. Owns both directions of every connection, its pipe, and the sends
//! under way.
//!
//! Always holds: bytes of one direction keep their order; one transfer per connection at a time (a second one is the
//! core's bug); a closed connection's operations end before its `Closed`.

use std::collections::{BTreeMap, VecDeque};

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, Fill, NetOp, Send, SendFile, SendHow, SendPart};

use crate::coverage::Harm;
use crate::disk::SimDisk;
use crate::fault::Delays;
use crate::memory::SimLease;
use crate::platform::{SimPlatform, SimRecvBuf};
use crate::prng::Prng;
use crate::slab::Reference;

/// Longest piece in which bytes arrive.
const PIECE_LEN_MAX: usize = 4096;

/// How long a slow peer may take, nanoseconds.
const SLOW_NS_MAX: u64 = 100_000_000;

enum Transfer {
    Memory(Box<Send<SimPlatform>>),
    File(SendFile<SimPlatform>),
    Drain(usize),
}

enum Job {
    Accept,
    Deliver,
    Finish(Transfer),
    Fill(Fill<SimPlatform>),
    /// The socket takes bytes again after a recall.
    Room,
    /// The kernel is done with what it read in place; the leases go.
    Forget(Vec<SimLease>),
    Close,
}

#[derive(Default)]
struct Conn {
    to_shard: VecDeque<u8>,
    to_client: Vec<u8>,
    /// Where bytes in `to_client` lie that were not copied.
    references: Vec<Reference>,
    accepted: bool,
    receiving: bool,
    delivering: bool,
    /// The client has closed its side; the shard hears of it after the last byte.
    client_done: bool,
    done_told: bool,
    reset: bool,
    transferring: bool,
    /// The transfer was recalled.
    recalled: bool,
    filling: bool,
    pipe: Vec<u8>,
    closing: bool,
    /// Everything of a connection that must keep its order happens no earlier than this.
    order: u64,
}

/// All connections of a shard.
pub struct Net {
    prng: Prng,
    conns: BTreeMap<ConnId, Conn>,
    generations: u32,
    seq: u64,
    jobs: BTreeMap<(u64, u64), (ConnId, Job)>,
    /// Chance in 65,536 that a fill finds no pipe.
    pub pipes_refused: u32,
    /// Chance in 65,536 that a new connection's peer is remote.
    pub remote: u32,
    /// Chance in 65,536 that a peer takes up to a tenth of a second to take a transfer.
    pub slow: u32,
}

impl Net {
    pub(crate) fn new(mut prng: Prng) -> Self {
        let (conns, jobs) = (BTreeMap::new(), BTreeMap::new());
        let slow = *prng.pick(&[0, 0, 2000, 30_000]);
        Self { prng, conns, generations: 0, seq: 0, jobs, pipes_refused: 8192, remote: 16_384, slow }
    }

    /// A client connects to slot `slot`, which must be free.
    pub fn connect(&mut self, slot: u32, now: u64) -> ConnId {
        assert!(!self.conns.keys().any(|conn| conn.slot == slot), "slot {slot} is in use");
        self.generations += 1;
        let conn = ConnId { slot, generation: self.generations };
        self.conns.insert(conn, Conn::default());
        self.push(conn, now, 50_000, Job::Accept);
        conn
    }

    /// The client sends bytes. They are lost if the connection is gone.
    pub fn client_send(&mut self, conn: ConnId, bytes: &[u8], now: u64) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.to_shard.extend(bytes);
            self.deliver_soon(conn, now);
        }
    }

    /// The client takes what has arrived; `None` once the connection is gone and nothing is left.
    pub fn client_receive(&mut self, conn: ConnId) -> Option<Vec<u8>> {
        let state = self.conns.get_mut(&conn)?;
        let intact = state.references.drain(..).all(|reference| reference.is_intact());
        assert!(intact, "what was sent by reference to {conn:?} was overwritten before the peer read it");
        Some(std::mem::take(&mut state.to_client))
    }

    /// The client closes its side in order, or resets the connection.
    pub fn client_close(&mut self, conn: ConnId, reset: bool, now: u64) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.client_done = true;
            state.reset |= reset;
            self.deliver_soon(conn, now);
        }
    }

    /// Whether the connection exists for the shard.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conns.contains_key(&conn)
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.jobs.keys().next().map(|(due, _)| *due)
    }

    pub(crate) fn abandon(&mut self) {
        self.jobs.clear();
        self.conns.clear();
    }

    pub(crate) fn submit(
        &mut self,
        ops: &mut Vec<NetOp<SimPlatform>>,
        disk: &SimDisk,
        now: u64,
        delays: &Delays,
    ) {
        for op in ops.drain(..) {
            match op {
                NetOp::Receive(conn) => {
                    if let Some(state) = self.conns.get_mut(&conn) {
                        state.receiving = true;
                        self.deliver_soon(conn, now);
                    }
                }
                NetOp::Pause(conn) => {
                    if let Some(state) = self.conns.get_mut(&conn) {
                        state.receiving = false;
                    }
                }
                NetOp::Send(send) => {
                    assert!(!send.parts.is_empty(), "a send of nothing");
                    assert!(
                        send.skip < send.parts[0].as_ref().len().max(1),
                        "a send that skips a whole part"
                    );
                    self.transfer(send.conn, Transfer::Memory(Box::new(send)), now, delays, disk);
                }
                NetOp::SendFile(send) => {
                    assert!(send.len > 0, "a send of nothing");
                    self.transfer(send.conn, Transfer::File(send), now, delays, disk);
                }
                NetOp::Drain { conn, len } => {
                    let held = self.conns.get(&conn).map_or(0, |state| state.pipe.len());
                    assert!(len > 0 && len <= held, "{len} of {held} bytes are to leave a pipe");
                    self.transfer(conn, Transfer::Drain(len), now, delays, disk);
                }
                NetOp::Recall(conn) => self.recall(conn, now, delays, disk),
                NetOp::Close(conn) => {
                    if let Some(state) = self.conns.get_mut(&conn) {
                        assert!(!state.closing, "{conn:?} is closed twice");
                        (state.closing, state.reset, state.receiving) = (true, true, false);
                        self.push(conn, now, 20_000, Job::Close);
                    }
                }
            }
        }
    }

    /// The send under way ends now, with what it happens to have sent; then the peer takes its time.
    fn recall(&mut self, conn: ConnId, now: u64, delays: &Delays, disk: &SimDisk) {
        let Some(state) = self.conns.get_mut(&conn).filter(|state| !state.closing) else { return };
        disk.storage().trace.note("recall", &[conn.slot.into(), u64::from(state.transferring)]);
        state.recalled = state.transferring;
        if state.transferring {
            let of_conn = |(_, (at, job)): &(&(u64, u64), &(ConnId, Job))| {
                *at == conn && matches!(job, Job::Finish(Transfer::Memory(_)))
            };
            let key = self.jobs.iter().find(of_conn).map(|(key, _)| *key).expect("a send from memory");
            let finish = self.jobs.remove(&key).expect("just found");
            self.jobs.insert((now, key.1), finish);
        }
        let delay = delays.draw(&mut self.prng);
        self.push(conn, now + 1, delay, Job::Room);
    }

    fn transfer(&mut self, conn: ConnId, transfer: Transfer, now: u64, delays: &Delays, disk: &SimDisk) {
        let state = self.conns.get_mut(&conn).expect("a send onto a connection that is gone");
        assert!(!state.transferring, "two transfers at a time on {conn:?}");
        assert!(!state.closing, "a send after the close of {conn:?}");
        state.transferring = true;
        let (kind, skip) = match &transfer {
            Transfer::Memory(send) => (send.parts.len() as u64, send.skip as u64),
            Transfer::File(send) => (0, send.position.get()),
            Transfer::Drain(len) => (0, *len as u64),
        };
        disk.storage().trace.note("send", &[conn.slot.into(), kind, skip]);
        let slow = u64::from(self.prng.chance(self.slow));
        let delay = delays.draw(&mut self.prng) + slow * SLOW_NS_MAX;
        self.push(conn, now, delay, Job::Finish(transfer));
    }

    /// Fills a connection's pipe, in a while.
    pub(crate) fn fill(&mut self, fill: Fill<SimPlatform>, now: u64, delay: u64) {
        let conn = fill.conn;
        let state = self.conns.get_mut(&conn).expect("a fill for a connection that is gone");
        assert!(!state.filling && state.pipe.is_empty(), "a pipe of {conn:?} is filled twice");
        assert!(fill.len > 0 && !state.closing, "a fill of nothing, or after the close");
        state.filling = true;
        self.push(conn, now, delay, Job::Fill(fill));
    }

    fn finish_fill(&mut self, fill: &Fill<SimPlatform>, disk: &SimDisk) -> Event<SimPlatform> {
        let (token, asked) = (fill.token, fill.len);
        let refused = self.prng.chance(self.pipes_refused);
        // Pipes hold what they hold.
        let len = self.prng.range(1, fill.len as u64) as usize;
        let state = self.conns.get_mut(&fill.conn).expect("Closed comes after the fill");
        state.filling = false;
        let inode = fill.file.description().inode;
        let read = if refused {
            disk.storage().suffer(Harm::PipeRefused);
            Err(Errno::AGAIN)
        } else {
            disk.storage().read_for_socket(inode, fill.position.get(), asked, len)
        };
        let result = read.map(|bytes| {
            state.pipe = bytes;
            state.pipe.len()
        });
        disk.storage().trace.note("filled", &[fill.conn.slot.into(), result.unwrap_or(0) as u64]);
        Event::Filled { token, asked, result }
    }

    fn deliver_soon(&mut self, conn: ConnId, now: u64) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        let something = !state.to_shard.is_empty() || (state.client_done && !state.done_told);
        if state.receiving && !state.delivering && something {
            state.delivering = true;
            self.push(conn, now, 30_000, Job::Deliver);
        }
    }

    fn push(&mut self, conn: ConnId, now: u64, delay_max: u64, job: Job) {
        self.seq += 1;
        let mut due = now + self.prng.range(0, delay_max);
        if let Some(state) = self.conns.get_mut(&conn) {
            due = due.max(state.order);
            state.order = due;
        }
        self.jobs.insert((due, self.seq), (conn, job));
    }

    /// Something that no order of the connection holds back.
    fn push_unordered(&mut self, conn: ConnId, now: u64, delay_max: u64, job: Job) {
        self.seq += 1;
        let due = now + self.prng.range(0, delay_max);
        self.jobs.insert((due, self.seq), (conn, job));
    }

    pub(crate) fn collect(&mut self, now: u64, disk: &SimDisk, events: &mut Vec<Event<SimPlatform>>) {
        while let Some(entry) = self.jobs.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (conn, job) = entry.remove();
            match job {
                Job::Accept => {
                    if let Some(state) = self.conns.get_mut(&conn) {
                        state.accepted = true;
                    }
                    let remote = self.prng.chance(self.remote);
                    events.push(Event::Accepted { conn, remote });
                }
                Job::Deliver => self.deliver(conn, now, events),
                Job::Finish(transfer) => self.finish(conn, transfer, now, disk, events),
                Job::Fill(fill) => events.push(self.finish_fill(&fill, disk)),
                Job::Forget(leases) => {
                    drop(leases);
                    disk.storage().suffer(Harm::NotifiedLate);
                    if self.prng.one_in(4) {
                        events.push(Event::CopiedAnyway(conn));
                    }
                }
                Job::Room => events.push(Event::Writable(conn)),
                Job::Close => {
                    self.conns.remove(&conn);
                    events.push(Event::Closed(conn));
                }
            }
        }
    }

    fn deliver(&mut self, conn: ConnId, now: u64, events: &mut Vec<Event<SimPlatform>>) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.delivering = false;
        if state.closing {
            return;
        }
        if state.reset {
            state.done_told = true;
            events.push(Event::Received { conn, bytes: Err(Errno::CONNRESET) });
            return;
        }
        let len = state.to_shard.len().min(self.prng.range(1, PIECE_LEN_MAX as u64) as usize);
        let bytes: Vec<u8> = state.to_shard.drain(..len).collect();
        if bytes.is_empty() {
            if !state.client_done || state.done_told {
                return;
            }
            state.done_told = true;
        }
        events.push(Event::Received { conn, bytes: Ok(SimRecvBuf(bytes)) });
        self.deliver_soon(conn, now);
    }

    fn finish(
        &mut self,
        conn: ConnId,
        transfer: Transfer,
        now: u64,
        disk: &SimDisk,
        events: &mut Vec<Event<SimPlatform>>,
    ) {
        let reset = self.conns.get(&conn).is_none_or(|state| state.reset);
        let recalled = self.conns.get_mut(&conn).is_some_and(|state| std::mem::take(&mut state.recalled));
        let bytes = match &transfer {
            _ if reset => Err(Errno::CONNRESET),
            Transfer::Memory(send) => {
                let all: Vec<u8> = send.parts.iter().flat_map(|part| part.as_ref()).copied().collect();
                Ok(all[send.skip..].to_vec())
            }
            Transfer::File(send) => {
                let file = send.file.description();
                disk.storage().read_for_socket(file.inode, send.position.get(), send.len, send.len)
            }
            Transfer::Drain(len) => Ok(self.conns[&conn].pipe[..*len].to_vec()),
        };
        let result = bytes.map(|mut bytes| {
            let len = bytes.len() as u64;
            let taken = match recalled {
                true => self.prng.range(0, len),
                false if self.prng.one_in(2) => len,
                false => self.prng.range(len.min(1), len),
            };
            bytes.truncate(taken as usize);
            disk.storage().trace.note("send-done", &[conn.slot.into(), len, taken]);
            if let Some(state) = self.conns.get_mut(&conn) {
                state.to_client.extend_from_slice(&bytes);
                if matches!(transfer, Transfer::Drain(_)) {
                    state.pipe.drain(..bytes.len());
                }
            }
            bytes.len()
        });
        if let Some(state) = self.conns.get_mut(&conn) {
            state.transferring = false;
        }
        let Transfer::Memory(send) = transfer else {
            events.push(Event::FileSent { conn, result });
            return;
        };
        let mut leases = send.parts.iter().filter_map(|part| match part {
            SendPart::Lease(lease) => Some(lease),
            SendPart::Bytes(_) => None,
        });
        match send.how {
            SendHow::ZeroCopy if result.is_ok() => {
                let leases = leases.cloned().collect();
                self.push_unordered(conn, now, 3_000_000, Job::Forget(leases));
            }
            SendHow::Reference => {
                if let Some(state) = self.conns.get_mut(&conn) {
                    state.references.extend(leases.by_ref().filter_map(SimLease::lend));
                }
            }
            _ => {}
        }
        events.push(Event::Sent { result, send: *send });
    }
}
