//! Logs that change while they are read: they grow, roll, lose their beginning, and go away. Readers get the
//! right bytes, or an error that says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rohrpost_engine::{ByteCount, Durability, LogConfig, Offset, WriteMode};
use rohrpost_tests::log::{DRIVERS, batch, config};
use rohrpost_tests::served::{Log, modes};
use rohrpost_tests::service::{Client, Fetch, OK, OUT_OF_RANGE, REFUSED};

/// A hang is a failure, not a test run without end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Segments roll, the log's start moves, at last everything is deleted, while readers read: they get the
/// right bytes or an error that says so.
#[test]
fn readers_meet_rolls_deletions_and_the_end() {
    for driver in DRIVERS {
        let small = LogConfig { segment_len_max: ByteCount::mib(1), ..config() };
        let mut log = Log::with(driver, small, 100, 100_000);
        let id = log.partition().id();
        // What readers may meet beyond what is there now.
        let more: Vec<_> = (100..200).map(|number| batch(number, 2, 100_000)).collect();
        log.sent.extend(more.iter().cloned());
        let log = Arc::new(log);
        let readers: Vec<_> = modes(driver)
            .into_iter()
            .map(|mode| {
                let log = Arc::clone(&log);
                std::thread::spawn(move || {
                    let (mut client, mut offset, mut bodies) = (log.client(), Offset::ZERO, 0);
                    loop {
                        let fetch = Fetch { offset, mode, len_min: 1, wait_ms: 20, len_max: 300_000 };
                        client.send_fetch(id, fetch);
                        // Deleted under a transfer: the connection is closed, since its answer cannot be whole.
                        let Ok(told) = client.try_answer() else {
                            client = log.client();
                            continue;
                        };
                        match told.status {
                            OK if told.body.is_empty() => offset = Offset::ZERO,
                            OK => {
                                offset = log.check(&told.body, offset);
                                bodies += 1;
                            }
                            OUT_OF_RANGE => {
                                let start = log.partition().watermarks().wait();
                                offset = start.map_or(offset, |marks| marks.log_start_offset);
                            }
                            REFUSED => return bodies,
                            other => panic!("status {other}"),
                        }
                    }
                })
            })
            .collect();
        let partition = log.partition();
        for (number, sent) in more.into_iter().enumerate() {
            partition.append(sent).wait().unwrap();
            if number % 10 == 9 {
                let before = Offset::new(2 * (number as i64 + 1));
                let start = partition.delete_records(before).wait().unwrap();
                assert_eq!(start, before);
            }
        }
        let files = std::fs::read_dir(log.dir()).unwrap().count();
        assert!(files < 4 * 14, "{driver:?}: {files} files: deleted segments are unlinked");
        partition.delete().wait().unwrap();
        for reader in readers {
            assert!(reader.join().unwrap() > 5, "{driver:?}: it read something");
        }
        assert!(!log.dir().exists());
        drop(partition);
        Arc::into_inner(log).unwrap().stop();
    }
}

/// Readers have asked for more than their connections hold, each for a segment of its own in a mode of its own, and read
/// nothing. All of it is unlinked, by the log's start or with its partition, and other bytes take the memory and the
/// blocks. Then they read: what they asked for, or the beginning of it and the end of the connection; never other bytes.
#[test]
fn slow_readers_of_unlinked_segments_get_their_bytes_or_the_end() {
    for driver in DRIVERS {
        for delete in [false, true] {
            let small = LogConfig { segment_len_max: ByteCount::mib(1), ..config() };
            let mut log = Log::with(driver, small.clone(), 130, 100_000);
            let partition = log.partition();
            let mut clients = Vec::new();
            for (index, mode) in modes(driver).into_iter().enumerate() {
                let offset = Offset::new(20 * index as i64);
                let mut client = Client::with_buffer(log.address(), Some(16 << 10));
                client.send_fetch(partition.id(), Fetch { mode, ..Fetch::new(offset, 900_000) });
                client.wait_for_answer();
                clients.push((client, offset, mode));
            }
            let gone = log.dir().join("00000000000000000000.log");
            assert!(gone.exists());
            if delete {
                partition.delete().wait().unwrap();
            } else {
                partition.delete_records(Offset::new(-1)).wait().unwrap();
            }
            let start = Instant::now();
            while gone.exists() {
                assert!(start.elapsed() < PATIENCE, "{driver:?}: it is never unlinked");
                std::thread::sleep(Duration::from_millis(5));
            }
            let other = log.open("other-0", small);
            let pending: Vec<_> = (0..130).map(|n| other.append(batch(1_000 + n, 2, 100_000))).collect();
            pending.into_iter().for_each(|pending| _ = pending.wait().unwrap());
            let mut whole = 0;
            for (client, offset, mode) in &mut clients {
                let (body, len) = client.body_or_end();
                let story = format!("{driver:?} {mode:?} deleted: {delete}, {} of {len}", body.len());
                let next = if body.len() > 101_000 { log.check(&body, *offset) } else { *offset };
                let range = offset.get() as usize / 2..next.get() as usize / 2;
                let checked: usize = log.sent[range.clone()].iter().map(|sent| sent.len()).sum();
                // Behind the last whole batch there may be the beginning of one more.
                assert!(body.len() - checked < log.sent[range.end].len(), "{story}: {checked} are right");
                whole += usize::from(body.len() == len);
            }
            assert!(whole > 0 || delete, "{driver:?}: a deleted range is served to its end");
            drop((partition, other, clients));
            log.stop();
        }
    }
}

/// Retention by size unlinks whole segments from the oldest on, and never what is not durable.
#[test]
fn retention_keeps_the_newest_segments() {
    let story = |driver| {
        let small = LogConfig {
            segment_len_max: ByteCount::mib(1),
            retention_len: Some(ByteCount::mib(4)),
            ..config()
        };
        let mut log = Log::with(driver, small, 120, 100_000);
        let start = loop {
            let start = log.partition().watermarks().wait().unwrap().log_start_offset;
            if start > Offset::ZERO {
                break start;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert!(start.get() > 100, "{start}");
        log.read(&mut log.client(), start.get(), 240, Fetch::new(Offset::ZERO, 1 << 20));
        let told = log.client().fetch(log.partition().id(), Fetch::new(Offset::ZERO, 1));
        assert_eq!(told.status, OUT_OF_RANGE);
        log.stop();
        log.start();
        assert_eq!(log.partition().watermarks().wait().unwrap().log_start_offset, start, "it stays deleted");
        log.stop();
    };
    std::thread::scope(|scope| {
        DRIVERS.map(|driver| scope.spawn(move || story(driver))).map(|s| s.join().unwrap())
    });
}

#[test]
fn buffered_writes_and_the_level_written_serve_the_same_bytes() {
    for driver in DRIVERS {
        for durability in [Durability::Flushed, Durability::Written] {
            for write_mode in [WriteMode::Buffered, WriteMode::Direct] {
                let config = LogConfig { durability, write_mode, ..config() };
                let mut log = Log::with(driver, config, 60, 70_000);
                for mode in modes(driver) {
                    log.read(&mut log.client(), 0, 120, Fetch { mode, ..Fetch::new(Offset::ZERO, 500_000) });
                }
                // Hot and cold at once: the tail grows while its beginning is read.
                for number in 60..90 {
                    let sent = batch(number, 2, 70_000 + 2 * (number as usize % 50));
                    log.partition().append(sent.clone()).wait().unwrap();
                    log.sent.push(sent);
                    let modes = modes(driver);
                    let mode = modes[number as usize % modes.len()];
                    let from = 2 * number as i64 - 4;
                    let fetch = Fetch { mode, ..Fetch::new(Offset::ZERO, 1 << 20) };
                    log.read(&mut log.client(), from, from + 6, fetch);
                }
                log.stop();
            }
        }
    }
}
