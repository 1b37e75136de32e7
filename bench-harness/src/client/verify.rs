//! The verification pass: a path may be timed only after it returned the log's own bytes, CRC-checked.
//!
//! Runs in the parent, unpinned and unhurried. The expected bytes are read from the files, not from any path.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rohrpost_engine_core::format::batch::{BATCH_LEN_MAX_STORABLE, BatchHeader, validate};

use crate::client::ClientConfig;
use crate::corpus::plan::PRIME_LEN;
use crate::corpus::{BodyRange, ServedLog};
use crate::error::{BenchError, Result};
use crate::wire::{HEADER_LEN, Request, Response, Status};

/// Hot and cold starts checked per path and workload.
const HOT_COUNT: usize = 24;
const COLD_COUNT: usize = 4;

/// Checks one running server against the log.
///
/// # Errors
/// `Verify` with the first difference.
pub fn verify_fetch(path: &str, log: &ServedLog, config: &ClientConfig) -> Result<()> {
    let fail = |why: String| BenchError::Verify { path: path.to_string(), why };
    let mut wire = Wire::connect(config.port).map_err(|e| fail(e.to_string()))?;
    wire.flags = config.flags;
    let (hot_len, cold_len) = (
        config.workload.hot.as_ref().map_or(1, |hot| hot.max_bytes),
        config.workload.cold.as_ref().map_or(1, |cold| cold.max_bytes),
    );
    let step = config.plan.hot.len().div_ceil(HOT_COUNT).max(1);
    for offset in config.plan.hot.iter().step_by(step) {
        check_one(&mut wire, log, *offset, hot_len).map_err(fail)?;
        // An offset inside the batch before, found by walking, and a length that ends inside a batch.
        let inside = (*offset - 1).max(log.log_start_offset());
        let in_hot = log.resolve(inside, 1).is_ok_and(|body| is_hot(log, &body, config.plan.hot_len));
        if in_hot {
            check_one(&mut wire, log, inside, hot_len / 2 + 77).map_err(fail)?;
        }
    }
    for run in &config.plan.cold {
        for at in (0..run.len()).step_by(run.len().div_ceil(COLD_COUNT).max(1)) {
            check_one(&mut wire, log, run[at], cold_len).map_err(fail)?;
        }
    }
    if let Some(stalled) = &config.workload.stalled {
        for offset in config.plan.stalled.iter().take(1) {
            check_one(&mut wire, log, *offset, stalled.max_bytes).map_err(fail)?;
        }
    }
    // Several outstanding on one connection come back in order.
    let few: Vec<i64> = config.plan.hot.iter().copied().take(8).collect();
    few.iter().try_for_each(|offset| wire.request(*offset, hot_len)).map_err(|e| fail(e.to_string()))?;
    few.iter().try_for_each(|offset| check_answer(&mut wire, log, *offset, hot_len)).map_err(fail)?;
    check_ends(&mut wire, log).map_err(fail)
}

/// Asks for each of these once and reads the answers, so that what a server sets up on first use exists before
/// anything is measured.
///
/// # Errors
/// `Verify` if one is refused.
pub fn prime(path: &str, port: u16, flags: u16, offsets: &[i64]) -> Result<()> {
    let fail = |why: String| BenchError::Verify { path: path.to_string(), why };
    let mut wire = Wire::connect(port).map_err(|e| fail(e.to_string()))?;
    wire.flags = flags;
    for offset in offsets {
        wire.request(*offset, PRIME_LEN).map_err(|e| fail(e.to_string()))?;
        let (response, _) = wire.answer().map_err(|e| fail(e.to_string()))?;
        if response.status != Status::Ok {
            return Err(fail(format!("offset {offset}: {:?}", response.status)));
        }
    }
    Ok(())
}

fn is_hot(log: &ServedLog, body: &BodyRange, hot_len: u64) -> bool {
    let at = body.position + (0..body.segment).map(|before| log.segment_len(before)).sum::<u64>();
    at >= log.len() - hot_len
}

/// The offsets at and beyond the end are answered as WIRE.md says.
fn check_ends(wire: &mut Wire, log: &ServedLog) -> Result<(), String> {
    let end = log.high_watermark();
    for (offset, status) in [(end, Status::Ok), (end + 1, Status::OffsetOutOfRange)] {
        wire.request(offset, 1000).map_err(|e| e.to_string())?;
        let (response, body) = wire.answer().map_err(|e| e.to_string())?;
        if response.status != status || !body.is_empty() {
            let (found, len) = (response.status, body.len());
            return Err(format!("offset {offset} at the log's end {end}: {found:?} and {len} bytes"));
        }
    }
    Ok(())
}

fn check_one(wire: &mut Wire, log: &ServedLog, offset: i64, len_max: u32) -> Result<(), String> {
    wire.request(offset, len_max).map_err(|e| e.to_string())?;
    check_answer(wire, log, offset, len_max)
}

fn check_answer(wire: &mut Wire, log: &ServedLog, offset: i64, len_max: u32) -> Result<(), String> {
    let (response, body) = wire.answer().map_err(|e| e.to_string())?;
    if response.status != Status::Ok || response.offset != offset {
        return Err(format!("offset {offset}: answered {:?} for {}", response.status, response.offset));
    }
    let expected = log.resolve(offset, len_max as usize).map_err(|e| e.to_string())?;
    if expected.len == 0 {
        return Err(format!("offset {offset} lies at the end of the log"));
    }
    // A first batch larger than the limit may come whole.
    let first = log.header(expected.segment, expected.position).map_err(|e| e.to_string())?;
    let len_max = first.batch_len().as_usize().max(len_max as usize);
    if body.len() < expected.len || body.len() > len_max {
        return Err(format!("offset {offset}: {} bytes, expected {}", body.len(), expected.len));
    }
    compare(log, &expected, &body).map_err(|why| format!("offset {offset}: {why}"))?;
    check_crcs(&body, &mut 0).map_err(|why| format!("offset {offset}: {why}"))?;
    Ok(())
}

/// Compares with the files; a body may go on in the next segment.
fn compare(log: &ServedLog, from: &BodyRange, body: &[u8]) -> Result<(), String> {
    let (mut segment, mut position, mut at) = (from.segment, from.position, 0);
    while at < body.len() {
        let len = (body.len() - at).min((log.segment_len(segment) - position) as usize);
        let mut expected = vec![0; len];
        log.read_exact(&mut expected, segment, position).map_err(|e| e.to_string())?;
        if let Some(wrong) = (0..len).find(|i| expected[*i] != body[at + i]) {
            return Err(format!(
                "byte {} of the body differs from {} at {}: {:#04x} instead of {:#04x}",
                at + wrong,
                log.path(segment).display(),
                position + wrong as u64,
                body[at + wrong],
                expected[wrong]
            ));
        }
        at += len;
        segment += 1;
        position = 0;
        if at < body.len() && segment == log.segment_count() {
            return Err(format!("{} bytes beyond the end of the log", body.len() - at));
        }
    }
    Ok(())
}

/// Every whole batch of the body has the CRC its header names. Returns where the last one ends, and leaves the
/// offset after it in `next_offset`.
pub(crate) fn check_crcs(body: &[u8], next_offset: &mut i64) -> Result<usize, String> {
    let mut at = 0;
    while let Ok(header) = BatchHeader::peek(&body[at..]) {
        let end = at + header.batch_len().as_usize();
        if end > body.len() {
            break;
        }
        validate(&body[at..end], BATCH_LEN_MAX_STORABLE).map_err(|e| format!("batch at byte {at}: {e}"))?;
        *next_offset = header.next_offset().get();
        at = end;
    }
    Ok(at)
}

/// A blocking connection that speaks the harness's format.
pub(crate) struct Wire {
    stream: TcpStream,
    next_id: u64,
    flags: u16,
    max_wait_ms: u32,
    partition: u32,
}

impl Wire {
    pub(crate) fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, next_id: 0, flags: 0, max_wait_ms: 0, partition: 0 })
    }

    pub(crate) fn with_wait(mut self, max_wait_ms: u32) -> Self {
        self.max_wait_ms = max_wait_ms;
        self
    }

    pub(crate) fn of(mut self, partition: u32) -> Self {
        self.partition = partition;
        self
    }

    pub(crate) fn request(&mut self, offset: i64, len_max: u32) -> std::io::Result<()> {
        let request = Request {
            flags: self.flags,
            max_wait_ms: self.max_wait_ms,
            partition: self.partition,
            ..Request::fetch(self.next_id, offset, len_max)
        };
        self.next_id += 1;
        self.stream.write_all(&request.encode())
    }

    /// Sends one batch to be appended; the answer follows when it is durable.
    pub(crate) fn append(&mut self, batch: &[u8]) -> std::io::Result<()> {
        let request = Request {
            opcode: crate::wire::Opcode::Append,
            partition: self.partition,
            body_len: batch.len() as u32,
            ..Request::fetch(self.next_id, 0, 0)
        };
        self.next_id += 1;
        self.stream.write_all(&request.encode())?;
        self.stream.write_all(batch)
    }

    pub(crate) fn answer(&mut self) -> std::io::Result<(Response, Vec<u8>)> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let response = Response::decode(&header).map_err(std::io::Error::other)?;
        let mut body = vec![0; response.body_len as usize];
        self.stream.read_exact(&mut body)?;
        Ok((response, body))
    }
}
