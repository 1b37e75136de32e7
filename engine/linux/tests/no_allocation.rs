//! After warm-up no driver allocates: not per write, read, receive or send, and not per
//! wake-up. What they allocate before is on their bill. Counted on the shard's thread by an allocator of this test's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use rohrpost_engine_core::bill::{Due, Item, Memory};
use rohrpost_engine_core::disk::{Caching, Disk, OpenMode};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::message::{Reply, ShardId, Ticket};
use rohrpost_engine_core::ops::{
    ConnId, DiskOp, Driver, Event, NetOp, Ops, Read, Send, SendHow, SendPart, SendParts, Token, Write,
};
use rohrpost_engine_core::platform::{Arena, Chunk, Content};
use rohrpost_engine_core::shard::Shard as CoreShard;
use rohrpost_engine_core::types::{ByteCount, Position};
use rohrpost_engine_linux::arena::{LinuxArena, LinuxChunk};
use rohrpost_engine_linux::disk::LinuxDisk;
use rohrpost_engine_linux::file::LinuxFile;
use rohrpost_engine_linux::helper::{Helper, LinuxPlatform};
use rohrpost_engine_linux::inbox::{Inbox, ReplySink};
use rohrpost_engine_linux::net::{ListenOptions, Listener};
use rohrpost_engine_linux::poll::{PollConfig, PollDriver, PollPlatform};
use rohrpost_engine_linux::uring::{FeatureMask, UringConfig, UringDriver, UringPlatform, probe};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes allocated and not given back.
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

fn count(grown: i64) {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
    LIVE.with(|live| live.set(live.get() + grown));
}

struct Counting;

// SAFETY: [U29] every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: [U29] the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // A thread that ends may have no counters any more.
        let _ = LIVE.try_with(|live| live.set(live.get() - layout.size() as i64));
        // SAFETY: [U29] the caller's promises are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as i64 - layout.size() as i64);
        // SAFETY: [U29] the caller's promises are the system allocator's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct NoReplies;

impl<P: LinuxPlatform> ReplySink<P> for NoReplies {
    fn reply(&mut self, _: Ticket, _: Reply<P>) {}
}

struct Shard<D: Driver<Platform: LinuxPlatform>> {
    driver: D,
    ops: Ops<D::Platform>,
    events: Vec<Event<D::Platform>>,
    file: LinuxFile,
    body: LinuxChunk,
    /// Comes back with every read.
    spare: Option<LinuxChunk>,
    /// Comes back with every send.
    /// What is sent, but for the body: a header.
    parts: Option<SendParts<D::Platform>>,
}

impl<D: Driver<Platform: LinuxPlatform>> Shard<D> {
    /// One request of a client: a write, a read, and an answer from memory with a header.
    fn serve(&mut self, client: &mut TcpStream, conn: ConnId) {
        client.write_all(b"request!").expect("the server reads");
        let extents = [self.body.lease(0..8192)].into_iter().collect();
        self.ops.disk.push(DiskOp::Write(Write {
            token: Token(1),
            file: self.file.clone(),
            position: Position::ZERO,
            extents,
            bounce: None,
            len: ByteCount::new(8192),
            durable: true,
        }));
        let chunk = self.spare.take().expect("the last read gave it back");
        let (file, position) = (self.file.clone(), Position::ZERO);
        self.ops.disk.push(DiskOp::Read(Read {
            token: Token(2),
            file,
            position,
            chunk,
            from: 0,
            len: 4096,
            cached: false,
        }));
        let mut parts = self.parts.take().expect("the last send gave it back");
        parts.push(SendPart::Lease(self.body.lease(0..1000)));
        self.ops.net.push(NetOp::Send(Send { conn, parts, skip: 0, more: false, how: SendHow::Copy }));
        let mut outstanding = 4;
        while outstanding > 0 {
            self.driver.turn(&mut self.ops, &mut self.events, None).expect("a turn");
            for event in self.events.drain(..) {
                outstanding -= 1;
                match event {
                    Event::Written { result, .. } => assert_eq!(result, Ok(ByteCount::new(8192))),
                    Event::ReadDone { chunk, .. } => self.spare = Some(chunk),
                    Event::Received { bytes, .. } => assert_eq!(bytes.expect("bytes").as_ref(), b"request!"),
                    Event::Sent { result, mut send } => {
                        assert_eq!(result, Ok(1008));
                        send.parts.truncate(1);
                        self.parts = Some(send.parts);
                    }
                    _ => panic!("nothing else happens"),
                }
            }
        }
        client.read_exact(&mut [0; 1008]).expect("the answer arrives");
    }
}

/// What both drivers are made of, and where they listen.
struct Parts<P: LinuxPlatform> {
    helper: Helper<P>,
    inbox: Inbox<P>,
    listener: Listener,
}

fn parts<P: LinuxPlatform>() -> Parts<P> {
    let helper = Helper::start(1, Box::new(|_| panic!("no steps"))).expect("two threads");
    let inbox = Inbox::new(8).expect("an eventfd");
    let any = ([127, 0, 0, 1], 0).into();
    Parts { helper, inbox, listener: Listener::bind(any, &ListenOptions::default()).expect("a free port") }
}

#[test]
fn the_ring_driver_does_not_allocate_after_warm_up() {
    let report = match probe(FeatureMask::NONE) {
        Ok(report) => report,
        Err(error) => return skip(&error),
    };
    let Parts { helper, inbox, listener } = parts::<UringPlatform>();
    let address = listener.local_addr().expect("a bound socket has one");
    let config = UringConfig::new(ShardLimits::small(), report);
    let shard_helper = helper.for_shard(inbox.mailbox());
    let driver = UringDriver::new(config, Some(listener), inbox, shard_helper, Box::new(NoReplies));
    no_allocation_after_warm_up(driver.expect("a ring"), address);
}

#[test]
fn the_poll_driver_does_not_allocate_after_warm_up() {
    let Parts { helper, inbox, listener } = parts::<PollPlatform>();
    let address = listener.local_addr().expect("a bound socket has one");
    let shard_helper = helper.for_shard(inbox.mailbox());
    let config = PollConfig::default();
    let driver = PollDriver::new(config, Some(listener), inbox, shard_helper, Box::new(NoReplies));
    no_allocation_after_warm_up(driver.expect("descriptors and threads"), address);
}

/// What a shard and its driver allocate at their start is on their bill, to a twentieth.
#[test]
fn what_is_allocated_at_the_start_is_on_the_bill() {
    for limits in [ShardLimits::small(), ShardLimits::default()] {
        let Parts { helper, inbox, .. } = parts::<PollPlatform>();
        let (config, shard_helper) = (PollConfig::new(&limits), helper.for_shard(inbox.mailbox()));
        allocates_its_bill(&limits, &config.bill(&limits), || {
            PollDriver::new(config, None, inbox, shard_helper, Box::new(NoReplies))
                .expect("descriptors and threads")
        });
        let report = match probe(FeatureMask::NONE) {
            Ok(report) => report,
            Err(error) => return skip(&error),
        };
        let Parts { helper, inbox, .. } = parts::<UringPlatform>();
        let config = UringConfig::new(limits.clone(), report);
        let (bill, shard_helper) = (config.bill(), helper.for_shard(inbox.mailbox()));
        allocates_its_bill(&limits, &bill, || {
            UringDriver::new(config, None, inbox, shard_helper, Box::new(NoReplies)).expect("a ring")
        });
    }
}

fn allocates_its_bill<D: Driver<Platform: LinuxPlatform>>(
    limits: &ShardLimits,
    drivers: &[Item],
    make: impl FnOnce() -> D,
) {
    const SHARDS: u16 = 2;
    let shards = CoreShard::<D::Platform, ()>::bill(limits, SHARDS);
    let items = drivers.iter().chain(&shards);
    let billed: u64 = items
        .filter(|item| (item.due, item.memory) == (Due::Start, Memory::Heap))
        .map(|item| item.len.get())
        .sum();
    let before = LIVE.with(Cell::get);
    let driver = make();
    let arena = LinuxArena::new(limits.slabs_max());
    let shard = CoreShard::<D::Platform, ()>::new(limits.clone(), arena, ()).among(ShardId(0), SHARDS);
    let taken = LIVE.with(Cell::get) - before;
    let name = std::any::type_name::<D>();
    assert!((billed as i64 - taken).abs() <= taken / 20, "{name}: {taken} bytes taken, {billed} on the bill");
    drop((driver, shard));
}

fn no_allocation_after_warm_up<D: Driver<Platform: LinuxPlatform>>(driver: D, address: SocketAddr) {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let path = dir.path().join("segment");
    std::fs::write(&path, vec![0; 8192]).expect("room for 8 KiB");
    let file = LinuxDisk.open(&path, OpenMode::ReadWrite, Caching::Direct).expect("a direct file");
    let mut arena = LinuxArena::with_slabs(1).expect("64 MiB of memory");
    let mut body = arena.take(ByteCount::kib(64), Content::Written).expect("a chunk");
    body.freeze(8192);
    let mut parts = SendParts::default();
    parts.push(SendPart::Bytes(b"header: ".to_vec()));
    let mut shard = Shard {
        driver,
        ops: Ops::with_capacity(8),
        events: Vec::with_capacity(16),
        file,
        body,
        spare: arena.take(ByteCount::kib(64), Content::Written),
        parts: Some(parts),
    };
    let mut client = TcpStream::connect(address).expect("the listener listens");
    let conn = loop {
        shard.driver.turn(&mut shard.ops, &mut shard.events, None).expect("a turn");
        if let Some(Event::Accepted { conn, .. }) = shard.events.pop() {
            break conn;
        }
    };
    shard.ops.net.push(NetOp::Receive(conn));
    (0..20).for_each(|_| shard.serve(&mut client, conn));
    let before = ALLOCATIONS.with(Cell::get);
    (0..200).for_each(|_| shard.serve(&mut client, conn));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "allocations in 200 requests");
    assert!(before > 0, "the allocator counts");
}

/// Says why a test tests nothing here. In continuous integration that is a failure.
fn skip(reason: &impl std::fmt::Display) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness's capture, so that it can be seen.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {reason}");
}
