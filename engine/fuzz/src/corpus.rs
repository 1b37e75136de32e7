//! How inputs are laid out, and the seeds of the committed corpus.

use rohrpost_engine_core::format::batch::{CRC_START, patch};
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::format::crc::crc32c;
use rohrpost_engine_core::format::names::TopicId;
use rohrpost_engine_core::format::side_file::{SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFileBuilder};
use rohrpost_engine_core::format::walk::{BatchWalk, Check};
use rohrpost_engine_core::types::{LeaderEpoch, Offset, Position, Timestamp};

use crate::recovery::{CLEAN, FIX};

/// Files that the target `recovery` may find in its partition, by their number in an input.
pub const FILES: [&str; 13] = [
    "00000000000000000000.log",
    "00000000000000000000.index",
    "00000000000000000000.timeindex",
    "00000000000000000000.chain",
    "00000000000000000007.log",
    "00000000000000000007.index",
    "00000000000000000007.chain",
    "leader-epoch-checkpoint",
    "partition.metadata",
    "../recovery-point-offset-checkpoint",
    "../log-start-offset-checkpoint",
    "00000000000000000000.txnindex",
    "../meta.properties",
];

/// Splits the rest of an input into files: number, length (u16, little-endian), bytes.
pub fn read_files(mut rest: &[u8]) -> Vec<(usize, &[u8])> {
    let mut files = Vec::new();
    while let Some((&[kind, low, high], behind)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([low, high])).min(behind.len());
        files.push((usize::from(kind) % FILES.len(), &behind[..len]));
        rest = &behind[len..];
    }
    files
}

fn write_files(flags: u8, files: &[(usize, &[u8])]) -> Vec<u8> {
    let mut out = vec![flags];
    for (kind, bytes) in files {
        out.push(*kind as u8);
        out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out
}

/// Gives every batch, as far as lengths lead from one to the next, the checksum of its bytes.
pub fn fix_checksums(mut bytes: &mut [u8]) {
    const CRC_AT: usize = 17;
    while bytes.len() > CRC_START {
        let len = u32::from_be_bytes(*bytes[8..].first_chunk().expect("21 bytes")) as usize;
        let end = len.saturating_add(12).min(bytes.len());
        if end <= CRC_START {
            return;
        }
        let crc = crc32c(&bytes[CRC_START..end]);
        bytes[CRC_AT..CRC_START].copy_from_slice(&crc.to_be_bytes());
        bytes = &mut bytes[end..];
    }
}

pub(crate) fn batches(from: i64, to: i64) -> Vec<u8> {
    let mut all = Vec::new();
    for base in from..to {
        let mut builder = BatchBuilder::new();
        builder.record(Timestamp::new(1_000 + base), Some(b"key"), Some(&[b'v'; 40]));
        let mut bytes = builder.build();
        patch(&mut bytes, Offset::new(base), LeaderEpoch::ZERO);
        all.extend(bytes);
    }
    all
}

fn side_file(log: &[u8], base_offset: i64) -> Vec<u8> {
    let base_offset = Offset::new(base_offset);
    let identity = SegmentIdentity { topic_id: TopicId::ZERO, partition: 0, base_offset };
    let mut builder = SideFileBuilder::new(identity, SIDE_INTERVAL_DEFAULT);
    let mut bytes = identity.encode().to_vec();
    for (at, header) in BatchWalk::new(log, Position::ZERO, base_offset, Check::Crc) {
        bytes.extend(builder.push_batch(&header, at).into_iter().flatten());
    }
    bytes.extend(builder.close().into_iter().flatten());
    bytes
}

/// The seeds of a target: names and inputs.
pub fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (first, second) = (batches(0, 7), batches(7, 12));
    let with = |head: u8, bytes: &[u8]| [&[head], bytes].concat();
    match target {
        "batch" => vec![("batches", with(0, &first)), ("fixed", with(1, &first)), ("zeros", vec![0; 70])],
        "files" => vec![
            ("index", with(0, &[0, 0, 0, 9, 0, 0, 16, 0, 0, 0, 1, 9, 0, 0, 48, 0])),
            ("timeindex", with(1, &[0, 0, 0, 0, 0, 0, 3, 232, 0, 0, 0, 9])),
            ("side", with(2, &side_file(&first, 0))),
            ("offsets", with(3, b"0\n2\nt 0 7\nother 3 12\n")),
            ("epochs", with(4, b"0\n2\n0 0\n3 7\n")),
            ("metadata", with(5, b"version: 0\ntopic_id: bW9vbmxpZ2h0c29uYXRh9A")),
            ("properties", with(6, b"#\nversion=1\nnode.id=3\ncluster.id=abc\ndirectory.id=def\n")),
            ("snapshot", with(7, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
            ("txnindex", with(8, &[0; 34])),
            ("shutdown", with(9, b"{\"version\":0,\"brokerEpoch\":7}")),
        ],
        "recovery" => {
            let (side, side_second) = (side_file(&first, 0), side_file(&second, 7));
            let torn = [&first[..], &second[..100]].concat();
            let zeros = [&first[..], &[0; 5000]].concat();
            vec![
                ("clean", write_files(CLEAN, &[(0, &first), (3, &side), (4, &second), (6, &side_second)])),
                ("killed", write_files(FIX, &[(0, &zeros), (3, &side), (4, &second)])),
                ("torn", write_files(0, &[(0, &torn), (9, b"0\n1\nt 0 3\n"), (7, b"0\n1\n0 0\n")])),
                ("start", write_files(2 | FIX, &[(0, &first), (4, &second), (10, b"0\n1\nt 0 9\n")])),
                (
                    "read-only",
                    write_files(8, &[(0, &torn), (8, b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAA")]),
                ),
                (
                    "written",
                    write_files(4, &[(0, &torn), (4, &second), (11, &[0; 34]), (12, b"version=1\n")]),
                ),
            ]
        }
        "session" => crate::session::seeds(&first),
        other => unreachable!("no target is called {other}"),
    }
}
