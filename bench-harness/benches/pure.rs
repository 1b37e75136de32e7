//! What the engine's pure parts cost by themselves: no kernel, no device, one thread.
//!
//! `cargo bench -p rohrpost-bench --bench pure`; with `-- --test` behind it, each runs once, untimed. The turns run on
//! `rohrpost_bench::null`: real arena, writes and sends that are done at once.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rohrpost_bench::null::{NullRig, Received};
use rohrpost_bench::wire;
use rohrpost_engine_core::error::{AppendError, FetchError};
use rohrpost_engine_core::fetch::policy::{RangeFacts, choose};
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest};
use rohrpost_engine_core::format::batch::{BatchHeader, validate_append};
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::format::crc::{Crc32c, copy_and_crc};
use rohrpost_engine_core::format::index::{OffsetEntry, OffsetIndex};
use rohrpost_engine_core::limits::{BATCH_LEN_MAX_DEFAULT, ShardLimits};
use rohrpost_engine_core::message::{Appended, PartitionId};
use rohrpost_engine_core::ops::{ConnId, Event, Now};
use rohrpost_engine_core::service::{Answer, Frame, Service};
use rohrpost_engine_core::types::{ByteCount, Offset, Position, Timestamp};

const PARTITION: PartitionId = PartitionId(0);
const CONN: ConnId = ConnId { slot: 0, generation: 0 };

/// One batch of one record, `len` bytes in all, about.
fn batch(len: usize) -> Vec<u8> {
    let value: Vec<u8> = (0..len.saturating_sub(75)).map(|i| (i * 31) as u8).collect();
    let mut builder = BatchBuilder::new();
    builder.record(Timestamp::new(1_700_000_000_000), None, Some(&value));
    builder.build()
}

fn crc_and_copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc_and_copy");
    for len in [1 << 10, 16 << 10, 1 << 20] {
        let source = batch(len);
        let mut target = vec![0; source.len()];
        group.throughput(Throughput::Bytes(source.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                let mut crc = Crc32c::new();
                copy_and_crc(&mut target, black_box(&source), &mut crc);
                crc.value()
            });
        });
    }
    group.finish();
}

fn headers(c: &mut Criterion) {
    let bytes = batch(1 << 10);
    c.bench_function("header_peek", |b| {
        b.iter(|| BatchHeader::peek(black_box(&bytes)).expect("a valid header").batch_len());
    });
    c.bench_function("header_check_append", |b| {
        let header = BatchHeader::peek(&bytes).expect("a valid header");
        b.iter(|| black_box(&header).check_append(BATCH_LEN_MAX_DEFAULT).is_ok());
    });
    c.bench_function("batch_validate_append_1k", |b| {
        b.iter(|| validate_append(black_box(&bytes), BATCH_LEN_MAX_DEFAULT).is_ok());
    });
}

/// A segment of 1 GiB of 16 KiB batches has 65,536 entries.
fn index_lookup(c: &mut Criterion) {
    let mut index = OffsetIndex::new(Offset::ZERO, 65_536);
    for i in 1..=65_536_u64 {
        let entry =
            OffsetEntry { last_offset: Offset::new(i as i64 * 16), position: Position::new(i * 16_384) };
        index.push(entry).expect("entries ascend");
    }
    let mut target = 0_i64;
    c.bench_function("index_lookup", |b| {
        b.iter(|| {
            target = (target + 7_919 * 16) % (65_536 * 16);
            index.lookup(black_box(Offset::new(target))).position
        });
    });
}

fn policy(c: &mut Criterion) {
    let facts = RangeFacts { resident: true, forced: None, cold_by_splice: false };
    c.bench_function("policy", |b| b.iter(|| choose(black_box(facts))));
}

fn frame_parsing(c: &mut Criterion) {
    let frame = wire::Request::fetch(1, 42, 65_536).encode();
    c.bench_function("frame_parse", |b| b.iter(|| wire::Request::decode(black_box(&frame)).is_ok()));
}

/// Frames of the harness's wire, as its server treats them: fetches, and appends of what follows the header.
struct Wire {
    batch_len: usize,
}

impl Service for Wire {
    type Connection = ();

    fn frame_len(&self, received: &[u8]) -> Frame {
        match received.first_chunk() {
            None => Frame::Incomplete,
            Some(head) => match wire::Request::decode(head) {
                Ok(request) if request.opcode == wire::Opcode::Append => {
                    Frame::Complete(wire::HEADER_LEN + self.batch_len)
                }
                Ok(_) => Frame::Complete(wire::HEADER_LEN),
                Err(_) => Frame::Malformed,
            },
        }
    }

    fn handle_frame(&mut self, _: Now, _: &mut (), frame: &[u8], _: &mut Vec<u8>) -> Answer {
        let Some(Ok(request)) = frame.first_chunk().map(wire::Request::decode) else { return Answer::Close };
        let tag = request.request_id;
        if request.opcode == wire::Opcode::Append {
            return Answer::Append { partition: PARTITION, batches: wire::HEADER_LEN..frame.len(), tag };
        }
        let len = ByteCount::new(u64::from(request.max_bytes));
        Answer::Fetch { request: FetchRequest::new(PARTITION, Offset::new(request.offset), len), tag }
    }

    fn handle_fetched(&mut self, tag: u64, outcome: &Result<FetchOutcome, FetchError>, out: &mut Vec<u8>) {
        let request = wire::Request::fetch(tag, 0, 1);
        let len = outcome.as_ref().map_or(0, |outcome| outcome.len.get() as u32);
        out.extend_from_slice(&wire::Response::ok(&request, len, 0).encode());
    }

    fn handle_appended(&mut self, tag: u64, _: &Result<Appended, AppendError>, out: &mut Vec<u8>) {
        let request = wire::Request::fetch(tag, 0, 1);
        out.extend_from_slice(&wire::Response::ok(&request, 0, 0).encode());
    }
}

/// A shard with one partition and one connection; keep the folder as long as the shard.
fn shard(batch_len: usize) -> (tempfile::TempDir, NullRig<Wire>) {
    let scratch = tempfile::tempdir().expect("a folder for temporary files");
    let root = scratch.path().join("data");
    let mut rig = NullRig::new(&root, ShardLimits::small(), Wire { batch_len }).expect("a shard");
    let mut config = NullRig::<Wire>::log_config();
    // Never rolled: no step is part of a turn.
    config.segment_len_max = ByteCount::mib(2047);
    config.preallocate_len_min = ByteCount::mib(1);
    rig.open(PARTITION, "t-0", config).expect("the partition opens");
    rig.handle(Event::Accepted { conn: CONN, remote: false });
    rig.settle();
    (scratch, rig)
}

fn append_frame(batch: &[u8]) -> Vec<u8> {
    let mut request = wire::Request::fetch(1, 0, batch.len() as u32);
    request.opcode = wire::Opcode::Append;
    [&request.encode()[..], batch].concat()
}

/// One request, from received bytes to the answer that has left: receive, plan or append, commit, send.
fn turns(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    for len in [1 << 10, 64 << 10] {
        let batch = batch(len);
        let (_scratch, mut rig) = shard(batch.len());
        for _ in 0..16 {
            rig.handle(Event::Received { conn: CONN, bytes: Ok(Received(append_frame(&batch))) });
            rig.settle();
        }
        let mut offset = 0;
        group.bench_function(BenchmarkId::new("fetch", len), |b| {
            let mut frame = || {
                offset = (offset + 1) % 16;
                wire::Request::fetch(1, offset, len as u32).encode().to_vec()
            };
            b.iter_batched(
                &mut frame,
                |frame| {
                    rig.handle(Event::Received { conn: CONN, bytes: Ok(Received(frame)) });
                    rig.settle();
                },
                BatchSize::SmallInput,
            );
        });
        assert!(rig.shard.stats().sent_from_memory > 0, "the fetches were answered");
    }
    for len in [1 << 10, 16 << 10] {
        let batch = batch(len);
        let (_scratch, mut rig) = shard(batch.len());
        group.bench_function(BenchmarkId::new("append", len), |b| {
            b.iter_batched(
                || append_frame(&batch),
                |frame| {
                    rig.handle(Event::Received { conn: CONN, bytes: Ok(Received(frame)) });
                    rig.settle();
                },
                BatchSize::SmallInput,
            );
        });
        assert!(rig.shard.stats().commits > 0, "the appends were committed");
    }
    group.finish();
}

criterion_group!(pure, crc_and_copy, headers, index_lookup, policy, frame_parsing, turns);
criterion_main!(pure);
