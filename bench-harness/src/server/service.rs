//! The harness's server as a service on the engine's shards: it speaks the wire format, and for append and tail
//! workloads it is the producer as well. The engine's data path does everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rohrpost_engine::service::{Access, Answer, Frame};
use rohrpost_engine::{
    AppendError, Appended, ByteCount, FetchError, FetchOutcome, FetchRequest, Mode, Nanos, Now, Offset,
    PartitionId, Service, TopicPartition,
};

use crate::server::append_log::Batches;
use crate::server::produce::Recorder;
use crate::server::{Stats, Stop};
use crate::sys;
use crate::wire::{HEADER_LEN, Opcode, Request, Response, Status};
use crate::workload::Append;

/// Appends of one call of [`Service::turn`], so that a turn stays short.
const APPENDS_PER_TURN: usize = 64;

/// The delivery modes a request can force, by their number on the wire.
pub const WIRE_MODES: &[(u16, Mode)] = &[(1, Mode::Send), (4, Mode::Sendfile), (6, Mode::DirectSend)];

/// What a connection's position is kept under.
#[derive(Debug, Default)]
pub struct BenchConnection {
    reader: Option<usize>,
}

/// The service of one shard.
pub struct BenchService {
    requests: Vec<Request>,
    free: Vec<usize>,
    partitions: Vec<(i32, PartitionId)>,
    producer: Option<Producer>,
    opened: Arc<AtomicUsize>,
    stats: Arc<Stats>,
}

/// The producer of an append or tail workload.
pub struct Producer {
    load: Append,
    batches: Batches,
    in_flight_max: usize,
    in_flight: Vec<usize>,
    next_partition: usize,
    /// Appends under way: when begun, to which partition, how long.
    begun: Vec<(u64, usize, u64)>,
    free: Vec<usize>,
    /// Of partition 0: end offset of every durable batch and the bytes up to there.
    ends: Vec<(i64, u64)>,
    accepted_len: u64,
    /// Bytes each reader has read.
    consumed: Vec<u64>,
    recorder: Arc<Recorder>,
    stop: Arc<Stop>,
    stats: Arc<Stats>,
    failed: Arc<AtomicU64>,
}

/// Batches whose ends are remembered without growing the memory for it.
const BATCH_COUNT_EXPECTED: usize = 1 << 18;

impl Producer {
    /// A producer of this load. `failed` counts appends that the engine refused for good.
    pub fn new(
        load: Append,
        recorder: Arc<Recorder>,
        stop: Arc<Stop>,
        stats: Arc<Stats>,
        failed: Arc<AtomicU64>,
    ) -> Self {
        let batches = Batches::new(1, load.batch_len);
        let in_flight_max = (load.in_flight / load.partitions).max(1);
        Self {
            batches,
            in_flight_max,
            in_flight: vec![0; load.partitions],
            next_partition: 0,
            begun: vec![(0, 0, 0); load.in_flight.max(load.partitions)],
            free: (0..load.in_flight.max(load.partitions)).collect(),
            ends: Vec::with_capacity(BATCH_COUNT_EXPECTED),
            accepted_len: 0,
            consumed: Vec::new(),
            recorder,
            stop,
            stats,
            failed,
            load,
        }
    }

    fn is_within_reach(&self) -> bool {
        let slowest = self.consumed.iter().min().copied().unwrap_or(0);
        self.load.ahead_len_max == 0 || self.accepted_len - slowest < self.load.ahead_len_max
    }

    /// Appends what the limits allow. Returns when to be called again even if nothing happens.
    fn produce(
        &mut self,
        now: Now,
        partitions: &[(i32, PartitionId)],
        access: &mut impl Access,
    ) -> Option<Nanos> {
        let mut full = 0;
        for _ in 0..APPENDS_PER_TURN {
            while full < partitions.len() && self.in_flight[self.next_partition] >= self.in_flight_max {
                self.next_partition = (self.next_partition + 1) % partitions.len();
                full += 1;
            }
            // An acknowledgement or a fetch makes room, and brings the next turn.
            if full == partitions.len() || !self.is_within_reach() {
                return None;
            }
            let tag = self.free.pop()?;
            let at = self.next_partition;
            let start_ns = sys::now_ns();
            let batch = self.batches.next_batch();
            let len = batch.len() as u64;
            self.begun[tag] = (start_ns, at, len);
            match access.append(partitions[at].1, batch, tag as u64) {
                Ok(()) => {}
                Err(error) => {
                    self.free.push(tag);
                    // Busy passes; anything else would repeat for ever.
                    if error != AppendError::Busy {
                        self.failed.fetch_add(1, Ordering::Relaxed);
                    }
                    return Some(now.mono.plus_millis(1));
                }
            }
            self.in_flight[at] += 1;
            self.accepted_len += if at == 0 { len } else { 0 };
            self.next_partition = (at + 1) % partitions.len();
            full = 0;
        }
        Some(now.mono)
    }

    fn appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>) {
        let (start_ns, at, len) = self.begun[tag as usize];
        self.free.push(tag as usize);
        self.in_flight[at] -= 1;
        match outcome {
            Ok(appended) => {
                let now = sys::now_ns();
                self.recorder.ack(start_ns, now, len);
                self.stats.responded();
                if at == 0 {
                    let before = self.ends.last().map_or(0, |(_, total)| *total);
                    self.ends.push((appended.end_offset.get(), before + len));
                }
            }
            Err(_) => drop(self.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// A reader asks for `offset`: it has read everything before.
    fn fetched(&mut self, reader: &mut Option<usize>, offset: i64) {
        let reader = *reader.get_or_insert_with(|| {
            self.consumed.push(0);
            self.consumed.len() - 1
        });
        let count = self.ends.partition_point(|(end, _)| *end <= offset);
        self.consumed[reader] = count.checked_sub(1).map_or(0, |last| self.ends[last].1);
    }
}

impl BenchService {
    /// A service that counts opened partitions in `opened`.
    pub fn new(producer: Option<Producer>, opened: Arc<AtomicUsize>, stats: Arc<Stats>) -> Self {
        Self {
            requests: Vec::with_capacity(1024),
            free: Vec::with_capacity(1024),
            partitions: Vec::new(),
            producer,
            opened,
            stats,
        }
    }

    fn keep(&mut self, request: Request) -> u64 {
        match self.free.pop() {
            Some(at) => {
                self.requests[at] = request;
                at as u64
            }
            None => {
                self.requests.push(request);
                self.requests.len() as u64 - 1
            }
        }
    }

    fn fetch(&mut self, request: Request) -> Result<FetchRequest, Status> {
        let number = i32::try_from(request.partition).map_err(|_| Status::UnknownPartition)?;
        let found = self.partitions.iter().find(|(partition, _)| *partition == number);
        // A corpus of one partition is number 0 on the wire whatever its directory is called.
        let only = (request.partition == 0 && self.partitions.len() == 1).then(|| &self.partitions[0]);
        let (_, partition) = found.or(only).ok_or(Status::UnknownPartition)?;
        let mode = match request.flags {
            0 => None,
            flags => {
                let mode = WIRE_MODES.iter().find(|(number, _)| *number == flags);
                Some(mode.ok_or(Status::ModeUnavailable)?.1)
            }
        };
        Ok(FetchRequest {
            len_min: ByteCount::new(u64::from(request.min_bytes)),
            wait_ms_max: request.max_wait_ms,
            mode,
            ..FetchRequest::new(
                *partition,
                Offset::new(request.offset),
                ByteCount::new(u64::from(request.max_bytes)),
            )
        })
    }
}

impl Service for BenchService {
    type Connection = BenchConnection;

    fn frame_len(&self, received: &[u8]) -> Frame {
        if received.len() < HEADER_LEN { Frame::Incomplete } else { Frame::Complete(HEADER_LEN) }
    }

    fn handle_frame(
        &mut self,
        _now: Now,
        connection: &mut BenchConnection,
        frame: &[u8],
        response: &mut Vec<u8>,
    ) -> Answer {
        let decoded = frame.first_chunk().map(Request::decode);
        let Some(Ok(request)) = decoded else {
            response.extend_from_slice(&Response::bad_request().encode());
            return Answer::Close;
        };
        let refused = match request.opcode {
            Opcode::Ping => {
                response.extend_from_slice(&Response::ok(&request, 0, -1).encode());
                return Answer::Respond;
            }
            Opcode::Append => Status::Unsupported,
            Opcode::Fetch => match self.fetch(request) {
                Ok(fetch) => {
                    if let Some(producer) = &mut self.producer {
                        producer.fetched(&mut connection.reader, request.offset);
                    }
                    return Answer::Fetch { request: fetch, tag: self.keep(request) };
                }
                Err(status) => status,
            },
        };
        response.extend_from_slice(&Response::refused(&request, refused).encode());
        if request.body_len > 0 { Answer::Close } else { Answer::Respond }
    }

    fn handle_fetched(
        &mut self,
        tag: u64,
        outcome: &Result<FetchOutcome, FetchError>,
        response: &mut Vec<u8>,
    ) {
        let request = self.requests[tag as usize];
        self.free.push(tag as usize);
        self.stats.responded();
        let header = match outcome {
            Ok(outcome) => {
                let high_watermark = outcome.watermarks.high_watermark.get();
                Response::ok(&request, outcome.len.get() as u32, high_watermark)
            }
            Err(FetchError::UnknownPartition) => Response::refused(&request, Status::UnknownPartition),
            Err(FetchError::OffsetOutOfRange { .. }) => Response::refused(&request, Status::OffsetOutOfRange),
            Err(_) => Response::refused(&request, Status::StorageError),
        };
        response.extend_from_slice(&header.encode());
    }

    fn handle_appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>, _: &mut Vec<u8>) {
        if let Some(producer) = &mut self.producer {
            producer.appended(tag, outcome);
        }
    }

    fn turn(&mut self, now: Now, access: &mut impl Access) -> Option<Nanos> {
        let producer = self.producer.as_mut()?;
        let ready = self.partitions.len() == producer.load.partitions && !producer.stop.is_set();
        if ready { producer.produce(now, &self.partitions, access) } else { None }
    }

    fn handle_opened(&mut self, partition: PartitionId, name: &TopicPartition) {
        self.partitions.push((name.partition(), partition));
        self.partitions.sort_unstable_by_key(|(number, _)| *number);
        self.opened.fetch_add(1, Ordering::Release);
    }
}
