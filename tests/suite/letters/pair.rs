//! Two shards driven by hand: letters between them are late, reads end in any order, sockets take few bytes or none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use rohrpost_bench::null::{NullPlatform, NullRig, Received, read_event};
use rohrpost_engine::linux::disk::LinuxDisk;
use rohrpost_engine_core::disk::Disk;
use rohrpost_engine_core::error::{AppendError, FetchError};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest, Mode};
use rohrpost_engine_core::format::batch::patch;
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::message::{Appended, Letter, PartitionId, Reply, Request, ShardId};
use rohrpost_engine_core::ops::{ConnId, DiskOp, Event, NetOp, Now, Read, Send};
use rohrpost_engine_core::service::{Answer, Frame, Service};
use rohrpost_engine_core::types::{ByteCount, LeaderEpoch, Offset, Timestamp};

pub(crate) const SHARDS: usize = 2;
pub(crate) const BATCHES: i64 = 64;
const BATCH_LEN: usize = 16 << 10;

/// Bytes before the body of an answer: status, tag, and the body's length.
pub(crate) const ANSWER_LEN: usize = 6;

pub(crate) const OK: u8 = 0;
pub(crate) const REFUSED: u8 = 1;

/// A partition's directory with one segment of [`BATCHES`] batches; the segment's bytes.
fn write_log(root: &Path, partition: usize) -> Vec<u8> {
    let dir = root.join(format!("t-{partition}"));
    std::fs::create_dir_all(&dir).unwrap();
    let mut log = Vec::new();
    for offset in 0..BATCHES {
        let mut batch = BatchBuilder::new();
        let value = vec![(offset as u8) ^ (partition as u8 * 0x80); BATCH_LEN];
        batch.record(Timestamp::new(1_700_000_000_000), None, Some(&value));
        let mut batch = batch.build();
        patch(&mut batch, Offset::new(offset), LeaderEpoch::ZERO);
        log.extend_from_slice(&batch);
    }
    std::fs::write(dir.join("00000000000000000000.log"), &log).unwrap();
    log
}

/// Frames of four bytes: `F` reads partition, offset, up to so many batches; `S` does so by `sendfile`; `W` waits for
/// data beyond the end. `A` appends: partition, number, and the length of the batch that follows, in KiB.
#[derive(Default)]
pub(crate) struct Relay {
    known: Vec<PartitionId>,
}

impl Service for Relay {
    type Connection = ();

    fn frame_len(&self, received: &[u8]) -> Frame {
        match received {
            [b'A', _, _, kib, ..] if received.len() >= 4 + batch(*kib).len() => {
                Frame::Complete(4 + batch(*kib).len())
            }
            [b'A', ..] => Frame::Incomplete,
            received if received.len() < 4 => Frame::Incomplete,
            _ => Frame::Complete(4),
        }
    }

    fn handle_frame(&mut self, _: Now, (): &mut (), frame: &[u8], _: &mut Vec<u8>) -> Answer {
        let partition = PartitionId(u32::from(frame[1]));
        let tag = u64::from(frame[2]);
        if frame[0] == b'A' {
            return Answer::Append { partition, batches: 4..frame.len(), tag };
        }
        let len_max = ByteCount::new(u64::from(frame[3]) * BATCH_LEN as u64);
        let mut request = FetchRequest::new(partition, Offset::new(i64::from(frame[2])), len_max);
        request.mode = (frame[0] == b'S').then_some(Mode::Sendfile);
        if frame[0] == b'W' {
            request.offset = Offset::new(BATCHES);
            (request.len_min, request.wait_ms_max) = (ByteCount::new(1), 600_000);
        }
        Answer::Fetch { request, tag }
    }

    fn handle_fetched(
        &mut self,
        tag: u64,
        outcome: &Result<FetchOutcome, FetchError>,
        response: &mut Vec<u8>,
    ) {
        let len = outcome.as_ref().map_or(0, |outcome| outcome.len.get() as u32);
        response.extend_from_slice(&[if outcome.is_ok() { OK } else { REFUSED }, tag as u8]);
        response.extend_from_slice(&len.to_le_bytes());
    }

    fn handle_appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>, response: &mut Vec<u8>) {
        response.extend_from_slice(&[if outcome.is_ok() { OK } else { REFUSED }, tag as u8, 0, 0, 0, 0]);
    }

    fn handle_opened(
        &mut self,
        partition: PartitionId,
        _: &rohrpost_engine_core::format::names::TopicPartition,
    ) {
        self.known.push(partition);
    }
}

/// A batch with a value of so many KiB.
pub(crate) fn batch(kib: u8) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch.record(Timestamp::new(1_700_000_000_000), None, Some(&vec![kib; usize::from(kib) << 10]));
    batch.build()
}

/// Two shards, one partition each, and what is on its way between them.
pub(crate) struct Pair {
    _scratch: tempfile::TempDir,
    logs: Vec<Vec<u8>>,
    pub(crate) rigs: Vec<NullRig<Relay>>,
    pub(crate) letters: [VecDeque<Letter<NullPlatform>>; SHARDS],
    reads: [VecDeque<Read<NullPlatform>>; SHARDS],
    /// What each connection's peer has got.
    pub(crate) out: BTreeMap<(usize, ConnId), Vec<u8>>,
    pub(crate) closed: Vec<(usize, ConnId)>,
    /// Peers that take nothing, each with what was sent to it and has not been taken back.
    deaf: BTreeMap<(usize, ConnId), Option<Send<NullPlatform>>>,
    /// Deaf peers whose sends have been taken back.
    recalled: BTreeSet<(usize, ConnId)>,
    /// Whether memory has been short: only then are sends taken back.
    was_short: bool,
    random: u64,
}

impl Pair {
    pub(crate) fn new(seed: u64) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let limits =
            ShardLimits { fetches_max: 16, cold_read_len: ByteCount::kib(64), ..ShardLimits::small() };
        let (mut rigs, mut logs) = (Vec::new(), Vec::new());
        for me in 0..SHARDS {
            let root = scratch.path().join(format!("data-{me}"));
            logs.push(write_log(&root, me));
            let rig = NullRig::new(&root, limits.clone(), Relay::default()).unwrap();
            rigs.push(rig.among(ShardId(me as u16), SHARDS as u16));
        }
        let mut pair = Self {
            _scratch: scratch,
            logs,
            rigs,
            letters: Default::default(),
            reads: Default::default(),
            out: BTreeMap::new(),
            closed: Vec::new(),
            deaf: BTreeMap::new(),
            recalled: BTreeSet::new(),
            was_short: false,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        for me in 0..SHARDS {
            let config = NullRig::<Relay>::log_config();
            let (partition, name) = (PartitionId(me as u32), format!("t-{me}").parse().unwrap());
            let ticket = pair.rigs[me].request(Request::Open { partition, name, config });
            pair.settle();
            let reply = pair.rigs[me].take_reply(ticket);
            assert!(matches!(reply, Some(Reply::Opened(Ok(_)))), "open by now, and known to both");
        }
        for rig in &pair.rigs {
            assert_eq!(rig.shard.service().known, [PartitionId(0), PartitionId(1)]);
        }
        pair
    }

    /// From 0 up to `end`, exclusive.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % end
    }

    pub(crate) fn connect(&mut self, shard: usize, slot: u32, generation: u32) -> (usize, ConnId) {
        let conn = ConnId { slot, generation };
        self.rigs[shard].handle(Event::Accepted { conn, remote: false });
        self.out.insert((shard, conn), Vec::new());
        (shard, conn)
    }

    pub(crate) fn receive(&mut self, (shard, conn): (usize, ConnId), bytes: &[u8]) {
        self.rigs[shard].handle(Event::Received { conn, bytes: Ok(Received(bytes.to_vec())) });
    }

    /// One turn of one shard. Says whether anything was left to do.
    pub(crate) fn turn(&mut self, shard: usize) -> bool {
        self.rigs[shard].poll();
        let letters = std::mem::take(&mut self.rigs[shard].ops.to_shards);
        let mut busy = !self.rigs[shard].ops.is_empty() || !letters.is_empty();
        for (to, letter) in letters {
            assert_eq!(usize::from(to.0), 1 - shard);
            self.letters[1 - shard].push_back(letter);
        }
        for op in std::mem::take(&mut self.rigs[shard].ops.net) {
            self.execute(shard, op);
        }
        for op in std::mem::take(&mut self.rigs[shard].ops.disk) {
            match op {
                DiskOp::Read(read) => self.reads[shard].push_back(read),
                DiskOp::Write(write) => {
                    self.rigs[shard].handle(Event::Written { token: write.token, result: Ok(write.len) });
                }
                DiskOp::Sync { token, .. } => {
                    self.rigs[shard].handle(Event::Synced { token, result: Ok(()) })
                }
                DiskOp::Fill(_) => panic!("no mode here goes through pipes"),
            }
        }
        self.rigs[shard].complete();
        // Reads end in any order, letters arrive in theirs, both when they like.
        if !self.reads[shard].is_empty() && self.below(3) == 0 {
            let at = self.below(self.reads[shard].len());
            let read = self.reads[shard].remove(at).unwrap();
            self.rigs[shard].handle(read_event(read));
        }
        for _ in 0..self.below(3) {
            if let Some(letter) = self.letters[shard].pop_front() {
                self.rigs[shard].handle(Event::Letter(ShardId(1 - shard as u16), letter));
            }
        }
        busy |= !self.reads[shard].is_empty() || !self.letters[shard].is_empty();
        busy
    }

    fn execute(&mut self, shard: usize, op: NetOp<NullPlatform>) {
        match op {
            NetOp::Receive(_) | NetOp::Pause(_) => {}
            NetOp::Send(send) if self.deaf.contains_key(&(shard, send.conn)) => {
                self.deaf.insert((shard, send.conn), Some(send));
            }
            NetOp::Send(send) => {
                let bytes: Vec<u8> = send.parts.iter().flat_map(|part| part.as_ref().to_vec()).collect();
                let bytes = &bytes[send.skip..];
                let taken = &bytes[..1 + self.below(bytes.len())];
                if let Some(out) = self.out.get_mut(&(shard, send.conn)) {
                    out.extend_from_slice(taken);
                }
                self.rigs[shard].handle(Event::Sent { result: Ok(taken.len()), send });
            }
            NetOp::SendFile(send) => {
                let mut bytes = vec![0; 1 + self.below(send.len)];
                LinuxDisk.read_at(&send.file, send.position, &mut bytes).unwrap();
                let (conn, result) = (send.conn, Ok(bytes.len()));
                self.out.entry((shard, conn)).or_default().extend_from_slice(&bytes);
                self.rigs[shard].handle(Event::FileSent { conn, result });
            }
            NetOp::Drain { .. } => panic!("no mode here goes through pipes"),
            NetOp::Recall(conn) => {
                assert!(self.was_short, "{conn:?} is to give back what was sent at once");
                let peer = (shard, conn);
                if let Some(send) = self.deaf.get_mut(&peer).and_then(Option::take) {
                    self.rigs[shard].handle(Event::Sent { result: Ok(0), send });
                }
                if self.deaf.contains_key(&peer) {
                    self.recalled.insert(peer);
                } else {
                    self.rigs[shard].handle(Event::Writable(conn));
                }
            }
            NetOp::Close(conn) => {
                self.closed.push((shard, conn));
                self.rigs[shard].handle(Event::Closed(conn));
            }
        }
    }

    /// A peer takes nothing from now on.
    pub(crate) fn deafen(&mut self, peer: (usize, ConnId)) {
        self.deaf.entry(peer).or_insert(None);
    }

    /// A peer that took nothing takes bytes again.
    pub(crate) fn listen(&mut self, peer: (usize, ConnId)) {
        let (shard, conn) = peer;
        if let Some(send) = self.deaf.remove(&peer).flatten() {
            self.execute(shard, NetOp::Send(send));
        }
        if self.recalled.remove(&peer) {
            self.rigs[shard].handle(Event::Writable(conn));
        }
    }

    /// Time passes, and the second shard's memory is short.
    pub(crate) fn fall_short(&mut self, millis: u64) {
        for rig in &mut self.rigs {
            rig.now.mono = rig.now.mono.plus_millis(millis + 1);
        }
        self.was_short = true;
        self.rigs[0].handle(Event::Letter(ShardId(1), Letter::MemoryShort));
        self.turns(10);
    }

    /// Fewer than `end` turns of both.
    pub(crate) fn turns(&mut self, end: usize) {
        for _ in 0..self.below(end) {
            self.turn(0);
            self.turn(1);
        }
    }

    pub(crate) fn settle(&mut self) {
        let (mut idle, mut turns) = (0, 0);
        while idle < 4 {
            let shard = self.below(SHARDS);
            let busy = self.turn(0) | self.turn(1) | self.turn(shard);
            idle = if busy { 0 } else { idle + 1 };
            turns += 1;
            assert!(turns < 100_000, "something never ends");
        }
    }

    /// Compares a connection's answers with its frames, all of which were to succeed.
    pub(crate) fn check(&self, conn: (usize, ConnId), frames: &[[u8; 4]]) {
        let mut out = self.out[&conn].as_slice();
        for frame in frames {
            let (header, rest) = out.split_at(ANSWER_LEN);
            assert_eq!(header[..2], [OK, frame[2]], "answers come in the order of their frames");
            let len = u32::from_le_bytes(header[2..].try_into().unwrap()) as usize;
            let (body, rest) = rest.split_at(len);
            if frame[0] != b'A' {
                let log = &self.logs[usize::from(frame[1])];
                let from = usize::from(frame[2]) * log.len() / BATCHES as usize;
                assert!(len > 0 && log[from..].starts_with(body), "{conn:?} {frame:?}");
            }
            out = rest;
        }
        assert!(out.is_empty(), "nothing but answers");
    }
}
