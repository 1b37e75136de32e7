//! What the tests of every driver share: a rig that plays the shard by hand, and test bodies that any
//! driver must pass.

pub(crate) mod disk_bodies;
pub(crate) mod limit_bodies;
pub(crate) mod net_bodies;
pub(crate) mod pipe_bodies;
pub(crate) mod recall_bodies;
pub(crate) mod reference_bodies;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rohrpost_engine_core::disk::{Caching, Disk, Errno, OpenMode};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::ops::{ConnId, DiskOp, Driver, Event, NetOp, Ops, Send, SendHow, SendPart};
use rohrpost_engine_core::platform::{Arena, Chunk, Content, Platform};
use rohrpost_engine_core::types::ByteCount;

use crate::arena::{LinuxArena, LinuxChunk, LinuxLease, LinuxSlab};
use crate::disk::LinuxDisk;
use crate::file::LinuxFile;
use crate::net::{ListenOptions, Listener};

/// How long a test waits before it calls something lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Turns that it makes in any case: time also passes while the whole process is stopped.
const TURNS_MIN: u32 = 50;

/// A platform made of this crate's types; every driver's is.
pub(crate) trait LinuxTypes:
    Platform<File = LinuxFile, Chunk = LinuxChunk, Lease = LinuxLease, Slab = LinuxSlab>
{
}

impl<P> LinuxTypes for P where
    P: Platform<File = LinuxFile, Chunk = LinuxChunk, Lease = LinuxLease, Slab = LinuxSlab>
{
}

/// What a test asks of the driver it is given.
pub(crate) struct Options {
    pub(crate) limits: ShardLimits,
    pub(crate) listener: Option<Listener>,
    pub(crate) recv_buf_count: u16,
    pub(crate) recv_buf_len: usize,
}

impl Default for Options {
    fn default() -> Self {
        let limits =
            ShardLimits { arena_len_max: ByteCount::mib(64), connections_max: 32, ..ShardLimits::small() };
        Self { limits, listener: None, recv_buf_count: 16, recv_buf_len: 4096 }
    }
}

impl Options {
    /// With a listener on a free port of the loopback device; its address.
    pub(crate) fn listening() -> (Self, SocketAddr) {
        let listener =
            Listener::bind(([127, 0, 0, 1], 0).into(), &ListenOptions::default()).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        (Self { listener: Some(listener), ..Self::default() }, address)
    }

    /// The same; its connections have the smallest buffers of a socket, on both sides.
    pub(crate) fn listening_with_small_buffers() -> (Self, SocketAddr) {
        let (options, address) = Self::listening();
        let socket = options.listener.as_ref().expect("it listens");
        rustix::net::sockopt::set_socket_send_buffer_size(socket, 1).expect("any size is taken");
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, 1).expect("any size is taken");
        (options, address)
    }
}

/// A driver, and the test in the shard's place.
pub(crate) struct Rig<D: Driver> {
    pub(crate) driver: D,
    pub(crate) ops: Ops<D::Platform>,
    pub(crate) events: Vec<Event<D::Platform>>,
}

impl<D: Driver> Rig<D>
where
    D::Platform: LinuxTypes,
{
    pub(crate) fn new(driver: D) -> Self {
        Self { driver, ops: Ops::with_capacity(16), events: Vec::new() }
    }

    /// One turn that waits a little.
    pub(crate) fn turn(&mut self) {
        let deadline = self.driver.now().mono.plus_millis(20);
        self.driver.turn(&mut self.ops, &mut self.events, Some(deadline)).expect("the driver goes on");
    }

    /// Turns until an event is picked; the others stay, in order.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&mut Event<D::Platform>) -> Option<T>,
    ) -> T {
        let (started, mut turns) = (Instant::now(), 0);
        loop {
            let found = self.events.iter_mut().enumerate().find_map(|(at, event)| Some((at, pick(event)?)));
            if let Some((at, value)) = found {
                self.events.remove(at);
                return value;
            }
            let patient = started.elapsed() < PATIENCE || turns < TURNS_MIN;
            assert!(patient, "no {what} in {PATIENCE:?}, but: {:?}", self.kinds());
            self.turn();
            turns += 1;
        }
    }

    /// What events there are.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.events.iter().map(kind_of).collect()
    }

    pub(crate) fn disk(&mut self, op: DiskOp<D::Platform>) {
        self.ops.disk.push(op);
    }

    pub(crate) fn net(&mut self, op: NetOp<D::Platform>) {
        self.ops.net.push(op);
    }

    /// Connects a client and waits for its connection.
    pub(crate) fn connect(&mut self, address: SocketAddr) -> (TcpStream, ConnId) {
        let client = TcpStream::connect(address).expect("the listener listens");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let id = self.until("connection", |event| match event {
            Event::Accepted { conn, .. } => Some(*conn),
            _ => None,
        });
        (client, id)
    }

    /// Waits for the next bytes of a connection; empty at the end of the stream.
    pub(crate) fn received(&mut self, id: ConnId) -> Vec<u8> {
        self.until("bytes", |event| match event {
            Event::Received { conn, bytes } if *conn == id => {
                Some(bytes.as_ref().expect("receiving works").as_ref().to_vec())
            }
            _ => None,
        })
    }

    /// Closes a connection and waits for the end.
    pub(crate) fn close(&mut self, id: ConnId) {
        self.net(NetOp::Close(id));
        self.until("close", |event| matches!(event, Event::Closed(closed) if *closed == id).then_some(()));
    }

    /// Sends one piece completely, however many partial sends it takes; returns how many it took.
    pub(crate) fn send_all(&mut self, id: ConnId, lease: &LinuxLease) -> usize {
        use rohrpost_engine_core::platform::Lease;
        let (mut done, mut sends) = (0, 0);
        while done < lease.len() {
            let rest = lease.slice(done..lease.len());
            self.net(NetOp::Send(send_of(id, [SendPart::Lease(rest)])));
            done += self.sent(id).expect("the peer is there");
            sends += 1;
        }
        sends
    }

    /// Waits for the end of a send.
    pub(crate) fn sent(&mut self, id: ConnId) -> Result<usize, Errno> {
        self.until("sent", |event| match event {
            Event::Sent { result, send } if send.conn == id => Some(*result),
            _ => None,
        })
    }

    /// Waits for the end of a transfer that does not come from memory.
    pub(crate) fn file_sent(&mut self, id: ConnId) -> Result<usize, Errno> {
        self.until("sent from a file", |event| match event {
            Event::FileSent { conn, result } if *conn == id => Some(*result),
            _ => None,
        })
    }
}

fn kind_of<P: LinuxTypes>(event: &Event<P>) -> &'static str {
    match event {
        Event::Accepted { .. } => "accepted",
        Event::Received { .. } => "received",
        Event::Sent { .. } => "sent",
        Event::FileSent { .. } => "sent from a file",
        Event::Filled { .. } => "filled",
        Event::Closed(_) => "closed",
        _ => "other",
    }
}

/// A send of these pieces.
pub(crate) fn send_of<P: Platform, const N: usize>(conn: ConnId, parts: [SendPart<P>; N]) -> Send<P> {
    Send { conn, parts: Box::new(parts.into_iter().collect()), skip: 0, more: false, how: SendHow::Copy }
}

/// One slab's arena.
pub(crate) fn arena() -> LinuxArena {
    LinuxArena::with_slabs(1).expect("64 MiB of memory")
}

/// A frozen chunk with the pattern of `seed`.
pub(crate) fn patterned(arena: &mut LinuxArena, len: ByteCount, seed: u64) -> LinuxChunk {
    let mut chunk = arena.take(len, Content::Written).expect("the arena is not that full");
    fill(chunk.unfrozen_mut(), seed);
    chunk.freeze(len.as_usize());
    chunk
}

/// Fills with bytes that depend on place and seed, with no short period.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = pattern(at, seed);
    }
}

/// The byte at a place of the pattern.
pub(crate) fn pattern(at: usize, seed: u64) -> u8 {
    let mixed = (at as u64 ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u8
}

/// Reads exactly `len` bytes and compares them with the pattern.
pub(crate) fn expect_pattern(stream: &mut TcpStream, len: usize, seed: u64) {
    expect_pattern_at(stream, 0, len, seed);
}

/// Reads exactly `len` bytes and compares them with the pattern from `start` on.
pub(crate) fn expect_pattern_at(stream: &mut TcpStream, start: usize, len: usize, seed: u64) {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("all bytes arrive");
    let wrong = (0..len).find(|&at| bytes[at] != pattern(start + at, seed));
    assert_eq!(wrong, None, "first wrong byte");
}

/// A file of `len` bytes of the pattern, and how the engine opens it.
pub(crate) fn patterned_file(dir: &Path, len: usize, seed: u64) -> (PathBuf, LinuxFile) {
    let path = dir.join(format!("pattern-{seed}"));
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    let mut file = std::fs::File::create(&path).expect("a file in the test's directory");
    file.write_all(&bytes).expect("room for the test's file");
    file.sync_all().expect("the test's file reaches the disk");
    let opened = open_file(&path, OpenMode::ReadWrite);
    (path, opened)
}

/// Opens a file as the engine does: around the page cache.
pub(crate) fn open_file(path: &Path, mode: OpenMode) -> LinuxFile {
    LinuxDisk.open(path, mode, Caching::Direct).expect("a file on a file system with direct I/O")
}

/// Whether the running kernel is that version or a later one.
pub(crate) fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Says why a test tests nothing here. In continuous integration that is a failure.
pub(crate) fn skip(reason: impl std::fmt::Display) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness's capture, so that it can be seen.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {reason}");
}
