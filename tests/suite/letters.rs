//! Letters between shards: what connections ask of the other shard's partitions is answered, in order, whatever is late and
//! whoever ends or stalls.

mod pair;

use std::collections::BTreeMap;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::limits::{STALL_MS_MAX, ShardLimits};
use rohrpost_engine_core::message::ShardId;
use rohrpost_engine_core::ops::Event;

use pair::{ANSWER_LEN, BATCHES, OK, Pair, REFUSED, SHARDS, batch};

/// Connections on both shards ask both for fetches and appends; some break off in the middle. The others get their
/// answers, in order and byte for byte; slots of broken ones come back at both shards.
#[test]
fn answers_come_from_either_shard_in_order() {
    let (mut asked, mut copied) = (0, 0);
    for seed in 0..60 {
        let mut pair = Pair::new(seed);
        let mut frames_of = BTreeMap::new();
        for slot in 0..4 {
            let conn = pair.connect(slot as usize % SHARDS, slot, 1);
            frames_of.insert(conn, Vec::new());
        }
        let conns: Vec<_> = frames_of.keys().copied().collect();
        for _ in 0..12 {
            let conn = conns[pair.below(conns.len())];
            let partition = pair.below(SHARDS) as u8;
            // No answer reaches what is appended here, which is on no disk.
            let offset = pair.below(BATCHES as usize / 2) as u8;
            let frame = match pair.below(6) {
                0 => [b'A', partition, offset, 1 + pair.below(40) as u8],
                1 => [b'S', partition, offset, 1 + pair.below(30) as u8],
                _ => [b'F', partition, offset, 1 + pair.below(30) as u8],
            };
            if pair.closed.contains(&conn) {
                continue;
            }
            let mut bytes = frame.to_vec();
            if frame[0] == b'A' {
                bytes.extend(batch(frame[3]));
            }
            // In one piece, or cut so that the connection's own memory holds the frame.
            let cut = if pair.below(2) == 0 { bytes.len() } else { 1 + pair.below(bytes.len()) };
            pair.receive(conn, &bytes[..cut]);
            if cut < bytes.len() {
                pair.receive(conn, &bytes[cut..]);
            }
            if let Some(frames) = frames_of.get_mut(&conn) {
                frames.push(frame);
            }
            pair.turns(6);
            if pair.below(12) == 0 {
                pair.rigs[conn.0].handle(Event::Received { conn: conn.1, bytes: Err(Errno::CONNRESET) });
                pair.turn(conn.0);
                assert!(pair.closed.contains(&conn));
            }
        }
        pair.settle();
        for (conn, frames) in frames_of.iter().filter(|(conn, _)| !pair.closed.contains(conn)) {
            pair.check(*conn, frames);
        }
        asked += pair.rigs.iter().map(|rig| rig.shard.stats().fetches_at_others).sum::<u64>();
        copied += pair.rigs.iter().map(|rig| rig.shard.stats().payload_copied_between_shards).sum::<u64>();
    }
    assert!(asked > 100 && copied > 0, "{asked} {copied}: a test of something");
}

/// Fetches that wait at the other shard go with their connection: there are fewer slots than waits here.
#[test]
fn waits_end_with_their_connection() {
    for seed in 0..10 {
        let mut pair = Pair::new(seed);
        for generation in 1..12 {
            let conn = pair.connect(0, 5, generation);
            pair.receive(conn, &[b'W', 1, 0, 1, b'W', 1, 0, 1, b'W', 0, 0, 1]);
            pair.turns(5);
            pair.rigs[0].handle(Event::Received { conn: conn.1, bytes: Err(Errno::CONNRESET) });
            pair.settle();
        }
        let conn = pair.connect(0, 5, 100);
        let frames = [[b'F', 1, 3, 2], [b'F', 0, 3, 2]];
        pair.receive(conn, frames.as_flattened());
        pair.settle();
        pair.check(conn, &frames);
    }
}

/// Peers of one shard that take nothing give back what the other one has lent them as soon as its memory is short, and
/// are left alone however long they stall. When they take bytes again, their answers are whole and in order.
#[test]
fn stalled_peers_give_back_what_another_shard_has_lent() {
    let mut recalled = 0;
    for seed in 0..60 {
        let mut pair = Pair::new(seed);
        let conn = pair.connect(0, 0, 1);
        let frames = [[b'F', 1, 3, 30], [b'F', 1, 20, 30], [b'F', 0, 5, 10], [b'F', 1, 7, 1]];
        pair.receive(conn, frames.as_flattened());
        // The socket is full after none of it, or some.
        pair.turns(12);
        for _ in 0..3 {
            pair.deafen(conn);
            if pair.below(2) == 0 {
                pair.settle();
            }
            let before = pair.rigs[0].shard.stats().sends_recalled;
            pair.fall_short(ShardLimits::small().recall_ms);
            if pair.rigs[0].shard.stats().sends_recalled > before {
                pair.fall_short(STALL_MS_MAX);
                assert!(pair.closed.is_empty(), "seed {seed}: what holds nothing is left alone");
            }
            if pair.below(3) == 0 {
                pair.listen(conn);
                pair.turns(3);
            }
        }
        pair.listen(conn);
        pair.settle();
        pair.check(conn, &frames);
        recalled += pair.rigs[0].shard.stats().sends_recalled;
    }
    assert!(recalled > 10, "{recalled}: a test of something");
}

/// A shard that has ended answers nothing: what it was asked is refused, in order, and so is what it would be asked.
#[test]
fn a_shard_that_has_ended_refuses() {
    let mut pair = Pair::new(1);
    let conn = pair.connect(0, 0, 1);
    pair.receive(conn, &[b'F', 0, 1, 1, b'W', 1, 2, 1]);
    pair.receive(conn, &[[b'A', 1, 3, 1].as_slice(), &batch(1)].concat());
    pair.receive(conn, &[b'F', 0, 4, 1]);
    pair.turn(0);
    // Everything on its way to it goes down with it.
    pair.letters[1].clear();
    pair.rigs[0].handle(Event::ShardEnded(ShardId(1)));
    pair.receive(conn, &[b'F', 1, 5, 1]);
    pair.settle();
    let (mut out, mut statuses) = (pair.out[&conn].as_slice(), Vec::new());
    while !out.is_empty() {
        statuses.push((out[0], out[1]));
        let len = u32::from_le_bytes(out[2..ANSWER_LEN].try_into().unwrap()) as usize;
        out = &out[ANSWER_LEN + len..];
    }
    assert_eq!(statuses, [(OK, 1), (REFUSED, 2), (REFUSED, 3), (OK, 4), (REFUSED, 5)]);
}
