//! Parsers over any bytes: record batches, and every other file of a log directory.

use rohrpost_engine_core::format::batch::{BATCH_LEN_MAX_STORABLE, validate, validate_append};
use rohrpost_engine_core::format::index::{OffsetIndex, TimeIndex};
use rohrpost_engine_core::format::meta_properties::MetaProperties;
use rohrpost_engine_core::format::record::Records;
use rohrpost_engine_core::format::side_file::SideFile;
use rohrpost_engine_core::format::walk::{BatchWalk, Check, seek};
use rohrpost_engine_core::format::{checkpoint, producer_snapshot, txn_index};
use rohrpost_engine_core::types::{ByteCount, Offset, Position, Timestamp};

/// Batches: walked, sought, validated as an append, and their records read.
pub(crate) fn batch(data: &[u8]) {
    let mut data = data.to_vec();
    if data.first().is_some_and(|first| first & 1 == 1) {
        crate::corpus::fix_checksums(&mut data[1..]);
    }
    let data = data.get(1..).unwrap_or_default();
    let mut ends = [0; 2];
    for (end, check) in ends.iter_mut().zip([Check::Header, Check::Crc]) {
        let mut walk = BatchWalk::new(data, Position::ZERO, Offset::ZERO, check);
        let mut next_offset = Offset::ZERO;
        for (at, header) in walk.by_ref() {
            assert!(header.base_offset() >= next_offset && header.next_offset() > header.base_offset());
            next_offset = header.next_offset();
            *end = at.plus(header.batch_len()).get();
            let bytes = &data[at.get() as usize..];
            if check == Check::Crc {
                let batch = &bytes[..header.batch_len().as_usize()];
                if let Ok(records) = Records::new(header, batch) {
                    let read =
                        records.take_while(Result::is_ok).map(|record| record.map(|r| r.headers().count()));
                    assert!(read.count() <= batch.len(), "a record takes at least a byte");
                }
            }
        }
        let stop = walk.stop();
        assert!(stop.next_offset >= next_offset);
    }
    assert!(ends[1] <= data.len() as u64, "a batch that was checked lies in the bytes");
    for offset in [0, 1, i64::MAX] {
        let _ = seek(data, Position::ZERO, Offset::new(offset));
    }
    for limit in [ByteCount::new(1000), BATCH_LEN_MAX_STORABLE] {
        if let Ok(header) = validate_append(data, limit) {
            assert!(header.batch_len() <= limit && validate(data, limit).is_ok());
        }
    }
}

/// The other files; the first byte says which. What was understood and is written again reads the same.
pub(crate) fn files(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let base_offset = Offset::new(1_000);
    match kind % 10 {
        0 => {
            if let Ok(index) = OffsetIndex::load(base_offset, data, ByteCount::mib(1), 1 << 16) {
                let found = index.lookup(Offset::new(1_500));
                assert!(found.last_offset <= Offset::new(1_500) && index.as_bytes().len() <= data.len());
                let _ = (index.walk_start(Position::new(u64::MAX)), index.last());
            }
        }
        1 => {
            if let Ok(index) = TimeIndex::load(base_offset, data, 1 << 16) {
                assert!(index.as_bytes().len() <= data.len());
                let _ = (index.lookup(Timestamp::new(5)), index.last());
            }
        }
        2 => side_file(data),
        3 => {
            if let Ok(entries) = checkpoint::parse_offsets(data) {
                let text = checkpoint::write_offsets(entries.iter().map(|(tp, at)| (tp, *at)));
                assert_eq!(checkpoint::parse_offsets(text.as_bytes()).as_ref(), Ok(&entries));
            }
        }
        4 => {
            if let Ok(entries) = checkpoint::parse_epochs(data) {
                assert!(entries.windows(2).all(|pair| pair[0].epoch < pair[1].epoch));
                let text = checkpoint::write_epochs(&entries);
                assert_eq!(checkpoint::parse_epochs(text.as_bytes()).as_ref(), Ok(&entries));
            }
        }
        5 => {
            if let Ok(id) = checkpoint::parse_partition_metadata(data) {
                let text = checkpoint::write_partition_metadata(id);
                assert_eq!(checkpoint::parse_partition_metadata(text.as_bytes()), Ok(id));
            }
        }
        6 => {
            if let Ok(properties) = MetaProperties::parse(data) {
                let _ = properties.write();
            }
        }
        7 => drop(producer_snapshot::parse(data)),
        8 => drop(txn_index::parse(base_offset, data)),
        _ => drop(checkpoint::parse_clean_shutdown(data)),
    }
}

/// What is good of a side file lies in it, in order; what is cut off it stays good.
fn side_file(data: &[u8]) {
    let Ok(side) = SideFile::load(data) else { return };
    assert!(side.valid_len().get() <= data.len() as u64);
    assert!(side.records().windows(2).all(|pair| pair[0].to == pair[1].from));
    let again = SideFile::load(&data[..side.valid_len().as_usize()]).expect("its good part is good");
    assert_eq!(again.records(), side.records());
    let cut = side.clone().truncated(Position::new(side.end_position().get() / 2));
    assert!(cut.records().len() <= side.records().len());
}
