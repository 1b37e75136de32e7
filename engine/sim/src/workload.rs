//! What clients do: the next request, and what its answer must be. Owns every request that has no answer yet.

use std::collections::BTreeMap;

use bytes::Bytes;
use rohrpost_engine_core::error::{AppendError, PartitionError};
use rohrpost_engine_core::fetch::FetchRequest;
use rohrpost_engine_core::message::{PartitionId, Reply, Request, Ticket, Watermarks};
use rohrpost_engine_core::ops::Now;
use rohrpost_engine_core::types::{ByteCount, Offset};

use crate::batches::Batches;
use crate::coverage::Happening;
use crate::disk::SimDisk;
use crate::oracle::Oracle;
use crate::platform::SimPlatform;
use crate::prng::Prng;
use crate::settings::Settings;
use crate::storage::End;

/// Where the log directory lies on the simulated disk.
pub(crate) const ROOT: &str = "/data";

/// A request without an answer.
#[derive(Debug)]
pub(crate) enum Asked {
    Open,
    Append { sent: Option<std::ops::Range<usize>> },
    Fetch { request: FetchRequest, at: Now, known: Watermarks, scan: bool },
    Watermarks,
    DeleteRecords,
    Delete,
    Shutdown,
}

/// Where a partition stands for its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Closed,
    Opening,
    /// Being read from end to end after opening; the next offset.
    Scanning(i64),
    Open,
    Deleting,
}

/// Clients and what they know.
pub(crate) struct Workload {
    pub(crate) oracles: Vec<Oracle>,
    pub(crate) standing: Vec<Standing>,
    pub(crate) outstanding: BTreeMap<u64, (usize, Asked)>,
    /// Whether operations may fail at the moment, or have failed in this life.
    pub(crate) faulty: bool,
    /// Whether the engine has closed connections that did not move.
    pub(crate) stalled: bool,
    /// The shard was busy: the next request waits a little.
    pub(crate) backs_off: bool,
    /// Whether the engine has been told to stop.
    pub(crate) stopping: bool,
    /// How the last shutdown ended.
    pub(crate) stopped: Option<Result<(), PartitionError>>,
    pub(crate) acked: u64,
    pub(crate) served_len: u64,
    /// Of these, bytes that came over connections.
    pub(crate) sent_len: u64,
    batches: Batches,
    ticket_next: u64,
    prng: Prng,
    pub(crate) disk: SimDisk,
}

impl Workload {
    pub(crate) fn new(settings: &Settings, disk: SimDisk, prng: Prng) -> Self {
        let oracles: Vec<_> = settings.partitions.iter().cloned().map(Oracle::new).collect();
        Self {
            standing: vec![Standing::Closed; oracles.len()],
            oracles,
            outstanding: BTreeMap::new(),
            faulty: false,
            stalled: false,
            backs_off: false,
            stopping: false,
            stopped: None,
            acked: 0,
            served_len: 0,
            sent_len: 0,
            batches: Batches::default(),
            ticket_next: 0,
            prng,
            disk,
        }
    }

    /// A life has ended. Whoever has sent a request will never hear of it.
    pub(crate) fn handle_end(&mut self, end: End) {
        self.outstanding.clear();
        self.stopping = false;
        for (oracle, standing) in self.oracles.iter_mut().zip(&mut self.standing) {
            oracle.handle_end(end, self.faulty);
            if std::mem::replace(standing, Standing::Closed) == Standing::Deleting {
                oracle.forget_promises();
            }
        }
    }

    /// Whether every partition has been opened and read.
    pub(crate) fn is_ready(&self) -> bool {
        self.standing.iter().all(|standing| *standing == Standing::Open)
    }

    /// The engine has stopped in order.
    pub(crate) fn handle_stopped(&mut self) {
        self.oracles.iter_mut().for_each(Oracle::handle_stopped);
    }

    pub(crate) fn shutdown(&mut self) -> (Ticket, Request) {
        self.stopping = true;
        (self.ask(0, Asked::Shutdown), Request::Shutdown)
    }

    /// Opens what is closed, goes on reading what is being read.
    pub(crate) fn prepare(&mut self, now: Now) -> Option<(Ticket, Request)> {
        for partition in 0..self.standing.len() {
            match self.standing[partition] {
                Standing::Closed => {
                    self.standing[partition] = Standing::Opening;
                    let settings = self.oracles[partition].settings().clone();
                    let request = Request::Open {
                        partition: PartitionId(partition as u32),
                        name: settings.name,
                        config: settings.config,
                    };
                    return Some((self.ask(partition, Asked::Open), request));
                }
                Standing::Scanning(offset) if !self.is_scanning(partition) => {
                    let len = self.prng.magnitude(1, 200_000);
                    let mut request = FetchRequest::new(
                        PartitionId(partition as u32),
                        Offset::new(offset),
                        ByteCount::new(len),
                    );
                    request.wait_ms_max = 0;
                    return Some(self.fetch(partition, request, now, true));
                }
                _ => {}
            }
        }
        None
    }

    fn is_scanning(&self, partition: usize) -> bool {
        let scan = |(of, asked): &(usize, Asked)| {
            *of == partition && matches!(asked, Asked::Fetch { scan: true, .. })
        };
        self.outstanding.values().any(scan)
    }

    /// The next thing a client does; `None` if it would rather wait.
    pub(crate) fn next_request(&mut self, settings: &Settings, now: Now) -> Option<(Ticket, Request)> {
        let partition = self.prng.index(self.oracles.len());
        if self.standing[partition] != Standing::Open {
            return None;
        }
        let id = PartitionId(partition as u32);
        let mix = &settings.mix;
        let weights = [
            mix.append,
            mix.append_invalid,
            mix.fetch,
            mix.park,
            mix.ask,
            mix.delete_records,
            mix.delete_partition,
        ];
        Some(match self.draw(&weights) {
            0 => self.append(partition, settings.value_len_max, now),
            1 => {
                let len_max = self.oracles[partition].settings().config.batch_len_max.get();
                let bytes = self.batches.make_invalid(&mut self.prng, now.wall, len_max);
                let ticket = self.ask(partition, Asked::Append { sent: None });
                (ticket, Request::Append { partition: id, batches: Bytes::from(bytes) })
            }
            2 => {
                let request = self.draw_fetch(partition);
                self.fetch(partition, request, now, false)
            }
            3 => {
                let mut request = self.draw_fetch(partition);
                if self.prng.one_in(2) {
                    request.offset = self.oracles[partition].marks().high_watermark;
                }
                request.len_min = ByteCount::new(self.prng.magnitude(1, 100_000));
                request.wait_ms_max = self.prng.magnitude(1, 5_000) as u32;
                self.fetch(partition, request, now, false)
            }
            4 if self.prng.one_in(3) => return self.cancel(),
            4 => (self.ask(partition, Asked::Watermarks), Request::Watermarks(id)),
            5 => self.delete_records(partition),
            _ => {
                // Whatever is still on its way could arrive behind the deletion.
                if self.outstanding.values().any(|(of, _)| *of == partition) {
                    return None;
                }
                self.standing[partition] = Standing::Deleting;
                self.oracles[partition].delete();
                (self.ask(partition, Asked::Delete), Request::Delete(id))
            }
        })
    }

    fn append(&mut self, partition: usize, value_len_max: u64, now: Now) -> (Ticket, Request) {
        let oracle = &mut self.oracles[partition];
        let len_max = oracle.settings().config.batch_len_max.get();
        let count = if self.prng.one_in(4) { self.prng.range(2, 5) } else { 1 };
        let mut bytes = Vec::new();
        for _ in 0..count {
            bytes.extend(self.batches.make(&mut self.prng, now.wall, value_len_max, len_max));
        }
        let bytes = Bytes::from(bytes);
        let sent = Some(oracle.send(&bytes));
        let request = Request::Append { partition: PartitionId(partition as u32), batches: bytes };
        (self.ask(partition, Asked::Append { sent }), request)
    }

    fn draw_fetch(&mut self, partition: usize) -> FetchRequest {
        let marks = self.oracles[partition].marks();
        let (start, end) = (marks.log_start_offset.get(), marks.high_watermark.get());
        let offset = match self.prng.below(16) {
            0 => start - 1,
            1 => end + self.prng.range(1, 10) as i64,
            2..=4 => end,
            5..=8 => (end - self.prng.magnitude(0, 20) as i64).max(start),
            9 => start,
            _ => start + self.prng.below((end - start) as u64 + 1) as i64,
        };
        let len = self.prng.magnitude(0, 300_000);
        FetchRequest::new(PartitionId(partition as u32), Offset::new(offset), ByteCount::new(len))
    }

    fn fetch(&mut self, partition: usize, request: FetchRequest, now: Now, scan: bool) -> (Ticket, Request) {
        let known = self.oracles[partition].marks();
        (self.ask(partition, Asked::Fetch { request, at: now, known, scan }), Request::Fetch(request))
    }

    /// Cancels a fetch, which may have been answered meanwhile. The cancellation itself gets no answer.
    fn cancel(&self) -> Option<(Ticket, Request)> {
        let fetch = |(ticket, (_, asked)): (&u64, &(usize, Asked))| {
            matches!(asked, Asked::Fetch { scan: false, .. }).then_some(Ticket(*ticket))
        };
        let fetch = self.outstanding.iter().find_map(fetch)?;
        Some((fetch, Request::CancelFetch(fetch)))
    }

    fn delete_records(&mut self, partition: usize) -> (Ticket, Request) {
        let marks = self.oracles[partition].marks();
        let (start, end) = (marks.log_start_offset.get(), marks.high_watermark.get());
        let before = match self.prng.below(8) {
            0 => -1,
            1 => end + 1 + self.prng.below(100) as i64,
            _ => start + self.prng.below((end - start) as u64 + 1) as i64,
        };
        self.oracles[partition].delete_records(before);
        let request =
            Request::DeleteRecords { partition: PartitionId(partition as u32), before: Offset::new(before) };
        (self.ask(partition, Asked::DeleteRecords), request)
    }

    fn draw(&mut self, weights: &[u64]) -> usize {
        let mut at = self.prng.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if at < *weight {
                return index;
            }
            at -= weight;
        }
        unreachable!("the draw lies below the sum of the weights")
    }

    fn ask(&mut self, partition: usize, asked: Asked) -> Ticket {
        self.ticket_next += 1;
        self.outstanding.insert(self.ticket_next, (partition, asked));
        Ticket(self.ticket_next)
    }

    /// Counts something that has happened to the engine.
    pub(crate) fn note(&self, happening: Happening) {
        self.disk.storage().coverage.note(happening);
    }

    /// Nobody waits for this answer any more.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        self.outstanding.remove(&ticket.0);
    }

    /// An answer has come on a way that does not keep the order of acknowledgements.
    pub(crate) fn handle_unordered(&mut self, ticket: Ticket, reply: Reply<SimPlatform>, now: Now) {
        let partition = self.outstanding.get(&ticket.0).map_or(0, |(partition, _)| *partition);
        self.oracles[partition].expect_disorder();
        self.handle_reply(ticket, reply, now);
    }

    /// An answer has come.
    pub(crate) fn handle_reply(&mut self, ticket: Ticket, reply: Reply<SimPlatform>, now: Now) {
        let (partition, asked) =
            self.outstanding.remove(&ticket.0).unwrap_or_else(|| panic!("{ticket:?} is answered twice"));
        self.note_reply(ticket, partition, &reply);
        match (asked, reply) {
            (Asked::Open, Reply::Opened(result)) => self.handle_opened(partition, result),
            (Asked::Append { sent }, Reply::Appended(result)) => match sent {
                Some(sent) => {
                    self.acked += u64::from(result.is_ok());
                    self.oracles[partition].handle_appended(sent, &result, self.faulty);
                }
                None => self.check_refused(&result),
            },
            (Asked::Fetch { request, at, known, scan }, Reply::Fetched(result)) => match result {
                Ok(fetched) => {
                    let bytes: Vec<u8> =
                        fetched.pieces.iter().flat_map(|piece| piece.as_ref()).copied().collect();
                    self.handle_fetched(partition, &request, at, known, scan, &fetched.outcome, &bytes, now);
                }
                Err(error) => self.handle_fetch_error(partition, &request, known, scan, &error),
            },
            (Asked::Watermarks, Reply::Watermarks(result)) => {
                if let Ok(marks) = result {
                    self.oracles[partition].handle_marks(marks);
                }
            }
            (Asked::DeleteRecords, Reply::RecordsDeleted(result)) => {
                if let Ok(start) = result {
                    self.oracles[partition].handle_records_deleted(start.get());
                }
            }
            (Asked::Delete, Reply::Deleted(result)) => {
                self.standing[partition] = Standing::Closed;
                match result {
                    Ok(()) => {
                        self.note(Happening::PartitionDeleted);
                        self.oracles[partition].handle_deleted();
                    }
                    Err(error) => self.handle_delete_failed(partition, &error),
                }
            }
            (Asked::Shutdown, Reply::Stopped(result)) => self.stopped = Some(result),
            (asked, _) => panic!("{asked:?} is answered by a reply of another kind"),
        }
    }

    fn handle_opened(&mut self, partition: usize, result: Result<Watermarks, PartitionError>) {
        match result {
            Ok(marks) => {
                self.oracles[partition].handle_opened(marks, self.faulty);
                self.standing[partition] = Standing::Scanning(marks.log_start_offset.get());
                self.finish_scan(partition);
            }
            Err(error) => {
                let dark = self.disk.storage().ended().is_some();
                assert!(dark || self.faulty, "a partition cannot be opened: {error}");
                self.standing[partition] = Standing::Closed;
            }
        }
    }

    fn handle_delete_failed(&mut self, partition: usize, error: &PartitionError) {
        let dark = self.disk.storage().ended().is_some();
        assert!(dark || self.faulty || self.stopping, "a partition cannot be deleted: {error}");
        self.oracles[partition].handle_delete_failed();
    }

    pub(crate) fn finish_scan(&mut self, partition: usize) {
        if let Standing::Scanning(offset) = self.standing[partition]
            && offset >= self.oracles[partition].marks().high_watermark.get()
        {
            self.oracles[partition].handle_scanned();
            self.standing[partition] = Standing::Open;
        }
    }

    fn check_refused(&self, result: &Result<rohrpost_engine_core::message::Appended, AppendError>) {
        self.note(Happening::AppendRefused);
        let refused = matches!(
            result,
            Err(AppendError::InvalidBatch { .. }
                | AppendError::BatchTooLarge { .. }
                | AppendError::Busy
                | AppendError::Closing
                | AppendError::UnknownPartition
                | AppendError::DiskFull(_))
        );
        let failed = matches!(result, Err(AppendError::Failed(_))) && self.faulty;
        assert!(refused || failed, "invalid batches are answered with {result:?}");
    }
}
