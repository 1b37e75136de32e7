//! The protocol that simulated clients speak with the shard: fetches and appends in frames, answers in order.
//!
//! Owns the outcome of every request until its client has read the answer, so that clients can check what their bytes
//! should be without a format for errors. Also produces by itself when told to, as a broker's own topics would.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rohrpost_engine_core::error::{AppendError, FetchError};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest, Mode};
use rohrpost_engine_core::message::{Appended, PartitionId, Watermarks};
use rohrpost_engine_core::ops::Now;
use rohrpost_engine_core::service::{Access, Answer, Frame, Service};
use rohrpost_engine_core::types::{ByteCount, Nanos, Offset};

/// Length of a frame without its batches.
pub(crate) const FRAME_LEN: usize = 40;

/// Length of an answer's header: tag and length of what follows.
pub(crate) const HEADER_LEN: usize = 16;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Served {
    Fetched(Result<FetchOutcome, FetchError>),
    Appended(Result<Appended, AppendError>),
}

#[derive(Default)]
struct State {
    served: BTreeMap<u64, Served>,
    to_produce: VecDeque<(PartitionId, Bytes, u64)>,
    /// Tags of what the service itself has appended.
    own: BTreeMap<u64, ()>,
    own_served: Vec<u64>,
    marks: Vec<(PartitionId, Watermarks)>,
}

/// See the module documentation.
#[derive(Default)]
pub struct SimService {
    state: Mutex<State>,
    /// There are partitions 0 up to this one.
    partitions: u32,
}

impl SimService {
    /// The service of a shard in an engine of so many partitions.
    pub(crate) fn of(partitions: usize) -> Self {
        Self { state: Mutex::default(), partitions: partitions as u32 }
    }

    /// Where the shard's partitions stood at the last turn.
    pub(crate) fn take_marks(&self) -> Vec<(PartitionId, Watermarks)> {
        std::mem::take(&mut self.state().marks)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service appends these batches in its next turn.
    pub(crate) fn produce(&self, partition: PartitionId, batches: Bytes, tag: u64) {
        self.state().to_produce.push_back((partition, batches, tag));
    }

    /// Whether it would append something at once.
    pub(crate) fn is_due(&self) -> bool {
        !self.state().to_produce.is_empty()
    }

    /// What became of the request with this tag, once.
    pub(crate) fn take_served(&self, tag: u64) -> Option<Served> {
        self.state().served.remove(&tag)
    }

    /// Outcomes of what the service has appended by itself since the last call.
    pub(crate) fn take_own(&self) -> Vec<(u64, Served)> {
        let mut state = self.state();
        let tags = std::mem::take(&mut state.own_served);
        tags.into_iter().filter_map(|tag| Some((tag, state.served.remove(&tag)?))).collect()
    }

    fn finish(&self, tag: u64, served: Served) {
        let mut state = self.state();
        if state.own.remove(&tag).is_some() {
            state.own_served.push(tag);
        }
        let twice = state.served.insert(tag, served);
        assert!(twice.is_none(), "tag {tag} has two outcomes");
    }
}

/// The frame of a fetch.
pub(crate) fn fetch_frame(tag: u64, request: &FetchRequest) -> Vec<u8> {
    let mode = request.mode.and_then(|mode| Mode::ALL.iter().position(|m| *m == mode)).map_or(0, |at| at + 1);
    let mut frame = start_frame(FRAME_LEN, 1, request.partition, mode as u8, tag);
    frame.extend_from_slice(&request.offset.get().to_le_bytes());
    frame.extend_from_slice(&(request.len_max.get() as u32).to_le_bytes());
    frame.extend_from_slice(&(request.len_min.get() as u32).to_le_bytes());
    frame.extend_from_slice(&request.wait_ms_max.to_le_bytes());
    frame.resize(FRAME_LEN, 0);
    frame
}

/// The frame of an append.
pub(crate) fn append_frame(tag: u64, partition: PartitionId, batches: &[u8]) -> Vec<u8> {
    let mut frame = start_frame(FRAME_LEN + batches.len(), 2, partition, 0, tag);
    frame.resize(FRAME_LEN, 0);
    frame.extend_from_slice(batches);
    frame
}

fn start_frame(len: usize, kind: u8, partition: PartitionId, mode: u8, tag: u64) -> Vec<u8> {
    let mut frame = (len as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&[kind, partition.0 as u8, mode, 0]);
    frame.extend_from_slice(&tag.to_le_bytes());
    frame
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("within a frame"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("within a frame"))
}

/// Reads an answer's header: its tag, and how many bytes follow.
pub(crate) fn read_header(bytes: &[u8]) -> Option<(u64, usize)> {
    (bytes.len() >= HEADER_LEN).then(|| (u64_at(bytes, 0), u64_at(bytes, 8) as usize))
}

fn write_header(response: &mut Vec<u8>, tag: u64, len: u64) {
    response.extend_from_slice(&tag.to_le_bytes());
    response.extend_from_slice(&len.to_le_bytes());
}

impl Service for SimService {
    type Connection = ();

    fn frame_len(&self, received: &[u8]) -> Frame {
        if received.len() < 4 {
            return Frame::Incomplete;
        }
        match u32_at(received, 0) as usize {
            len if len < FRAME_LEN => Frame::Malformed,
            len if len > received.len() => Frame::Incomplete,
            len => Frame::Complete(len),
        }
    }

    fn handle_frame(&mut self, _: Now, _: &mut (), frame: &[u8], response: &mut Vec<u8>) -> Answer {
        assert!(response.is_empty(), "a response that is not empty");
        let (partition, tag) = (PartitionId(u32::from(frame[5])), u64_at(frame, 8));
        if frame[4] == 2 {
            return Answer::Append { partition, batches: FRAME_LEN..frame.len(), tag };
        }
        let offset = Offset::new(u64_at(frame, 16) as i64);
        let request = FetchRequest {
            len_min: ByteCount::new(u32_at(frame, 28).into()),
            wait_ms_max: u32_at(frame, 32),
            mode: usize::from(frame[6]).checked_sub(1).map(|at| Mode::ALL[at]),
            ..FetchRequest::new(partition, offset, ByteCount::new(u32_at(frame, 24).into()))
        };
        Answer::Fetch { request, tag }
    }

    fn handle_fetched(
        &mut self,
        tag: u64,
        outcome: &Result<FetchOutcome, FetchError>,
        response: &mut Vec<u8>,
    ) {
        write_header(response, tag, outcome.as_ref().map_or(0, |outcome| outcome.len.get()));
        self.finish(tag, Served::Fetched(outcome.clone()));
    }

    fn handle_appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>, response: &mut Vec<u8>) {
        write_header(response, tag, 0);
        self.finish(tag, Served::Appended(outcome.clone()));
    }

    fn turn(&mut self, _: Now, access: &mut impl Access) -> Option<Nanos> {
        let to_produce = std::mem::take(&mut self.state().to_produce);
        for (partition, batches, tag) in to_produce {
            self.state().own.insert(tag, ());
            if let Err(error) = access.append(partition, &batches, tag) {
                self.finish(tag, Served::Appended(Err(error)));
            }
        }
        let marks = |id| access.watermarks(id).map(|marks| (id, marks));
        self.state().marks = (0..self.partitions).map(PartitionId).filter_map(marks).collect();
        None
    }
}
