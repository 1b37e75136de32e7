//! Verification before timing: a fetch path must return the log's own bytes; an append path must leave files
//! that hold, CRC-checked and in order, everything it acknowledged.

use std::path::Path;
use std::time::{Duration, Instant};

use rohrpost_engine_core::format::batch::{BATCH_LEN_MAX_STORABLE, BatchHeader, validate};

use crate::client::verify::{Wire, check_crcs, verify_fetch};
use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};
use crate::method::Env;
use crate::method::window::{Cell, Server, client_config};
use crate::paths::Role;
use crate::server::append_log::Batches;
use crate::workload::{Append, Kind};

/// How long an append path runs before its files are read.
const APPEND_TIME: Duration = Duration::from_millis(200);
/// How much a tail reader reads before the files are compared.
const TAIL_LEN: usize = 8 << 20;
/// How long it may take to.
const TAIL_TIME: Duration = Duration::from_secs(10);

/// Count and bytes of an engine's writes, by class of length.
type Writes = Vec<(u64, u64)>;

/// Starts the path, checks it, ends it. Returns what it wrote meanwhile, where it counts that.
pub(super) fn verify(env: &Env, cell: &Cell<'_>) -> Result<Writes> {
    if cell.path.role == Role::Harness || cell.path.calibration.is_some() {
        // Its bytes are constants by design, or go nowhere; the report says so.
        return Ok(Writes::new());
    }
    let mut server = Server::start(env, cell)?;
    let mut writes = Writes::new();
    match cell.workload.kind {
        Kind::Fetch => {
            if let Some(log) = cell.log {
                let config = client_config(env, cell, server.ready.port, 0);
                verify_fetch(cell.path.name, log, &config)?;
            }
        }
        Kind::Append => {
            begin(cell, &mut server)?;
            std::thread::sleep(APPEND_TIME);
            let read = match cell.workload.append.as_ref().filter(|append| append.backlog_len > 0) {
                Some(append) => {
                    Some((append.partitions, read_log(cell, server.ready.port, append.partitions)?))
                }
                None => None,
            };
            writes = check_files(cell, &mut server, read)?;
        }
        Kind::Tail => {
            begin(cell, &mut server)?;
            let sent = match cell.workload.append.as_ref().filter(|append| append.socket) {
                Some(append) => append_some(cell, server.ready.port, append)?,
                None => Vec::new(),
            };
            let read = read_log(cell, server.ready.port, 0)?;
            check_sent(&sent, &read).map_err(|why| fail(cell, why))?;
            check_files(cell, &mut server, Some((0, read)))?;
        }
    }
    server.finish().map(|()| writes)
}

fn fail(cell: &Cell<'_>, why: impl ToString) -> BenchError {
    BenchError::Verify { path: cell.path.name.to_string(), why: why.to_string() }
}

/// A producer with a schedule waits to be told.
fn begin(cell: &Cell<'_>, server: &mut Server) -> Result<()> {
    if cell.workload.has_schedule() { server.begin(crate::sys::now_ns()) } else { Ok(()) }
}

/// Appends more than a reader reads below, several batches under way at once, and waits for every acknowledgement.
fn append_some(cell: &Cell<'_>, port: u16, append: &Append) -> Result<Vec<u8>> {
    let mut wire = Wire::connect(port).map_err(|e| fail(cell, e))?;
    let mut batches = Batches::new(1, append.batch_len);
    let mut sent = Vec::new();
    while sent.len() <= TAIL_LEN {
        for _ in 0..append.in_flight {
            let batch = batches.next_batch();
            sent.extend_from_slice(batch);
            wire.append(batch).map_err(|e| fail(cell, e))?;
        }
        for _ in 0..append.in_flight {
            let (response, _) = wire.answer().map_err(|e| fail(cell, e))?;
            if response.status != crate::wire::Status::Ok {
                return Err(fail(cell, format!("an append was answered {:?}", response.status)));
            }
        }
    }
    Ok(sent)
}

/// What was sent is what was read but for base offset and leader epoch, which the log assigns.
fn check_sent(sent: &[u8], read: &[u8]) -> Result<(), String> {
    let mut at = 0;
    while at < read.len().min(sent.len()) {
        let header =
            BatchHeader::peek(&sent[at..]).map_err(|e| format!("byte {at} of what was sent: {e}"))?;
        let end = at + header.batch_len().as_usize();
        let same = |from: usize, to: usize| sent.get(from..to) == read.get(from..to);
        // Length, then magic to the end.
        if !(same(at + 8, at + 12) && same(at + 16, end)) {
            return Err(format!("the batch sent at byte {at} was read back with other bytes"));
        }
        at = end;
    }
    Ok(())
}

/// Reads from offset 0 on, whole batches, as a tail reader does.
fn read_log(cell: &Cell<'_>, port: u16, partition: usize) -> Result<Vec<u8>> {
    let max_bytes = cell.workload.tail.as_ref().map_or(1 << 20, |tail| tail.max_bytes);
    let mut wire = Wire::connect(port).map_err(|e| fail(cell, e))?.with_wait(500).of(partition as u32);
    let (mut read, mut next_offset) = (Vec::new(), 0);
    let start = Instant::now();
    while read.len() < TAIL_LEN {
        if start.elapsed() > TAIL_TIME {
            return Err(fail(cell, format!("{} bytes at the tail within {TAIL_TIME:?}", read.len())));
        }
        wire.request(next_offset, max_bytes).map_err(|e| fail(cell, e))?;
        let (response, body) = wire.answer().map_err(|e| fail(cell, e))?;
        if response.status != crate::wire::Status::Ok {
            return Err(fail(cell, format!("offset {next_offset} at the tail: {:?}", response.status)));
        }
        let whole = check_crcs(&body, &mut next_offset).map_err(|why| fail(cell, why))?;
        read.extend_from_slice(&body[..whole]);
    }
    Ok(read)
}

/// Stops the producer and reads its files: whole batches, CRC-checked, offsets without gaps, at least as much as
/// was acknowledged, and first of all the bytes that a tail reader got.
fn check_files(cell: &Cell<'_>, server: &mut Server, read: Option<(usize, Vec<u8>)>) -> Result<Writes> {
    let mark = server.stop()?;
    let produced = mark.produced.unwrap_or_default();
    let is_client = cell.workload.append.as_ref().is_some_and(|append| append.socket);
    if produced.acks.bytes == 0 && !is_client {
        return Err(fail(cell, "acknowledged nothing"));
    }
    let acked = produced.acks.bytes + produced.acks.cold_bytes;
    let partitions = cell.workload.append.as_ref().map_or(0, Append::partition_count);
    let mut found = 0;
    for partition in 0..partitions {
        let dir = server.scratch().join(format!("bench-{partition}"));
        let read = read.as_ref().filter(|(of, _)| *of == partition).map(|(_, bytes)| &bytes[..]);
        found += check_partition(&dir, read).map_err(|why| fail(cell, why))?;
    }
    if found < acked {
        return Err(fail(cell, format!("acknowledged {acked} bytes, the files hold {found}")));
    }
    Ok(mark.writes)
}

/// Returns the bytes of valid batches.
fn check_partition(dir: &Path, read: Option<&[u8]>) -> Result<u64, String> {
    let log = ServedLog::open(dir).map_err(|e| e.to_string())?;
    let (mut next_offset, mut at) = (0, 0);
    for segment in 0..log.segment_count() {
        let mut bytes = vec![0; log.segment_len(segment) as usize];
        log.read_exact(&mut bytes, segment, 0).map_err(|e| e.to_string())?;
        if let Some(read) = read {
            let len = bytes.len().min(read.len().saturating_sub(at));
            if read[at.min(read.len())..][..len] != bytes[..len] {
                return Err(format!(
                    "a tail reader got other bytes than {} holds",
                    log.path(segment).display()
                ));
            }
            at += len;
        }
        let mut position = 0;
        while position < bytes.len() {
            let here = || format!("{} at {position}", log.path(segment).display());
            let header = BatchHeader::peek(&bytes[position..]).map_err(|e| format!("{}: {e}", here()))?;
            let end = position + header.batch_len().as_usize();
            validate(&bytes[position..end], BATCH_LEN_MAX_STORABLE)
                .map_err(|e| format!("{}: {e}", here()))?;
            if header.base_offset().get() != next_offset {
                return Err(format!("{}: offset {}, expected {next_offset}", here(), header.base_offset()));
            }
            next_offset = header.next_offset().get();
            position = end;
        }
    }
    Ok(log.len())
}
