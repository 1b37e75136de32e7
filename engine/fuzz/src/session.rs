//! Any bytes, over several connections, into a simulated shard.
//!
//! Answers come in the order of the frames; what is served are whole batches that pass their checksums; connections
//! and memory are given back; and the shard stops in order however it was treated.

use std::path::Path;

use rohrpost_engine_core::error::{AppendError, FetchError};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest, Mode};
use rohrpost_engine_core::format::walk::{BatchWalk, Check, StopReason};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::{LogConfig, LogDir, LogDirOptions};
use rohrpost_engine_core::message::{Appended, PartitionId, Reply, Request, Ticket};
use rohrpost_engine_core::ops::{ConnId, Driver, Event, Now, Ops};
use rohrpost_engine_core::service::{Answer, Frame, Service};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::{ByteCount, Nanos, Offset, Position, Timestamp};
use rohrpost_engine_sim::disk::SimDisk;
use rohrpost_engine_sim::driver::SimDriver;
use rohrpost_engine_sim::fault::Delays;
use rohrpost_engine_sim::memory::{Memory, SimArena};
use rohrpost_engine_sim::platform::SimPlatform;
use rohrpost_engine_sim::prng::Prng;
use rohrpost_engine_sim::storage::Storage;
use rohrpost_engine_sim::trace::Trace;

const FRAME_LEN_MIN: usize = 8;
const FRAME_LEN_MAX: usize = 32 << 10;
const ANSWER_LEN: usize = 16;
const CONNECTIONS: usize = 3;

/// Turns after the last byte.
const TURNS_AFTER: u32 = 100;

/// Turns for opening or stopping.
const TURNS_MAX: u32 = 20_000;

/// A protocol of its own: length, kind, partition, mode; answers count from 0 on every connection.
struct Fuzzed;

fn number(frame: &[u8], at: usize) -> u32 {
    frame.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(*bytes.first_chunk().expect("four bytes")))
}

impl Service for Fuzzed {
    type Connection = u64;

    fn frame_len(&self, received: &[u8]) -> Frame {
        if received.len() < 4 {
            return Frame::Incomplete;
        }
        match number(received, 0) as usize {
            len if !(FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len) => Frame::Malformed,
            len if len > received.len() => Frame::Incomplete,
            len => Frame::Complete(len),
        }
    }

    fn handle_frame(&mut self, _: Now, count: &mut u64, frame: &[u8], response: &mut Vec<u8>) -> Answer {
        let (tag, partition) = (*count, PartitionId(u32::from(frame[5] & 1)));
        *count += 1;
        match frame[4] & 3 {
            0 => {
                write_answer(response, tag, 0);
                Answer::Respond
            }
            1 => {
                let high = i64::from(number(frame, 12) as i32) << 32;
                let request = FetchRequest {
                    len_min: ByteCount::new(number(frame, 20).into()),
                    wait_ms_max: number(frame, 24) % 1000,
                    mode: Mode::ALL.get(usize::from(frame[6])).copied(),
                    ..FetchRequest::new(
                        partition,
                        Offset::new(high | i64::from(number(frame, 8))),
                        ByteCount::new(number(frame, 16).into()),
                    )
                };
                Answer::Fetch { request, tag }
            }
            2 => Answer::Append { partition, batches: FRAME_LEN_MIN..frame.len(), tag },
            _ => Answer::Close,
        }
    }

    fn handle_fetched(
        &mut self,
        tag: u64,
        outcome: &Result<FetchOutcome, FetchError>,
        response: &mut Vec<u8>,
    ) {
        write_answer(response, tag, outcome.as_ref().map_or(0, |outcome| outcome.len.get()));
    }

    fn handle_appended(&mut self, tag: u64, _: &Result<Appended, AppendError>, response: &mut Vec<u8>) {
        write_answer(response, tag, 0);
    }
}

fn write_answer(response: &mut Vec<u8>, tag: u64, len: u64) {
    response.extend_from_slice(&tag.to_le_bytes());
    response.extend_from_slice(&len.to_le_bytes());
}

/// One client: what it has received, and how many answers.
#[derive(Default)]
struct Client {
    conn: Option<ConnId>,
    received: Vec<u8>,
    answers: u64,
    served_len: usize,
}

impl Client {
    fn take(&mut self, bytes: Vec<u8>) {
        self.received.extend(bytes);
        while let Some(head) = self.received.first_chunk::<ANSWER_LEN>() {
            let word = |at: usize| u64::from_le_bytes(*head[at..].first_chunk().expect("eight bytes"));
            let (tag, len) = (word(0), word(8) as usize);
            assert_eq!(tag, self.answers, "answers come in the order of their frames");
            if self.received.len() < ANSWER_LEN + len {
                return;
            }
            let body = &self.received[ANSWER_LEN..ANSWER_LEN + len];
            let mut walk = BatchWalk::new(body, Position::ZERO, Offset::ZERO, Check::Crc);
            let whole = walk.by_ref().count();
            let reason = walk.stop().reason;
            let cut = matches!(reason, StopReason::Torn { .. });
            assert!(
                reason == StopReason::End || cut && whole > 0,
                "served: {reason:?} behind {whole} batches"
            );
            self.answers += 1;
            self.served_len += len;
            self.received.drain(..ANSWER_LEN + len);
        }
    }
}

struct Room {
    shard: Shard<SimPlatform, Fuzzed>,
    driver: SimDriver,
    ops: Ops<SimPlatform>,
    events: Vec<Event<SimPlatform>>,
    clients: [Client; CONNECTIONS],
    opened: usize,
}

impl Room {
    fn turn(&mut self) {
        let deadline = self.shard.next_deadline(self.driver.now());
        self.driver.turn(&mut self.ops, &mut self.events, deadline).expect("the power stays on");
        let now = self.driver.now();
        for event in self.events.drain(..) {
            self.shard.handle_event(now, event, &mut self.ops);
        }
        self.shard.poll(now, &mut self.ops);
        self.driver.turn(&mut self.ops, &mut self.events, Some(now.mono)).expect("the power stays on");
        for (_, reply) in self.ops.replies.drain(..) {
            self.opened += usize::from(matches!(reply, Reply::Opened(Ok(_))));
        }
        for client in &mut self.clients {
            let Some(conn) = client.conn else { continue };
            match self.driver.net.client_receive(conn) {
                Some(bytes) => client.take(bytes),
                None => *client = Client::default(),
            }
        }
    }

    /// One thing that clients do: the first byte says who and what, then come a length and bytes.
    fn act(&mut self, head: u8, bytes: &[u8]) {
        let now = self.driver.now_ns();
        let slot = usize::from(head & 0x0f) % CONNECTIONS;
        let conn = match self.clients[slot].conn {
            Some(conn) if self.driver.net.is_open(conn) => conn,
            Some(_) => return,
            None => {
                let conn = self.driver.net.connect(slot as u32, now);
                self.clients[slot].conn = Some(conn);
                conn
            }
        };
        match head >> 4 {
            0 => self.driver.net.client_close(conn, false, now),
            1 => self.driver.net.client_close(conn, true, now),
            2 => self.driver.advance(50_000_000),
            _ => self.driver.net.client_send(conn, bytes, now),
        }
    }
}

/// See the module documentation.
pub(crate) fn session(data: &[u8]) {
    play(data);
}

/// Answers that came back whole, and bytes of batches in them, of connections that were open at the end.
fn play(data: &[u8]) -> (u64, usize) {
    let disk = SimDisk::new(Storage::new(Prng::new(1), 1 << 30, Trace::new(false)));
    let log_dir =
        LogDir::open(disk.clone(), Path::new("/data"), LogDirOptions::default()).expect("an empty disk");
    let steps = log_dir.clone();
    let memory = Memory { slab_granules: 64, slab_bounces: 16, slabs_max: 1 };
    let now = Now { mono: Nanos::new(1_000_000_000), wall: Timestamp::new(1_700_000_000_000) };
    let run_step = Box::new(move |step: rohrpost_engine_core::log::step::Step<SimPlatform>| step.run(&steps));
    let mut driver = SimDriver::new(disk, run_step, Prng::new(2), Delays::QUICK, memory, now);
    let limits = ShardLimits {
        connections_max: CONNECTIONS as u32,
        request_len_max: ByteCount::new(FRAME_LEN_MAX as u64),
        fetches_max: 16,
        pipeline_max: 4,
        ..ShardLimits::small()
    };
    let shard = Shard::new(limits, SimArena::default(), Fuzzed);
    let (ops, clients) = (Ops::with_capacity(64), Default::default());
    driver.net.pipes_refused = 0; // without a pipe a forced mode ends its connection
    let mut room = Room { shard, driver, ops, events: Vec::new(), clients, opened: 0 };
    for number in 0..2 {
        let name = format!("t-{number}").parse().expect("a partition's name");
        // The corpus is of 1970, and is not to be deleted for its age.
        let config = LogConfig { retention_ms: None, ..LogConfig::default() };
        let request = Request::Open { partition: PartitionId(number), name, config };
        room.driver.request_in(0, Ticket(u64::from(number)), request);
    }
    run_until(&mut room, "opening", |room| room.opened == 2);
    let mut rest = data;
    while let Some((&[head, low, high], behind)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([low, high])).min(behind.len());
        room.act(head, &behind[..len]);
        rest = &behind[len..];
        room.turn();
    }
    for _ in 0..TURNS_AFTER {
        room.turn();
    }
    let answers = room.clients.iter().map(|client| client.answers).sum();
    let served_len = room.clients.iter().map(|client| client.served_len).sum();
    room.driver.request_in(0, Ticket(9), Request::Shutdown);
    run_until(&mut room, "stopping", |room| room.shard.is_stopped());
    let Room { shard, mut driver, ops, events, .. } = room;
    driver.abandon();
    drop((shard, ops, events));
    assert_eq!(driver.memory_taken(), 0, "chunks and bounce blocks come home");
    (answers, served_len)
}

fn run_until(room: &mut Room, what: &str, done: impl Fn(&Room) -> bool) {
    for _ in 0..TURNS_MAX {
        if done(room) {
            return;
        }
        room.turn();
    }
    panic!("{what} makes no progress");
}

fn frame(kind: u8, mode: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = ((FRAME_LEN_MIN + rest.len()) as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&[kind, 0, mode, 0]);
    frame.extend_from_slice(rest);
    frame
}

fn chunk(head: u8, bytes: &[u8]) -> Vec<u8> {
    [&[head][..], &(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

/// Appends, fetches in every mode, frames in pieces, connections that go.
pub(crate) fn seeds(batches: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let fetch = |mode: u8, offset: u32| {
        let words = [offset, 0, 1 << 16, 1, 100];
        frame(1, mode, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
    };
    let append = chunk(0x30, &frame(2, 0, batches));
    let wait = chunk(0x20, b"");
    let modes: Vec<u8> = (0..Mode::ALL.len() as u8).flat_map(|mode| chunk(0x31, &fetch(mode, 2))).collect();
    let pieces: Vec<u8> = fetch(255, 3).chunks(5).flat_map(|piece| chunk(0x32, piece)).collect();
    let ends = [chunk(0x00, b""), chunk(0x11, b""), wait.clone(), append.clone()].concat();
    vec![
        ("append-fetch", [append.clone(), wait.clone(), modes].concat()),
        ("pieces", [append.clone(), pieces, chunk(0x33, &frame(0, 0, b""))].concat()),
        ("ends", [append, chunk(0x31, &fetch(255, 9)), ends].concat()),
        ("malformed", chunk(0x30, &[1, 0, 0, 0, 9])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds reach what they are there for: appends, answers in every mode, frames in pieces, connections that end.
    #[test]
    fn seeds_are_answered() {
        let log = crate::corpus::batches(0, 7);
        let seeds = seeds(&log);
        let by_name = |name| play(&seeds.iter().find(|(other, _)| *other == name).unwrap().1);
        let (answers, served_len) = by_name("append-fetch");
        assert_eq!(answers, 1 + Mode::ALL.len() as u64);
        assert!(served_len > log.len(), "{served_len}");
        assert_eq!(by_name("pieces").0, 3);
        assert_eq!(by_name("malformed"), (0, 0));
    }
}
