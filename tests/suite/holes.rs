//! Cold reads of a log some of whose blocks the device does not give out: what lies beside them is served, what lies on
//! them is refused by name, by a shard driven by hand.

use rohrpost_bench::null::{NullPlatform, NullRig, Received, read_event};
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::error::{AppendError, FetchError};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest};
use rohrpost_engine_core::format::walk::{BatchWalk, Check};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::message::Appended;
use rohrpost_engine_core::ops::{ConnId, Event, NetOp, Now, Read};
use rohrpost_engine_core::service::{Answer, Frame, Service};
use rohrpost_engine_core::types::{ByteCount, Offset, Position};

use crate::shard::{PARTITION, fetch, fetched, limits, take_reads, write_segment};

const BLOCK: u64 = 4096;
const BATCHES: i64 = 128;
const RECORDS: i64 = 3;
/// Some five blocks a batch, so that batches begin anywhere in theirs.
const RECORD_LEN: usize = 6_500;

/// A log whose bytes are known, and the shard that serves it. Its budget is that of two reads.
struct Cold<S: Service> {
    rig: NullRig<S>,
    log: Vec<u8>,
    batch_len: u64,
    /// Where the blocks begin that cannot be read.
    bad: Vec<u64>,
    _scratch: tempfile::TempDir,
}

impl<S: Service> Cold<S> {
    fn new(service: S, bad: &[u64]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("data");
        let log = write_segment(&root, 0..BATCHES, RECORDS, RECORD_LEN);
        let limits = ShardLimits { cold_read_bytes_max: ByteCount::kib(256), ..limits() };
        let mut rig = NullRig::new(&root, limits, service).unwrap();
        rig.open(PARTITION, "t-0", NullRig::<S>::log_config()).unwrap();
        let batch_len = log.len() as u64 / BATCHES as u64;
        Self { rig, log, batch_len, bad: bad.to_vec(), _scratch: scratch }
    }

    /// How a read ends on this device.
    fn end(&self, read: Read<NullPlatform>) -> Event<NullPlatform> {
        let (start, end) = (read.position.get(), read.position.get() + read.len as u64);
        if self.bad.iter().any(|bad| *bad < end && bad + BLOCK > start) {
            let Read { token, chunk, .. } = read;
            return Event::ReadDone { token, chunk, result: Err(Errno::IO) };
        }
        read_event(read)
    }

    /// Turns until the shard asks for nothing more.
    fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "reads without end");
            self.rig.poll();
            if self.rig.ops.is_empty() {
                return;
            }
            for read in take_reads(&mut self.rig) {
                let event = self.end(read);
                self.rig.handle(event);
            }
        }
    }

    fn range(&self, batch: i64) -> std::ops::Range<u64> {
        batch as u64 * self.batch_len..(batch as u64 + 1) * self.batch_len
    }

    /// The first bad block under a batch.
    fn hole(&self, batch: i64) -> Option<u64> {
        let range = self.range(batch);
        self.bad.iter().copied().find(|bad| *bad < range.end && bad + BLOCK > range.start)
    }

    fn fetch(&mut self, offset: i64, len: u64) -> Result<Vec<u8>, FetchError> {
        let ticket = fetch(&mut self.rig, offset, len);
        self.settle();
        fetched(&mut self.rig, ticket).expect("an answer")
    }

    fn check(&mut self, batch: i64, result: Result<Vec<u8>, FetchError>) {
        let range = self.range(batch);
        match (self.hole(batch), result) {
            (None, Ok(bytes)) => {
                let expected = &self.log[range.start as usize..range.end as usize];
                assert!(bytes == expected, "batch {batch}: {} bytes", bytes.len());
            }
            (Some(hole), Err(FetchError::ReadFailed { base_offset, position, errno })) => {
                assert_eq!((base_offset, position, errno), (Offset::ZERO, hole, Errno::IO), "batch {batch}");
            }
            (hole, other) => panic!("batch {batch}, hole at {hole:?}: {:?}", other.map(|bytes| bytes.len())),
        }
    }
}

/// Bad blocks: the first one, the last one, one in the middle of a batch, one with the header of a batch, neighbours on
/// both sides of a chunk's end, all of a chunk, several in one read.
fn disks() -> Vec<Vec<u64>> {
    let cold = Cold::new((), &[]);
    let last = (cold.log.len() as u64 - 1) / BLOCK * BLOCK;
    let header_of_5 = cold.range(5).start / BLOCK * BLOCK;
    vec![
        vec![0],
        vec![last],
        vec![(cold.range(7).start / BLOCK + 2) * BLOCK],
        vec![header_of_5],
        vec![15 * BLOCK, 16 * BLOCK],
        (32..48).map(|block| block * BLOCK).collect(),
        vec![2 * BLOCK, 9 * BLOCK, 19 * BLOCK, 28 * BLOCK],
    ]
}

/// Whoever asks for a single batch gets it, but for those that lie on a bad block, which are refused with its place; when
/// the disk gives it out again, they are there. Nothing is left of the failed reads in the budget.
#[test]
fn batches_beside_bad_blocks_are_served() {
    for bad in disks() {
        let mut cold = Cold::new((), &bad);
        for round in 0..2 {
            for batch in 0..BATCHES {
                // By each of its offsets.
                let result = cold.fetch(batch * RECORDS + round, 1);
                cold.check(batch, result);
            }
        }
        let stats = cold.rig.shard.stats();
        assert!(stats.blocks_unreadable >= bad.len() as u64, "{stats:?}");
        cold.bad.clear();
        for batch in 0..BATCHES {
            let result = cold.fetch(batch * RECORDS, 1);
            cold.check(batch, result);
        }
    }
}

/// A reader that asks for a lot and steps over what is refused gets everything else, in order: its answers end before bad
/// blocks, after whole batches.
#[test]
fn long_answers_end_before_bad_blocks() {
    for bad in disks() {
        let mut cold = Cold::new((), &bad);
        let (mut batch, mut refused) = (0, Vec::new());
        while batch < BATCHES {
            let from = cold.range(batch).start;
            match cold.fetch(batch * RECORDS, 1 << 20) {
                Ok(bytes) => {
                    let reached = from + bytes.len() as u64;
                    assert!(bytes == cold.log[from as usize..reached as usize], "from batch {batch}");
                    let next = bad.iter().copied().find(|block| block + BLOCK > from);
                    assert!(
                        next.is_none_or(|next| reached <= next),
                        "{reached}: what lies on {next:?} is made up"
                    );
                    let offset = Offset::new(batch * RECORDS);
                    let walk = BatchWalk::new(&bytes, Position::new(from), offset, Check::Crc);
                    let whole = walk.count() as i64;
                    assert!(whole > 0, "the first batch is whole");
                    batch += whole;
                }
                Err(error) => {
                    cold.check(batch, Err(error));
                    refused.push(batch);
                    batch += 1;
                }
            }
        }
        let expected: Vec<i64> = (0..BATCHES).filter(|batch| cold.hole(*batch).is_some()).collect();
        assert_eq!(refused, expected);
    }
}

/// Readers on both sides of a bad block, and on it, at the same time: each gets what is there for it.
#[test]
fn readers_around_a_bad_block_do_not_hinder_each_other() {
    for bad in disks() {
        let mut cold = Cold::new((), &bad);
        for round in 0..3 {
            let batches: Vec<i64> = (0..24).chain(BATCHES - 4..BATCHES).chain(0..24).collect();
            let tickets: Vec<_> =
                batches.iter().map(|batch| fetch(&mut cold.rig, batch * RECORDS + round, 1)).collect();
            cold.settle();
            for (batch, ticket) in batches.into_iter().zip(tickets) {
                let result = fetched(&mut cold.rig, ticket).expect("an answer");
                cold.check(batch, result);
            }
        }
    }
}

/// Every frame `F` reads 256 KiB from offset 0; an answer begins with its length, or with an `E`.
struct Letters;

impl Service for Letters {
    type Connection = ();

    fn frame_len(&self, received: &[u8]) -> Frame {
        if received.is_empty() { Frame::Incomplete } else { Frame::Complete(1) }
    }

    fn handle_frame(&mut self, _: Now, _: &mut (), _: &[u8], _: &mut Vec<u8>) -> Answer {
        let len = ByteCount::kib(256);
        Answer::Fetch { request: FetchRequest::new(PARTITION, Offset::ZERO, len), tag: 0 }
    }

    fn handle_fetched(&mut self, _: u64, outcome: &Result<FetchOutcome, FetchError>, response: &mut Vec<u8>) {
        match outcome {
            Ok(outcome) => response.extend_from_slice(&outcome.len.get().to_be_bytes()),
            Err(_) => response.push(b'E'),
        }
    }

    fn handle_appended(&mut self, _: u64, _: &Result<Appended, AppendError>, _: &mut Vec<u8>) {
        unreachable!("nothing is appended");
    }
}

/// A connection's answer is promised before all of it is in memory. If a bad block comes to light then, the connection ends
/// with it; the next one is promised what is there. A first batch that cannot be read is an error, not a broken connection.
#[test]
fn connections_are_promised_what_can_be_read() {
    for (bad, broken) in [(16 * BLOCK, false), (37 * BLOCK, true), (BLOCK, false)] {
        let mut cold = Cold::new(Letters, &[bad]);
        let mut last = Vec::new();
        for number in 0..2 {
            let (bytes, closed) = ask(&mut cold, ConnId { slot: number, generation: 1 });
            assert_eq!(closed, broken && number == 0, "connection {number}, {bad}");
            last = bytes;
        }
        if bad == BLOCK {
            assert_eq!(last, b"E");
            continue;
        }
        let len = u64::from_be_bytes(last[..8].try_into().unwrap());
        assert_eq!(last.len() as u64, 8 + len);
        assert!(len > 0 && len <= bad, "{len} bytes, {bad}");
        assert!(last[8..] == cold.log[..len as usize]);
    }
}

/// What a connection gets for one frame, and whether it is closed.
fn ask(cold: &mut Cold<Letters>, conn: ConnId) -> (Vec<u8>, bool) {
    cold.rig.handle(Event::Accepted { conn, remote: false });
    cold.rig.handle(Event::Received { conn, bytes: Ok(Received(b"F".to_vec())) });
    let (mut out, mut closed) = (Vec::new(), false);
    for turn in 0.. {
        assert!(turn < 10_000, "an answer without end");
        cold.rig.poll();
        for op in &cold.rig.ops.net {
            match op {
                NetOp::Send(send) => {
                    let parts = send.parts.iter().flat_map(|part| part.as_ref().iter().copied());
                    out.extend(parts.skip(send.skip));
                }
                NetOp::Close(of) => closed |= *of == conn,
                _ => {}
            }
        }
        if cold.rig.ops.is_empty() {
            return (out, closed);
        }
        for read in take_reads(&mut cold.rig) {
            let event = cold.end(read);
            cold.rig.handle(event);
        }
    }
    unreachable!("the loop returns")
}
