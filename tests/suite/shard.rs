//! A shard driven by hand: the test decides when each operation ends.

use std::ops::Range;
use std::path::Path;

use rohrpost_bench::null::{NullPlatform, NullRig, Received, read_event};
use rohrpost_engine_core::error::{AppendError, FetchError};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest};
use rohrpost_engine_core::format::batch::patch;
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::LogConfig;
use rohrpost_engine_core::message::{Appended, PartitionId, Reply, Request, Ticket};
use rohrpost_engine_core::ops::{ConnId, DiskOp, Event, NetOp, Now, Read, Send};
use rohrpost_engine_core::service::{Answer, Frame, Service};
use rohrpost_engine_core::types::{ByteCount, LeaderEpoch, Offset, Timestamp};

pub(super) const PARTITION: PartitionId = PartitionId(7);
pub(super) const BATCH_LEN: usize = 16 << 10;

/// A partition's directory with one segment of `batches` batches of one record each; the segment's bytes.
fn write_log(root: &Path, batches: i64) -> Vec<u8> {
    write_segment(root, 0..batches, 1, BATCH_LEN)
}

/// Adds a segment of these batches, of `records` records of `len` bytes each; its bytes.
pub(super) fn write_segment(root: &Path, batches: Range<i64>, records: i64, len: usize) -> Vec<u8> {
    let dir = root.join("t-0");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{:020}.log", batches.start * records));
    let mut log = Vec::new();
    for number in batches {
        let mut batch = BatchBuilder::new();
        let value = vec![number as u8; len];
        for _ in 0..records {
            batch.record(Timestamp::new(1_700_000_000_000), None, Some(&value));
        }
        let mut batch = batch.build();
        patch(&mut batch, Offset::new(number * records), LeaderEpoch::ZERO);
        log.extend_from_slice(&batch);
    }
    std::fs::write(path, &log).unwrap();
    log
}

/// A shard with that partition open, its log cold.
pub(super) fn rig<S: Service>(limits: ShardLimits, service: S) -> (tempfile::TempDir, NullRig<S>, Vec<u8>) {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("data");
    let log = write_log(&root, 256);
    let mut rig = NullRig::new(&root, limits, service).unwrap();
    rig.open(PARTITION, "t-0", NullRig::<S>::log_config()).unwrap();
    (scratch, rig, log)
}

pub(super) fn limits() -> ShardLimits {
    ShardLimits { cold_read_len: ByteCount::kib(128), ..ShardLimits::small() }
}

pub(super) fn fetch<S: Service>(rig: &mut NullRig<S>, offset: i64, len: u64) -> Ticket {
    rig.request(Request::Fetch(FetchRequest::new(PARTITION, Offset::new(offset), ByteCount::new(len))))
}

/// Reads that the shard has asked for; everything else of the turn is completed.
pub(super) fn take_reads<S: Service>(rig: &mut NullRig<S>) -> Vec<Read<NullPlatform>> {
    let reads = rig.ops.disk.drain(..).map(|op| match op {
        DiskOp::Read(read) => read,
        _ => panic!("nothing is written here"),
    });
    let reads = reads.collect();
    rig.complete();
    reads
}

pub(super) fn fetched<S: Service>(
    rig: &mut NullRig<S>,
    ticket: Ticket,
) -> Option<Result<Vec<u8>, FetchError>> {
    match rig.take_reply(ticket)? {
        Reply::Fetched(result) => Some(
            result.map(|fetched| fetched.pieces.iter().flat_map(|piece| piece.as_ref().to_vec()).collect()),
        ),
        _ => panic!("a fetch is answered in kind"),
    }
}

/// I8: readers all over a cold log never have more of the device than the budget and one read.
#[test]
fn cold_reads_stay_within_their_budget() {
    let budget = ByteCount::kib(256);
    let (_scratch, mut rig, log) = rig(ShardLimits { cold_read_bytes_max: budget, ..limits() }, ());
    let offsets: Vec<i64> = (0..16).map(|i| i * 16).collect();
    let tickets: Vec<_> = offsets.iter().map(|offset| fetch(&mut rig, *offset, BATCH_LEN as u64)).collect();
    let (mut in_flight, mut read_count) = (std::collections::VecDeque::new(), 0);
    loop {
        rig.poll();
        in_flight.extend(take_reads(&mut rig));
        rig.poll();
        in_flight.extend(take_reads(&mut rig));
        let len: u64 = in_flight.iter().map(|read: &Read<_>| read.len as u64).sum();
        assert!(len < budget.get() + limits().cold_read_len.get(), "{len} in flight");
        // The latest one first: reads end in any order.
        let Some(read) = in_flight.pop_back() else { break };
        read_count += 1;
        rig.handle(read_event(read));
    }
    assert!(read_count >= tickets.len(), "every reader was somewhere else: {read_count} reads");
    let batch_len = log.len() / 256;
    for (ticket, offset) in tickets.into_iter().zip(offsets) {
        let bytes = fetched(&mut rig, ticket).expect("an answer").expect("bytes");
        let at = offset as usize * batch_len;
        assert!(log[at..].starts_with(&bytes) && bytes.len() >= batch_len, "offset {offset}");
    }
}

/// I7: three readers of one cold range wait for one read.
#[test]
fn a_range_being_read_is_not_read_twice() {
    let (_scratch, mut rig, log) = rig(limits(), ());
    let tickets: Vec<_> = (0..3).map(|_| fetch(&mut rig, 0, BATCH_LEN as u64)).collect();
    rig.poll();
    let mut reads = take_reads(&mut rig);
    if reads.is_empty() {
        // The file had to be opened first.
        rig.poll();
        reads = take_reads(&mut rig);
    }
    assert_eq!(reads.len(), 1);
    reads.into_iter().for_each(|read| rig.handle(read_event(read)));
    rig.settle();
    for ticket in tickets {
        let bytes = fetched(&mut rig, ticket).expect("an answer").expect("bytes");
        assert!(!bytes.is_empty());
        assert!(log.starts_with(&bytes));
    }
    assert_eq!(rig.shard.stats().cold_reads, 1);
    assert_eq!(rig.shard.stats().shared_reads, 2);
}

/// The only segment of a log that nobody appends to is too old: the log rolls, and what it leaves is sealed and
/// deleted without anybody else's doing.
#[test]
fn an_idle_log_that_is_too_old_is_deleted() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("data");
    write_log(&root, 4);
    let mut rig = NullRig::new(&root, limits(), ()).unwrap();
    let config = LogConfig { retention_ms: Some(60_000), ..NullRig::<()>::log_config() };
    rig.open(PARTITION, "t-0", config).unwrap();
    let segment = root.join("t-0/00000000000000000000.log");
    for _ in 0..2 {
        assert!(segment.exists());
        let Now { mono, wall } = rig.now;
        rig.now = Now { mono: mono.plus_millis(61_000), wall: Timestamp::new(wall.get() + 61_000) };
        rig.settle();
    }
    assert!(!segment.exists());
    let ticket = rig.request(Request::Watermarks(PARTITION));
    let Some(Reply::Watermarks(Ok(marks))) = rig.take_reply(ticket) else { panic!("the partition is open") };
    assert_eq!((marks.log_start_offset, marks.log_end_offset), (Offset::new(4), Offset::new(4)));
}

/// The scrub goes over all sealed segments once an hour, whatever else the shard does: rot that has come since is counted
/// once a round, and sound bytes never.
#[test]
fn rot_is_counted_by_the_scrub() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("data");
    let sealed = write_segment(&root, 0..64, 1, BATCH_LEN);
    write_segment(&root, 64..66, 1, BATCH_LEN);
    let limits = ShardLimits { scrub_rate: ByteCount::mib(64), ..limits() };
    let mut rig = NullRig::new(&root, limits, ()).unwrap();
    let round = |rig: &mut NullRig<()>| {
        for step_ms in [3_600_000, 1_000, 1_000, 1_000] {
            rig.now.mono = rig.now.mono.plus_millis(step_ms);
            rig.settle();
        }
        (rig.shard.stats().scrubbed_len, rig.shard.stats().scrub_damages)
    };
    rig.open(PARTITION, "t-0", NullRig::<()>::log_config()).unwrap();
    let (first, damages) = round(&mut rig);
    assert!(first >= sealed.len() as u64, "all of it: {first}");
    assert_eq!(damages, 0);
    let path = root.join("t-0/00000000000000000000.log");
    let mut rotten = sealed.clone();
    rotten[sealed.len() / 2] ^= 1;
    std::fs::write(&path, &rotten).unwrap();
    for count in 1..3 {
        assert_eq!(round(&mut rig).1, count);
    }
    std::fs::write(&path, &sealed).unwrap();
    assert_eq!(round(&mut rig).1, 2, "sound again");
}

/// I13: the read that a cancelled fetch waits for still names its slot, so nobody else gets it before.
#[test]
fn a_cancelled_fetch_keeps_its_slot_until_its_read_has_ended() {
    let (_scratch, mut rig, log) = rig(ShardLimits { fetches_max: 1, ..limits() }, ());
    let first = fetch(&mut rig, 0, BATCH_LEN as u64);
    rig.poll();
    let mut reads = take_reads(&mut rig);
    rig.poll();
    reads.extend(take_reads(&mut rig));
    assert_eq!(reads.len(), 1);

    rig.request(Request::CancelFetch(first));
    assert_eq!(fetched(&mut rig, first), Some(Err(FetchError::Cancelled)));
    let second = fetch(&mut rig, 128, BATCH_LEN as u64);
    assert_eq!(fetched(&mut rig, second), Some(Err(FetchError::Busy)), "the slot is not free yet");

    reads.into_iter().for_each(|read| rig.handle(read_event(read)));
    let third = fetch(&mut rig, 0, BATCH_LEN as u64);
    rig.settle();
    let bytes = fetched(&mut rig, third).expect("an answer").expect("bytes");
    assert!(!bytes.is_empty());
    assert!(log.starts_with(&bytes));
    assert_eq!(fetched(&mut rig, first), None, "answered once");
}

/// Frames of two bytes: `F` reads from offset 0, `P` is answered at once; an answer begins with the frame.
struct Letters;

impl Service for Letters {
    type Connection = ();

    fn frame_len(&self, received: &[u8]) -> Frame {
        if received.len() < 2 { Frame::Incomplete } else { Frame::Complete(2) }
    }

    fn handle_frame(&mut self, _: Now, _: &mut (), frame: &[u8], response: &mut Vec<u8>) -> Answer {
        match frame[0] {
            b'F' => {
                let len = ByteCount::new(3 * BATCH_LEN as u64);
                Answer::Fetch {
                    request: FetchRequest::new(PARTITION, Offset::ZERO, len),
                    tag: u64::from(frame[1]),
                }
            }
            _ => {
                response.extend_from_slice(frame);
                Answer::Respond
            }
        }
    }

    fn handle_fetched(&mut self, tag: u64, _: &Result<FetchOutcome, FetchError>, response: &mut Vec<u8>) {
        response.extend_from_slice(&[b'F', tag as u8]);
    }

    fn handle_appended(&mut self, _: u64, _: &Result<Appended, AppendError>, _: &mut Vec<u8>) {
        unreachable!("nothing is appended");
    }
}

/// The one transfer that a connection may have outstanding, if it has.
fn take_send(rig: &mut NullRig<Letters>) -> Option<Send<NullPlatform>> {
    let mut sends = rig.ops.net.drain(..).filter_map(|op| match op {
        NetOp::Send(send) => Some(send),
        NetOp::Recall(conn) => panic!("{conn:?} is to give back what was sent at once"),
        NetOp::Close(conn) => panic!("{conn:?} closed"),
        _ => None,
    });
    let send = sends.next();
    assert!(sends.next().is_none(), "one transfer at a time");
    send
}

/// I9: an answer that is ready waits for those before it; a socket that takes few bytes at a time loses none and gets
/// none twice.
#[test]
fn answers_leave_in_the_order_of_their_frames() {
    let (_scratch, mut rig, log) = rig(limits(), Letters);
    let conn = ConnId { slot: 3, generation: 1 };
    rig.handle(Event::Accepted { conn, remote: false });
    rig.handle(Event::Received { conn, bytes: Ok(Received(b"PaFbPcFd".to_vec())) });
    let (mut out, mut reads) = (Vec::new(), Vec::new());
    for turn in 0.. {
        assert!(turn < 10_000, "the answers never end: {} bytes", out.len());
        rig.poll();
        let send = take_send(&mut rig);
        reads.extend(take_reads(&mut rig));
        if let Some(send) = send {
            let bytes: Vec<u8> = send.parts.iter().flat_map(|part| part.as_ref().to_vec()).collect();
            let taken = &bytes[send.skip..];
            let taken = &taken[..taken.len().min(10_007)];
            out.extend_from_slice(taken);
            let result = Ok(taken.len());
            rig.handle(Event::Sent { result, send });
        } else if let Some(read) = reads.pop() {
            assert_eq!(out, b"Pa", "the rest waits for the disk");
            rig.handle(read_event(read));
        } else if turn > 10 {
            break;
        }
    }
    let body_len = (out.len() - 8) / 2;
    assert!(body_len > 2 * BATCH_LEN, "{body_len}");
    let body = &log[..body_len];
    let expected = [b"PaFb", body, b"PcFd", body].concat();
    let differs = out.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!((differs, out.len()), (None, expected.len()), "order and bytes");
}
