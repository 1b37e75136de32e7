//! Test bodies: sending by reference, with the driver and its helper replacing what was lent.

use std::io::Read;
use std::time::Instant;

use rohrpost_engine_core::disk::{Errno, OpenMode};
use rohrpost_engine_core::ops::{
    ConnId, DiskOp, Driver, Event, NetOp, Send, SendHow, SendPart, Token, Write,
};
use rohrpost_engine_core::platform::{Arena, Chunk, Content, Lease};
use rohrpost_engine_core::types::{ByteCount, Position};

use super::{LinuxTypes, Options, PATIENCE, Rig, fill, open_file, pattern, patterned, send_of};
use crate::arena::{LinuxArena, LinuxChunk, LinuxLease};
use crate::file::LinuxFile;
use crate::net::{ListenOptions, Listener};

/// Send buffer of the connections. The readers' buffers have their default length, and grow only while they read.
const BUFFER_LEN: usize = 64 << 10;

/// A rig whose connections buffer little, and an arena of one slab that the driver brought.
fn rig<D: Driver>(make: impl Fn(Options) -> D) -> (Rig<D>, LinuxArena, std::net::SocketAddr)
where
    D::Platform: LinuxTypes,
{
    let listen = ListenOptions { send_buffer_len: Some(BUFFER_LEN), ..ListenOptions::default() };
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), &listen).expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let mut rig = Rig::new(make(Options { listener: Some(listener), ..Options::default() }));
    let mut arena = LinuxArena::new(1);
    rig.ops.grow = true;
    let slab = rig.until("slab", |event| match std::mem::replace(event, Event::GrowFailed(Errno::NOMEM)) {
        Event::Grown(slab) => Some(slab),
        other => {
            *event = other;
            None
        }
    });
    arena.adopt(slab);
    (rig, arena, address)
}

fn refer<P: LinuxTypes>(conn: ConnId, lease: LinuxLease) -> Send<P> {
    Send { how: SendHow::Reference, ..send_of(conn, [SendPart::Lease(lease)]) }
}

/// Fills the whole arena with `byte`, and returns it; waits until everything lent has been replaced.
fn wrap<D: Driver>(rig: &mut Rig<D>, arena: &mut LinuxArena, byte: u8)
where
    D::Platform: LinuxTypes,
{
    let mut chunks = Vec::new();
    while let Some(mut chunk) = arena.take(ByteCount::kib(64), Content::Written) {
        chunk.unfrozen_mut().fill(byte);
        chunks.push(chunk);
    }
    drop(chunks);
    let started = Instant::now();
    arena.settle();
    while arena.free_len() < arena.capacity() {
        assert!(started.elapsed() < PATIENCE, "lent memory does not come back");
        rig.turn();
        arena.settle();
    }
}

/// Readers stall in the middle of their answers; the arena wraps twice; then they read what was sent. Ranges are
/// unaligned.
pub(crate) fn stalled_readers_get_what_was_sent<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (mut rig, mut arena, address) = rig(make);
    let mut readers = Vec::new();
    for seed in 0..6 {
        let (client, id) = rig.connect(address);
        let chunk = patterned(&mut arena, ByteCount::mib(1), seed);
        let from = 100 + seed as usize;
        rig.net(NetOp::Send(refer(id, chunk.lease(from..1_000_000))));
        let taken = rig.sent(id).expect("the peer is there");
        assert!(taken > 0 && taken < 900_000, "the sockets buffer {taken} bytes");
        readers.push((client, from, taken, seed));
    }
    for byte in [0xaa, 0xbb] {
        wrap(&mut rig, &mut arena, byte);
    }
    for (mut client, from, len, seed) in readers {
        let mut bytes = vec![0; len];
        client.read_exact(&mut bytes).expect("all that was taken arrives");
        let wrong = (0..len).find(|&at| bytes[at] != pattern(from + at, seed));
        assert_eq!(wrong, None, "reader {seed}");
    }
}

/// A long range into a slow reader: many partial sends, each from the byte where the last one ended; and the
/// next connection in the same slot gets nothing of an answer that was reset in the middle.
pub(crate) fn partial_sends_and_resets<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (mut rig, mut arena, address) = rig(make);
    // Beside the bounce blocks nothing is lent: that copy takes part too.
    let chunks: Vec<LinuxChunk> = (0..4).map(|seed| patterned(&mut arena, ByteCount::mib(1), seed)).collect();
    let (client, id) = rig.connect(address);
    rig.net(NetOp::Send(refer(id, chunks[1].lease(0..1 << 20))));
    rig.turn();
    drop(client);
    let broken = (0..1000).any(|_| {
        let result = rig.sent(id);
        if result.is_ok() {
            rig.net(NetOp::Send(refer(id, chunks[1].lease(0..1 << 20))));
        }
        result.is_err()
    });
    assert!(broken, "the peer is gone");
    rig.close(id);
    let (mut client, id) = rig.connect(address);
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 3_000_000];
        let mut at = 0;
        while at < bytes.len() {
            let to = bytes.len().min(at + 30_011);
            client.read_exact(&mut bytes[at..to]).expect("the answer arrives");
            at = to;
        }
        bytes
    });
    let mut parts: Vec<LinuxLease> = chunks.iter().map(|chunk| chunk.lease(333..750_333)).collect();
    let mut sends = 0;
    while !parts.is_empty() {
        let mut send: Send<D::Platform> = send_of(id, []);
        send.how = SendHow::Reference;
        send.parts.extend(parts.iter().cloned().map(SendPart::Lease));
        rig.net(NetOp::Send(send));
        let mut taken = rig.sent(id).expect("the peer is there");
        while taken > 0 {
            let first = parts.remove(0);
            if taken < first.len() {
                parts.insert(0, first.slice(taken..first.len()));
            }
            taken = taken.saturating_sub(first.len());
        }
        sends += 1;
    }
    let bytes = reader.join().expect("the reader got everything");
    let wrong = (0..3_000_000).find(|&at| bytes[at] != pattern(333 + at % 750_000, (at / 750_000) as u64));
    assert_eq!(wrong, None, "first wrong byte");
    assert!(sends > 3, "the socket took it in {sends} pieces");
}

/// Writes from replaced memory put the new bytes on disk, not those of the page that was there before; writes in
/// flight while the slab is registered again put theirs.
pub(crate) fn writes_see_replaced_pages<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (mut rig, mut arena, address) = rig(make);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    std::fs::write(&path, vec![0; 4 << 20]).expect("room for the test's file");
    let file = open_file(&path, OpenMode::ReadWrite);
    let (mut client, id) = rig.connect(address);
    std::thread::spawn(move || std::io::copy(&mut client, &mut std::io::sink()));
    for round in 0..20 {
        let mut chunks: Vec<_> =
            std::iter::from_fn(|| arena.take(ByteCount::mib(1), Content::Written)).collect();
        assert!(chunks.len() > 50, "the arena recovered before round {round}");
        for (at, chunk) in chunks.iter_mut().enumerate() {
            fill(chunk.unfrozen_mut(), round * 100 + at as u64);
            chunk.freeze(1 << 20);
        }
        let written = [0, 20, 40, chunks.len() - 1];
        for (at, &index) in written.iter().enumerate() {
            rig.disk(DiskOp::Write(write_of(&file, (at as u64) << 20, chunks[index].lease(0..1 << 20))));
        }
        let keep: Vec<_> = written.iter().map(|&index| chunks[index].lease(0..1)).collect();
        for chunk in chunks {
            let lease = chunk.lease(0..100);
            drop(chunk);
            rig.net(NetOp::Send(refer(id, lease)));
            assert_eq!(rig.sent(id), Ok(100));
            arena.settle();
        }
        for at in 0..written.len() as u64 {
            let result = rig.until("write", |event| match event {
                Event::Written { token, result } if token.0 == at << 20 => Some(*result),
                _ => None,
            });
            assert_eq!(result, Ok(ByteCount::mib(1)));
        }
        let bytes = std::fs::read(&path).expect("the file is there");
        for (at, &index) in written.iter().enumerate() {
            let seed = round * 100 + index as u64;
            let wrong = (0..1 << 20).find(|&byte| bytes[(at << 20) + byte] != pattern(byte, seed));
            assert_eq!(wrong, None, "round {round}, write {at}");
        }
        drop(keep);
        wrap(&mut rig, &mut arena, 0xcc);
    }
}

fn write_of<P: LinuxTypes>(file: &LinuxFile, position: u64, lease: LinuxLease) -> Write<P> {
    Write {
        token: Token(position),
        file: file.clone(),
        position: Position::new(position),
        len: ByteCount::of_usize(lease.len()),
        extents: std::iter::once(lease).collect(),
        bounce: None,
        durable: false,
    }
}
