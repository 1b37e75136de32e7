//! The harness's server as a service on the engine's shards: it speaks the wire format, and for append and tail
//! workloads it is the producer as well. The engine's data path does everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rohrpost_engine::service::{Access, Answer, Frame};
use rohrpost_engine::{
    AppendError, Appended, ByteCount, FetchError, FetchOutcome, FetchRequest, Mode, Nanos, Now, Offset,
    PartitionId, Service, TopicPartition,
};

use crate::server::Stats;
use crate::server::producer::Producer;
use crate::wire::{HEADER_LEN, Opcode, Request, Response, Status};

/// The delivery modes a request can force, by their number on the wire.
pub const WIRE_MODES: &[(u16, Mode)] = &[
    (1, Mode::Send),
    (2, Mode::SendZc),
    (3, Mode::SendRef),
    (4, Mode::Sendfile),
    (5, Mode::Splice),
    (6, Mode::DirectSend),
    (7, Mode::DirectSendZc),
    (8, Mode::DirectSplice),
    (9, Mode::ReadSend),
];

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
    takes_appends: bool,
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
            takes_appends: false,
        }
    }

    /// The same, whose clients may append.
    pub fn with_appends(self, takes_appends: bool) -> Self {
        Self { takes_appends, ..self }
    }

    fn partition(&self, number: u32) -> Option<PartitionId> {
        let number = i32::try_from(number).ok()?;
        self.partitions.iter().find(|(partition, _)| *partition == number).map(|(_, partition)| *partition)
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
        let Some(header) = received.first_chunk() else { return Frame::Incomplete };
        let body_len = match Request::decode(header) {
            Ok(request) if self.takes_appends && request.opcode == Opcode::Append => {
                request.body_len as usize
            }
            _ => 0,
        };
        let len = HEADER_LEN + body_len;
        if received.len() < len { Frame::Incomplete } else { Frame::Complete(len) }
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
            Opcode::Append if self.takes_appends => match self.partition(request.partition) {
                Some(partition) => {
                    let batches = HEADER_LEN..frame.len();
                    return Answer::Append { partition, batches, tag: self.keep(request) };
                }
                None => {
                    let refused = Response::refused(&request, Status::UnknownPartition);
                    response.extend_from_slice(&refused.encode());
                    return Answer::Respond;
                }
            },
            Opcode::Append => Status::Unsupported,
            Opcode::Fetch => match self.fetch(request) {
                Ok(fetch) => {
                    if let Some(producer) = self.producer.as_mut().filter(|_| request.partition == 0) {
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

    fn handle_appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>, response: &mut Vec<u8>) {
        if let Some(producer) = &mut self.producer {
            return producer.appended(tag, outcome);
        }
        let request = self.requests[tag as usize];
        self.free.push(tag as usize);
        self.stats.responded();
        let header = match outcome {
            Ok(appended) => Response::ok(&request, 0, appended.end_offset.get()),
            Err(_) => Response::refused(&request, Status::StorageError),
        };
        response.extend_from_slice(&header.encode());
    }

    fn turn(&mut self, now: Now, access: &mut impl Access) -> Option<Nanos> {
        self.producer.as_mut()?.turn(now, &self.partitions, access)
    }

    fn handle_opened(&mut self, partition: PartitionId, name: &TopicPartition) {
        self.partitions.push((name.partition(), partition));
        self.partitions.sort_unstable_by_key(|(number, _)| *number);
        self.opened.fetch_add(1, Ordering::Release);
    }
}
