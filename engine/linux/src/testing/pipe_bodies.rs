//! Test bodies: file bytes through pipes.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::ops::{ConnId, DiskOp, Driver, Event, Fill, NetOp, Read, SendPart, Token};
use rohrpost_engine_core::platform::{Arena, Content};
use rohrpost_engine_core::types::{ByteCount, Position};

use super::{LinuxTypes, Options, Rig, arena, expect_pattern_at, pattern, patterned_file, send_of};
use crate::file::LinuxFile;
use crate::pipe::PIPES_MAX;

const FILE_LEN: usize = (3 << 20) + 777;

fn fill<D: Driver>(rig: &mut Rig<D>, id: ConnId, file: &LinuxFile, start: usize, len: usize, cached: bool)
where
    D::Platform: LinuxTypes,
{
    let (token, file, position) = (Token(u64::from(id.slot)), file.clone(), Position::new(start as u64));
    rig.disk(DiskOp::Fill(Fill { token, conn: id, file, position, len, cached }));
}

fn filled<D: Driver>(rig: &mut Rig<D>, id: ConnId) -> Result<usize, Errno>
where
    D::Platform: LinuxTypes,
{
    rig.until("fill", |event| match event {
        Event::Filled { token, result, .. } if token.0 == u64::from(id.slot) => Some(*result),
        _ => None,
    })
}

/// Fills and drains until `len` bytes have left; returns how many drains that took.
fn carry<D: Driver>(
    rig: &mut Rig<D>,
    id: ConnId,
    file: &LinuxFile,
    start: usize,
    len: usize,
    cached: bool,
) -> usize
where
    D::Platform: LinuxTypes,
{
    let (mut done, mut drains) = (0, 0);
    while done < len {
        fill(rig, id, file, start + done, len - done, cached);
        let mut held = filled(rig, id).expect("a pipe, and a file to fill it from");
        assert!(held > 0 && held <= len - done, "{held} bytes of {} asked for", len - done);
        while held > 0 {
            rig.net(NetOp::Drain { conn: id, len: held });
            let taken = rig.file_sent(id).expect("the peer reads");
            assert!(taken > 0 && taken <= held);
            (held, done, drains) = (held - taken, done + taken, drains + 1);
        }
    }
    drains
}

fn reset(client: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("linger");
    drop(client);
}

fn slow_rig<D: Driver>(make: impl Fn(Options) -> D) -> (Rig<D>, SocketAddr)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening_with_small_buffers();
    (Rig::new(make(options)), address)
}

/// Ranges that begin and end anywhere, past and through the page cache, to a peer with the smallest buffers: over
/// many partial drains it gets exactly the range. Behind the file's end there is nothing.
pub(crate) fn ranges_arrive_whole<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 21);
    let (mut rig, address) = slow_rig(make);
    let (mut client, id) = rig.connect(address);
    for cached in [false, true] {
        for (start, len) in
            [(0, 4096), (1, 1), (4095, 2), (777, 1 << 20), (65_536, 200_000), (FILE_LEN - 999, 999)]
        {
            let reader = std::thread::spawn(move || {
                expect_pattern_at(&mut client, start, len, 21);
                client
            });
            let drains = carry(&mut rig, id, &file, start, len, cached);
            assert!(len < 1 << 20 || drains > 1, "a small socket does not take {len} bytes at once");
            client = reader.join().expect("the reader got the pattern");
        }
        fill(&mut rig, id, &file, FILE_LEN + 5000, 4096, cached);
        assert_eq!(filled(&mut rig, id), Ok(0));
        fill(&mut rig, id, &file, FILE_LEN - 100, 4096, cached);
        assert_eq!(filled(&mut rig, id), Ok(100), "as much as the file has");
        let reader = std::thread::spawn(move || {
            expect_pattern_at(&mut client, FILE_LEN - 100, 100, 21);
            client
        });
        rig.net(NetOp::Drain { conn: id, len: 100 });
        assert_eq!(rig.file_sent(id), Ok(100));
        client = reader.join().expect("the reader got the end");
    }
    rig.close(id);
}

/// Header from memory, then bytes through the pipe, then memory again: they arrive in that order.
pub(crate) fn pipe_and_memory_keep_their_order<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    use std::io::Read as _;
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 22);
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let (mut client, id) = rig.connect(address);
    for round in 0..20 {
        let mut header = send_of(id, [SendPart::Bytes(b"header".to_vec())]);
        header.more = true;
        rig.net(NetOp::Send(header));
        assert_eq!(rig.sent(id), Ok(6));
        let (start, len) = (round * 1001, 20_000);
        carry(&mut rig, id, &file, start, len, false);
        rig.net(NetOp::Send(send_of(id, [SendPart::Bytes(b"end".to_vec())])));
        assert_eq!(rig.sent(id), Ok(3));
        let mut word = [0; 6];
        client.read_exact(&mut word).expect("the header arrives");
        assert_eq!(&word, b"header");
        expect_pattern_at(&mut client, start, len, 22);
        client.read_exact(&mut word[..3]).expect("the end arrives");
        assert_eq!(&word[..3], b"end");
    }
    rig.close(id);
}

/// The peer resets while its pipe is full; the next connection gets the slot, and not one byte of the old answer,
/// however often this happens.
pub(crate) fn a_reset_leaves_nothing_for_the_next<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, old) = patterned_file(dir.path(), FILE_LEN, 23);
    let (_, new) = patterned_file(dir.path(), FILE_LEN, 24);
    let (mut rig, address) = slow_rig(make);
    for round in 0..2 * PIPES_MAX {
        let (client, id) = rig.connect(address);
        fill(&mut rig, id, &old, 100, 1 << 20, false);
        let held = filled(&mut rig, id).expect("a pipe comes back from every connection that is gone");
        rig.net(NetOp::Drain { conn: id, len: held });
        let taken = rig.file_sent(id).expect("the socket takes some");
        assert!(taken < held, "the peer reads nothing");
        let mut left = held - taken;
        rig.net(NetOp::Drain { conn: id, len: left });
        reset(client);
        let failed = loop {
            match rig.file_sent(id) {
                // Room that the peer's kernel made before the reset arrived.
                Ok(more) => left -= more,
                Err(errno) => break errno,
            }
            assert!(left > 0, "round {round}: a peer that reads nothing takes everything");
            rig.net(NetOp::Drain { conn: id, len: left });
        };
        assert!(matches!(failed, Errno::CONNRESET | Errno::PIPE), "round {round}: {failed:?}");
        rig.close(id);
        rig.events.clear();
        let (mut client, next) = rig.connect(address);
        assert_eq!(next.slot, id.slot);
        let reader = std::thread::spawn(move || expect_pattern_at(&mut client, 5, 50_000, 24));
        carry(&mut rig, next, &new, 5, 50_000, false);
        reader.join().expect("the reader got the new file");
        rig.close(next);
    }
}

/// A connection is closed while its pipe is being filled: the fill is answered, then `Closed` comes, the slot is
/// used again, and no pipe is lost.
pub(crate) fn closed_while_filling<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 25);
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    for round in 0..2 * PIPES_MAX {
        let (_client, id) = rig.connect(address);
        fill(&mut rig, id, &file, round, 1 << 20, false);
        rig.net(NetOp::Close(id));
        while !rig.events.iter().any(|event| matches!(event, Event::Closed(_))) {
            rig.turn();
        }
        match &rig.events[..] {
            // What is filled before the shard asks for the end is simply filled.
            [
                Event::Filled { asked: 1_048_576, result: Err(Errno::CANCELED) | Ok(_), .. },
                Event::Closed(closed),
            ] => {
                assert_eq!(*closed, id);
            }
            events => panic!("round {round}: {} events, not a fill's end and a close", events.len()),
        }
        rig.events.clear();
        fill(&mut rig, id, &file, 0, 4096, false);
        assert_eq!(filled(&mut rig, id), Err(Errno::CONNRESET), "this connection is no more");
        rig.net(NetOp::Drain { conn: id, len: 1 });
        assert_eq!(rig.file_sent(id), Err(Errno::CONNRESET));
    }
    let (mut client, id) = rig.connect(address);
    carry(&mut rig, id, &file, 3, 10_000, false);
    expect_pattern_at(&mut client, 3, 10_000, 25);
    rig.close(id);
}

/// More connections want a pipe than there are: the last is refused by name, and gets one as soon as another is
/// drained.
pub(crate) fn pipes_are_bounded<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 26);
    let (options, address) = Options::listening();
    let limits = ShardLimits { connections_max: PIPES_MAX as u32 + 1, ..options.limits };
    let mut rig = Rig::new(make(Options { limits, ..options }));
    let mut clients: Vec<_> = (0..=PIPES_MAX).map(|_| rig.connect(address)).collect();
    let last = clients[PIPES_MAX].1;
    for (_, id) in &clients[..PIPES_MAX] {
        fill(&mut rig, *id, &file, 10, 5000, false);
        assert_eq!(filled(&mut rig, *id), Ok(5000));
    }
    fill(&mut rig, last, &file, 20, 5000, false);
    assert_eq!(filled(&mut rig, last), Err(Errno::AGAIN));
    let first = clients[0].1;
    rig.net(NetOp::Drain { conn: first, len: 5000 });
    assert_eq!(rig.file_sent(first), Ok(5000));
    expect_pattern_at(&mut clients[0].0, 10, 5000, 26);
    carry(&mut rig, last, &file, 20, 5000, false);
    expect_pattern_at(&mut clients[PIPES_MAX].0, 20, 5000, 26);
}

/// The file system refuses: the kernel's error arrives, and the connection can still be served.
pub(crate) fn refused_fills_say_why<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 27);
    // No offset so large fits into the kernel's, so that every file system refuses it.
    let far = usize::MAX >> 1 & !4095;
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let (mut client, id) = rig.connect(address);
    for cached in [false, true] {
        fill(&mut rig, id, &file, far, 8192, cached);
        let refused = filled(&mut rig, id);
        assert!(
            matches!(refused, Err(Errno::INVAL) | Err(Errno(libc::EOVERFLOW | libc::EFBIG))),
            "{refused:?}"
        );
    }
    carry(&mut rig, id, &file, 1, 5000, false);
    expect_pattern_at(&mut client, 1, 5000, 27);
}

/// No descriptor is left for a pipe: that is the answer, and the connection is served from memory as before.
pub(crate) fn no_descriptor_for_a_pipe<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 28);
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let (mut client, id) = rig.connect(address);
    let mut hoard = super::limit_bodies::exhaust_descriptors();
    for _ in 0..3 {
        fill(&mut rig, id, &file, 0, 4096, false);
        assert_eq!(filled(&mut rig, id), Err(Errno::MFILE));
        hoard.pop();
    }
    // Three are back: the sink and both ends.
    carry(&mut rig, id, &file, 9, 4096, false);
    expect_pattern_at(&mut client, 9, 4096, 28);
}

/// A read through the page cache needs no alignment, and brings the same bytes as one past it.
pub(crate) fn cached_reads_bring_the_same_bytes<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 29);
    let mut rig = Rig::new(make(Options::default()));
    let mut arena = arena();
    for (cached, start, len, expected) in [
        (true, 0, 65_536, 65_536),
        (true, 777, 10_001, 10_001),
        (true, FILE_LEN - 10, 4096, 10),
        (false, 4096, 4096, 4096),
    ] {
        let chunk = arena.take(ByteCount::kib(64), Content::Written).expect("a chunk");
        let (token, file, position) = (Token(5), file.clone(), Position::new(start as u64));
        rig.disk(DiskOp::Read(Read { token, file, position, chunk, from: 0, len, cached }));
        let chunk = loop {
            rig.turn();
            if let Some(Event::ReadDone { chunk, result, .. }) = rig.events.pop() {
                assert_eq!(result, Ok(expected));
                break chunk;
            }
        };
        let wrong = (0..expected).find(|&at| chunk.bytes()[at] != pattern(start + at, 29));
        assert_eq!(wrong, None, "cached {cached}, from {start}");
    }
    assert_eq!(arena.free_len(), arena.capacity());
}

/// The driver is dropped while pipes are full, being filled and stuck in front of a socket.
pub(crate) fn dropped_with_full_pipes<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), FILE_LEN, 30);
    let (mut rig, address) = slow_rig(make);
    let clients: Vec<_> = (0..3).map(|_| rig.connect(address)).collect();
    for (_, id) in &clients[..2] {
        fill(&mut rig, *id, &file, 1, 1 << 20, false);
        assert!(filled(&mut rig, *id).is_ok());
    }
    for _ in 0..2 {
        rig.net(NetOp::Drain { conn: clients[0].1, len: 500_000 });
        rig.turn();
    }
    fill(&mut rig, clients[2].1, &file, 1, 1 << 20, false);
    rig.turn();
    drop(rig);
}
