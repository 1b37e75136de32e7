//! What is sent by reference arrives as it was when it was sent, whatever happens to the arena meanwhile.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use rohrpost_engine_core::ops::{ConnId, SendPart};
use rohrpost_engine_core::platform::{Arena, Chunk, Content, Lease};
use rohrpost_engine_core::types::ByteCount;
use rustix::net::sockopt;

use super::*;
use crate::arena::{LinuxArena, LinuxSlab, PageRound};
use crate::poll::PollPlatform;
use crate::testing::{pattern, patterned, send_of};

const CONN: ConnId = ConnId { slot: 0, generation: 0 };

/// A non-blocking sender and its peer, which takes in at most about `recv_buf_len` bytes unread.
fn pair(recv_buf_len: usize) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    sockopt::set_socket_recv_buffer_size(&listener, recv_buf_len).unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    sockopt::set_socket_send_buffer_size(&sender, 64 << 10).unwrap();
    sender.set_nonblocking(true).unwrap();
    (sender, peer)
}

fn arena_with_round() -> (LinuxArena, PageRound) {
    let slab = LinuxSlab::allocate(0).unwrap();
    let (mut arena, mut round) = (LinuxArena::new(1), PageRound::default());
    round.watch(&slab);
    arena.adopt(slab);
    (arena, round)
}

fn send(reference: &mut Reference, socket: &TcpStream, send: &Send<PollPlatform>) -> Result<usize, Errno> {
    reference.send(socket.as_fd(), send)
}

/// Headers and unaligned ranges over several chunks, in order, through a socket that takes them bit by bit.
#[test]
fn partial_sends_lose_and_repeat_nothing() {
    let (mut arena, _round) = arena_with_round();
    let _bounces = arena.take(ByteCount::mib(1), Content::Written).unwrap();
    let (sender, mut peer) = pair(4096);
    let mut reference = Reference::open().unwrap();
    let chunks: Vec<_> = (0..3).map(|seed| patterned(&mut arena, ByteCount::mib(1), seed)).collect();
    let small = patterned(&mut arena, ByteCount::kib(64), 9);
    let ranges = [5..1_000_001, 4095..4097, 77..300_000];
    let mut expected = b"header".to_vec();
    let mut parts = vec![SendPart::Bytes(expected.clone())];
    for (seed, range) in ranges.into_iter().enumerate() {
        expected.extend(range.clone().map(|at| pattern(at, seed as u64)));
        parts.push(SendPart::Lease(chunks[seed].lease(range)));
    }
    expected.extend((1..60_000).map(|at| pattern(at, 9)));
    parts.push(SendPart::Lease(small.lease(1..60_000)));
    expected.extend(b"trailer");
    parts.push(SendPart::Bytes(b"trailer".to_vec()));
    let (mut arrived, mut refused) = (Vec::new(), 0);
    let mut random = fastrand::Rng::with_seed(3);
    while !parts.is_empty() {
        let mut op = send_of(CONN, []);
        op.parts.extend(parts.drain(..));
        match send(&mut reference, &sender, &op) {
            Ok(len) => skip(&mut op, len),
            Err(Errno::AGAIN) => refused += 1,
            Err(errno) => panic!("{errno}"),
        }
        parts.extend(op.parts.drain(..));
        // What is cut off an operation is cut off its first part here.
        if op.skip > 0 {
            parts[0] = match &parts[0] {
                SendPart::Bytes(bytes) => SendPart::Bytes(bytes[op.skip..].to_vec()),
                SendPart::Lease(lease) => SendPart::Lease(lease.slice(op.skip..lease.len())),
            };
        }
        let mut some = vec![0; random.usize(1..40_000)];
        let len = peer.read(&mut some).unwrap();
        arrived.extend_from_slice(&some[..len]);
    }
    drop(sender);
    peer.read_to_end(&mut arrived).unwrap();
    let wrong = expected.iter().zip(&arrived).position(|(expected, arrived)| expected != arrived);
    assert_eq!((arrived.len(), wrong), (expected.len(), None));
    assert!(reference.lent_len > 1_000_000, "most of it was lent: {}", reference.lent_len);
    assert!(refused > 0, "the socket was never full");
}

/// Advances an operation by `len` bytes.
fn skip(op: &mut Send<PollPlatform>, len: usize) {
    op.skip += len;
    while op.parts.first().is_some_and(|part| part.as_ref().len() <= op.skip) {
        op.skip -= op.parts.remove(0).as_ref().len();
    }
}

/// A reader stalls with bytes by reference in its queue; the arena is written full twice meanwhile; then the
/// reader takes them, as they were. Without replacement it would read what was written since.
#[test]
fn a_stalled_reader_gets_what_was_sent() {
    let (mut arena, mut round) = arena_with_round();
    let mut reference = Reference::open().unwrap();
    let mut peers = Vec::new();
    for seed in 0..8 {
        let (sender, peer) = pair(4096);
        let chunk = patterned(&mut arena, ByteCount::mib(1), seed);
        // Unaligned, so that pages are lent in part.
        let op = send_of(CONN, [SendPart::Lease(chunk.lease(100..1_000_000))]);
        let len = send(&mut reference, &sender, &op).unwrap();
        assert!(len > 10_000, "something is queued");
        peers.push((peer, sender, len, seed));
    }
    assert!(reference.lent_len > 0);
    for turn in 0..3 {
        let mut chunks = Vec::new();
        while let Some(mut chunk) = arena.take(ByteCount::kib(64), Content::Written) {
            chunk.unfrozen_mut().fill(0xa0 | turn);
            chunks.push(chunk);
        }
        drop(chunks);
        arena.settle();
        round.take_wanted(|pages| {
            assert!(pages.replace() > 0);
        });
        round.take_backed(|_| {});
        arena.settle();
        assert_eq!(arena.free_len(), arena.capacity(), "the arena wrapped completely");
    }
    for (mut peer, sender, len, seed) in peers {
        drop(sender);
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), len);
        let wrong = (0..len).find(|&at| bytes[at] != pattern(at + 100, seed));
        assert_eq!(wrong, None, "first wrong byte of reader {seed}");
    }
}

/// `SIGPIPE` is ignored, as in every Rust test. A connection that breaks with bytes in the pipe leaves nothing for the next one.
#[test]
fn a_broken_connection_leaves_the_pipe_empty() {
    let (mut arena, _round) = arena_with_round();
    let _bounces = arena.take(ByteCount::mib(1), Content::Written).unwrap();
    let mut reference = Reference::open().unwrap();
    let chunk = patterned(&mut arena, ByteCount::mib(1), 1);
    for round in 0..4 {
        let (broken, gone) = pair(4096);
        drop(gone);
        let op = send_of(CONN, [SendPart::Lease(chunk.lease(0..1 << 20))]);
        let failed = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_micros(100));
            send(&mut reference, &broken, &op).err().filter(|errno| *errno != Errno::AGAIN)
        });
        assert!(failed.is_some(), "the peer is gone");
        let (sender, mut peer) = pair(64 << 10);
        let op = send_of(CONN, [SendPart::Lease(chunk.lease(round * 3..round * 3 + 1000))]);
        assert_eq!(send(&mut reference, &sender, &op), Ok(1000));
        drop(sender);
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        let wrong = (0..1000).find(|&at| bytes[at] != pattern(at + round * 3, 1));
        assert_eq!((bytes.len(), wrong), (1000, None));
    }
}
