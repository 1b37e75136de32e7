//! What clients do: the next request, and what its answer must be. Owns every request that has no answer yet.

use std::collections::BTreeMap;

use rohrpost_engine_core::error::{AppendError, PartitionError};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest};
use rohrpost_engine_core::message::{PartitionId, Reply, Request, Ticket, Watermarks};
use rohrpost_engine_core::ops::Now;
use rohrpost_engine_core::types::{ByteCount, Offset, Timestamp};
use rohrpost_history::Event;

use crate::batches::Batches;
use crate::coverage::{Happening, State, States};
use crate::disk::SimDisk;
use crate::history::{History, stored};
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
    pub(crate) history: History,
    pub(crate) standing: Vec<Standing>,
    pub(crate) outstanding: BTreeMap<u64, (usize, Asked)>,
    /// Whether a partition is opened only when those before it have been read.
    one_by_one: bool,
    /// Whether operations may fail in this life by chance, or room may be short.
    pub(crate) ailing: bool,
    /// The partition whose files have been damaged, if one has.
    pub(crate) damaged: Option<usize>,
    /// Whether the engine has closed connections that did not move.
    pub(crate) stalled: bool,
    /// The shard was busy: the next request waits a little.
    pub(crate) backs_off: bool,
    /// Whether the engine has been told to stop.
    pub(crate) stopping: bool,
    /// How the shards have stopped that have.
    pub(crate) stopped: Vec<Result<(), PartitionError>>,
    pub(crate) acked: u64,
    pub(crate) served_len: u64,
    /// Of these, bytes that came over connections.
    pub(crate) sent_len: u64,
    pub(crate) batches: Batches,
    pub(crate) ticket_next: u64,
    pub(crate) prng: Prng,
    pub(crate) disk: SimDisk,
}

impl Workload {
    pub(crate) fn new(settings: &Settings, disk: SimDisk, prng: Prng) -> Self {
        let oracles: Vec<_> = settings.partitions.iter().cloned().map(Oracle::new).collect();
        Self {
            standing: vec![Standing::Closed; oracles.len()],
            history: History::new(&settings.partitions),
            oracles,
            outstanding: BTreeMap::new(),
            one_by_one: settings.abrupt,
            ailing: false,
            damaged: None,
            stalled: false,
            backs_off: false,
            stopping: false,
            stopped: Vec::new(),
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
        let faulty = self.is_faulty();
        self.stopping = false;
        self.stalled = false;
        self.stopped.clear();
        for (partition, standing) in self.standing.iter_mut().enumerate() {
            let oracle = &mut self.oracles[partition];
            oracle.handle_end(end, faulty);
            if let Some(from) = oracle.may_lose().filter(|_| end == End::PowerCut || faulty) {
                self.history.push(&Event::MayHaveLost { partition, from });
            }
            if std::mem::replace(standing, Standing::Closed) == Standing::Deleting {
                oracle.forget_promises();
                self.history.handle_deleted(partition, false);
            }
        }
        self.history.push(&Event::Restarted);
    }

    /// Whether operations may fail at the moment, or have failed in this life.
    pub(crate) fn is_faulty(&self) -> bool {
        self.ailing || self.disk.storage().struck
    }

    /// Whether every partition has been opened and read.
    pub(crate) fn is_ready(&self) -> bool {
        self.standing.iter().all(|standing| *standing == Standing::Open)
    }

    /// The engine is about to say on disk that it stops in order.
    pub(crate) fn handle_stopping(&mut self) {
        self.oracles.iter_mut().for_each(Oracle::handle_stopping);
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
                Standing::Closed if self.one_by_one && self.is_getting_ready() => {}
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

    /// Whether some partition is being opened or read.
    fn is_getting_ready(&self) -> bool {
        self.standing.iter().any(|standing| matches!(standing, Standing::Opening | Standing::Scanning(_)))
    }

    fn is_scanning(&self, partition: usize) -> bool {
        let scan = |(of, asked): &(usize, Asked)| {
            *of == partition && matches!(asked, Asked::Fetch { scan: true, .. })
        };
        self.outstanding.values().any(scan)
    }

    /// What the engine is doing for its clients.
    pub(crate) fn states(&self) -> States {
        let mut states = States::default();
        for (_, asked) in self.outstanding.values() {
            states = match asked {
                Asked::Open => states.and(State::Opening),
                Asked::Append { .. } => states.and(State::Appending),
                Asked::Fetch { .. } => states.and(State::Fetching),
                Asked::DeleteRecords | Asked::Delete => states.and(State::Deleting),
                Asked::Shutdown => states.and(State::Stopping),
                Asked::Watermarks => states,
            };
        }
        states.or_idle()
    }

    /// The next draws follow from this number alone.
    pub(crate) fn reseed(&mut self, seed: u64) {
        self.prng = Prng::new(seed);
    }

    /// A shard has made a turn; its partitions stood like this.
    pub(crate) fn handle_turn(&mut self, marks: Vec<(PartitionId, Watermarks)>, latest: Timestamp) {
        for (partition, marks) in marks {
            let partition = partition.0 as usize;
            let seen = matches!(self.standing[partition], Standing::Scanning(_) | Standing::Open);
            if seen && self.damaged != Some(partition) {
                self.oracles[partition].handle_turn(marks, latest);
            }
        }
    }

    /// Counts something that has happened to the engine.
    pub(crate) fn note(&self, happening: Happening) {
        self.disk.storage().coverage.note(happening);
    }

    /// Which partition a request without an answer is about.
    pub(crate) fn partition_of(&self, ticket: Ticket) -> usize {
        self.outstanding.get(&ticket.0).map_or(0, |(partition, _)| *partition)
    }

    /// Nobody waits for this answer any more.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        let asked = self.outstanding.remove(&ticket.0);
        if let Some((_, Asked::Append { sent: Some(_) } | Asked::Fetch { .. })) = asked {
            self.history.push(&Event::Unknown { request: ticket.0 });
        }
    }

    /// An answer has come on a way that does not keep the order of acknowledgements.
    pub(crate) fn handle_unordered(&mut self, ticket: Ticket, reply: Reply<SimPlatform>, now: Now) {
        let partition = self.partition_of(ticket);
        self.oracles[partition].expect_disorder();
        self.handle_reply(ticket, reply, now);
    }

    /// An answer has come.
    pub(crate) fn handle_reply(&mut self, ticket: Ticket, reply: Reply<SimPlatform>, now: Now) {
        let (partition, asked) =
            self.outstanding.remove(&ticket.0).unwrap_or_else(|| panic!("{ticket:?} is answered twice"));
        self.note_reply(ticket, partition, &reply);
        if self.damaged == Some(partition) {
            return self.handle_damaged_reply(partition, &asked, reply);
        }
        match (asked, reply) {
            (Asked::Open, Reply::Opened(result)) => self.handle_opened(partition, result),
            (Asked::Append { sent }, Reply::Appended(result)) => match sent {
                Some(sent) => {
                    self.acked += u64::from(result.is_ok());
                    let (request, faulty) = (ticket.0, self.is_faulty());
                    self.history.push(&match &result {
                        Ok(appended) => Event::Acked { request, base: appended.base_offset.get() },
                        Err(AppendError::Failed(_) | AppendError::Closing) => Event::Unknown { request },
                        Err(_) => Event::Refused { request },
                    });
                    self.oracles[partition].handle_appended(sent, &result, faulty);
                }
                None => self.check_refused(&result),
            },
            (Asked::Fetch { request, at, known, scan }, Reply::Fetched(result)) => match result {
                Ok(fetched) => {
                    let bytes: Vec<u8> =
                        fetched.pieces.iter().flat_map(|piece| piece.as_ref()).copied().collect();
                    self.tell_fetched(ticket, partition, Some((&fetched.outcome, &bytes)));
                    self.handle_fetched(partition, &request, at, known, scan, &fetched.outcome, &bytes, now);
                }
                Err(error) => {
                    self.tell_fetched(ticket, partition, None);
                    self.handle_fetch_error(partition, &request, known, scan, &error);
                }
            },
            (Asked::Watermarks, Reply::Watermarks(result)) => {
                if let Ok(marks) = result {
                    self.history.handle_marks(partition, marks);
                    self.oracles[partition].handle_marks(marks);
                }
            }
            (Asked::DeleteRecords, Reply::RecordsDeleted(result)) => {
                if let Ok(start) = result {
                    self.history.handle_trimmed(partition, start.get());
                    self.oracles[partition].handle_records_deleted(start.get());
                }
            }
            (Asked::Delete, Reply::Deleted(result)) => {
                self.standing[partition] = Standing::Closed;
                match result {
                    Ok(()) => {
                        self.note(Happening::PartitionDeleted);
                        self.history.handle_deleted(partition, true);
                        self.oracles[partition].handle_deleted();
                    }
                    Err(error) => self.handle_delete_failed(partition, &error),
                }
            }
            (Asked::Shutdown, Reply::Stopped(result)) => self.stopped.push(result),
            (asked, _) => panic!("{asked:?} is answered by a reply of another kind"),
        }
    }

    fn handle_opened(&mut self, partition: usize, result: Result<Watermarks, PartitionError>) {
        match result {
            Ok(marks) => {
                let faulty = self.is_faulty();
                if let Some(from) = self.oracles[partition].may_lose().filter(|_| faulty) {
                    self.history.push(&Event::MayHaveLost { partition, from });
                }
                self.history.handle_marks(partition, marks);
                self.oracles[partition].handle_opened(marks, faulty);
                self.standing[partition] = Standing::Scanning(marks.log_start_offset.get());
                self.finish_scan(partition);
            }
            Err(error) if self.is_of_damaged(&error) => {
                self.note(Happening::DamageRefused);
                self.standing[partition] = Standing::Open;
            }
            Err(error) => {
                let dark = self.disk.storage().ended().is_some();
                assert!(dark || self.is_faulty(), "a partition cannot be opened: {error}");
                self.standing[partition] = Standing::Closed;
            }
        }
    }

    fn handle_delete_failed(&mut self, partition: usize, error: &PartitionError) {
        let dark = self.disk.storage().ended().is_some();
        assert!(dark || self.is_faulty() || self.stopping, "a partition cannot be deleted: {error}");
        if matches!(error, PartitionError::Closing) {
            return; // it was refused before anything was done
        }
        self.history.handle_deleted(partition, false);
        self.oracles[partition].handle_delete_failed();
    }

    /// The history learns what a fetch has brought, if it has brought anything.
    pub(crate) fn tell_fetched(
        &mut self,
        ticket: Ticket,
        partition: usize,
        fetched: Option<(&FetchOutcome, &[u8])>,
    ) {
        match fetched {
            Some((outcome, bytes)) => {
                let batches = stored(&self.oracles[partition], bytes);
                self.history.handle_fetched(ticket.0, outcome, batches);
            }
            None => self.history.push(&Event::Unknown { request: ticket.0 }),
        }
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
        let failed = matches!(result, Err(AppendError::Failed(_))) && self.is_faulty();
        assert!(refused || failed, "invalid batches are answered with {result:?}");
    }
}
