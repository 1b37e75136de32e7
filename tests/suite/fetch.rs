//! Fetches over TCP and by handle, on both drivers: whatever way the bytes take, they are those of the log.

use std::sync::atomic::{AtomicBool, Ordering};

use rohrpost_engine::{ByteCount, FetchRequest, Offset};
use rohrpost_tests::log::{DRIVERS, batch};
use rohrpost_tests::served::{Log, modes};
use rohrpost_tests::service::{Client, Fetch, OK};

#[test]
fn readers_of_one_cold_range_share_its_reads() {
    for driver in DRIVERS {
        let mut log = Log::new(driver, 300, 60_000);
        let id = log.partition().id();
        // Eight readers in one packet: the second finds the first one's reads under way.
        let mut client = log.client();
        let tags: Vec<_> = (0..8).map(|_| client.send_fetch(id, Fetch::new(Offset::ZERO, 1 << 20))).collect();
        for tag in tags {
            let told = client.answer();
            assert_eq!(told.tag, tag);
            log.check(&told.body, Offset::ZERO);
        }
        // Handles and connections, all over the log, which fits into the arena.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| log.read(&mut log.client(), 0, 600, Fetch::new(Offset::ZERO, 1 << 20)));
                scope.spawn(|| {
                    let mut offset = Offset::ZERO;
                    while offset.get() < 600 {
                        let fetched = log.partition().fetch(offset, ByteCount::mib(1)).wait().unwrap();
                        offset = log.check(&fetched.to_bytes(), offset);
                    }
                });
            }
        });
        let log_len: u64 = log.sent.iter().map(|sent| sent.len() as u64).sum();
        let stats = log.stop().stats;
        assert!(stats.shared_reads > 0, "{stats:?}");
        assert!(
            stats.cold_read_len < log_len + log_len / 4,
            "nine readers, one reading: {log_len} {stats:?}"
        );
    }
}

#[test]
fn every_mode_sends_the_same_bytes() {
    for driver in DRIVERS {
        let log = Log::new(driver, 120, 40_000);
        let id = log.partition().id();
        let mut client = log.client();
        for (offset, len_max) in
            [(0, 1), (1, 70_000), (57, 300_000), (100, 4 << 20), (238, 1), (239, 1 << 20)]
        {
            let offset = Offset::new(offset);
            let request = FetchRequest::new(id, offset, ByteCount::new(len_max));
            let expected = log.partition().fetch_with(request).wait().unwrap().to_bytes();
            log.check(&expected, offset);
            for mode in modes(driver) {
                let fetch = Fetch { mode, ..Fetch::new(offset, len_max as u32) };
                let told = client.fetch(id, fetch);
                assert!(told.body == expected, "{driver:?} {mode:?} {offset} {len_max}");
            }
        }
        for mode in modes(driver) {
            log.read(&mut client, 0, 240, Fetch { mode, ..Fetch::new(Offset::ZERO, 123_457) });
        }
    }
}

/// Readers that take a few kilobytes at a time, while others turn over the memory behind them: the log is
/// larger than the arena. What has been promised to a socket stays what it was.
#[test]
fn slow_readers_get_their_bytes_while_memory_wraps() {
    for driver in DRIVERS {
        let log = Log::new(driver, 260, 400_000);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let slow: Vec<_> = modes(driver)
                .into_iter()
                .enumerate()
                .map(|(at, mode)| {
                    let log = &log;
                    scope.spawn(move || {
                        let mut client = Client::with_buffer(log.address(), Some(16 << 10));
                        let from = 48 * at as i64;
                        log.read(
                            &mut client,
                            from,
                            from + 24,
                            Fetch { mode, ..Fetch::new(Offset::ZERO, 2 << 20) },
                        );
                    })
                })
                .collect();
            let (log, done) = (&log, &done);
            scope.spawn(move || {
                let mut client = log.client();
                let mut rounds = 0;
                while rounds < 2 || !done.load(Ordering::Relaxed) {
                    log.read(&mut client, 0, 520, Fetch::new(Offset::ZERO, 4 << 20));
                    rounds += 1;
                }
            });
            let ended: Vec<_> = slow.into_iter().map(|thread| thread.join()).collect();
            done.store(true, Ordering::Relaxed);
            ended.into_iter().for_each(|ended| ended.unwrap());
        });
        let mut log = log;
        let stats = log.stop().stats;
        assert!(stats.cold_read_len > 150 << 20, "{driver:?}: the arena of 64 MiB was wrapped: {stats:?}");
    }
}

/// A reader goes through old data, more than twice what the arena holds. What was appended lately is still in memory
/// then: its readers bring nothing from the disk.
#[test]
fn a_backfill_leaves_the_tail_in_memory() {
    const OLD: u64 = 360;
    const NEW: u64 = 50;
    for driver in DRIVERS {
        let mut log = Log::new(driver, OLD, 400_000);
        for number in OLD..OLD + NEW {
            let sent = batch(number, 2, 400_000);
            log.partition().append(sent.clone()).wait().unwrap();
            log.sent.push(sent);
        }
        let (old, all) = (2 * OLD as i64, 2 * (OLD + NEW) as i64);
        log.read(&mut log.client(), old, all, Fetch::new(Offset::ZERO, 1 << 20));
        log.read(&mut log.client(), 0, old, Fetch::new(Offset::ZERO, 1 << 20));
        for _ in 0..3 {
            log.read(&mut log.client(), old, all, Fetch::new(Offset::ZERO, 1 << 20));
        }
        let len = |range: std::ops::Range<usize>| log.sent[range].iter().map(|sent| sent.len() as u64).sum();
        let (old_len, new_len): (u64, u64) = (len(0..OLD as usize), len(OLD as usize..log.sent.len()));
        let stats = log.stop().stats;
        assert!(stats.cold_read_len >= old_len && old_len > 128 << 20, "{driver:?}: {stats:?}");
        let spare = stats.cold_read_len - old_len;
        assert!(
            spare < new_len / 2,
            "{driver:?}: {spare} bytes were read beside the old {old_len}: {stats:?}"
        );
    }
}

/// A connection that is reset in the middle of an answer, and the next one with its descriptor and slot.
#[test]
fn a_reset_leaves_nothing_to_the_next_connection() {
    for driver in DRIVERS {
        let mut log = Log::new(driver, 120, 100_000);
        let id = log.partition().id();
        for round in 0..60_i64 {
            let modes = modes(driver);
            let mode = modes[round as usize % modes.len()];
            let mut victim = log.client();
            for i in 0..10 {
                let offset = Offset::new((round * 31 + i * 17) % 240);
                victim.send_fetch(id, Fetch { mode, ..Fetch::new(offset, 1 << 20) });
            }
            let mut some = vec![0; 1 + 9_000 * (round as usize % 9)];
            std::io::Read::read_exact(victim.socket(), &mut some).unwrap();
            victim.reset();
            let mut next = log.client();
            next.ping();
            let offset = round * 4;
            log.read(&mut next, offset, offset + 4, Fetch { mode, ..Fetch::new(Offset::ZERO, 1 << 20) });
        }
        log.read(&mut log.client(), 0, 240, Fetch::new(Offset::ZERO, 4 << 20));
        log.stop();
    }
}

#[test]
fn limits_of_length_hold_but_for_the_first_batch() {
    for driver in DRIVERS {
        let log = Log::new(driver, 40, 50_000);
        let id = log.partition().id();
        let mut client = log.client();
        let first = log.sent[0].len() as u32;
        for mode in modes(driver) {
            let mut len_of = |offset, len_max| {
                let fetch = Fetch { mode, ..Fetch::new(Offset::new(offset), len_max) };
                client.fetch(id, fetch).body.len() as u32
            };
            assert_eq!(len_of(0, 0), first, "{mode:?}: a first batch is whole even beyond the limit");
            assert_eq!(len_of(0, 1), first);
            assert_eq!(len_of(1, first - 1), first, "{mode:?}: an offset inside a batch");
            assert_eq!(len_of(0, first), first);
            assert_eq!(len_of(0, first + 1), first + 1, "{mode:?}: the limit is bytes, not batches");
            assert_eq!(len_of(80, 1 << 20), 0, "{mode:?}: nothing at the end");
        }
    }
}

#[test]
fn a_fetch_waits_for_its_least_length_and_no_longer_than_it_says() {
    for driver in DRIVERS {
        let mut log = Log::new(driver, 2, 1_000);
        let id = log.partition().id();
        let mut client = log.client();
        let at_end = Offset::new(4);
        // Nothing comes: an empty answer. Too little is there: what is there.
        let told = client.fetch(id, Fetch { len_min: 1, wait_ms: 30, ..Fetch::new(at_end, 1 << 20) });
        assert_eq!((told.status, told.body.len()), (OK, 0));
        let all = (log.sent[0].len() + log.sent[1].len()) as u32;
        let fetch = Fetch { len_min: all + 1, wait_ms: 30, ..Fetch::new(Offset::ZERO, 1 << 20) };
        assert_eq!(client.fetch(id, fetch).body.len(), all as usize);
        // Enough is there: no wait, however long it might be.
        let fetch = Fetch { len_min: all, wait_ms: 3_600_000, ..fetch };
        assert_eq!(client.fetch(id, fetch).body.len(), all as usize);
        // Enough comes with the second append only.
        let more = [batch(2, 2, 1_000 + 4), batch(3, 2, 1_000 + 6)];
        let both = (more[0].len() + more[1].len()) as u32;
        let fetch = Fetch { len_min: both, wait_ms: 3_600_000, ..Fetch::new(at_end, 1 << 20) };
        let tag = client.send_fetch(id, fetch);
        for sent in more {
            log.partition().append(sent.clone()).wait().unwrap();
            log.sent.push(sent);
        }
        let told = client.answer();
        assert_eq!((told.tag, told.body.len()), (tag, both as usize));
        log.check(&told.body, at_end);
        // A handle that loses interest, and an engine that stops while fetches are parked.
        let request = FetchRequest {
            len_min: ByteCount::new(1),
            wait_ms_max: 3_600_000,
            ..FetchRequest::new(id, Offset::new(8), ByteCount::mib(1))
        };
        drop(log.partition().fetch_with(request));
        let parked = log.partition().fetch_with(request);
        log.stop();
        assert!(parked.wait().is_err(), "a parked fetch learns that the engine stops");
    }
}

/// Answers leave in the order of their requests, whatever they are and however long each takes.
#[test]
fn pipelined_requests_are_answered_in_order() {
    for driver in DRIVERS {
        let mut log = Log::new(driver, 100, 30_000);
        let id = log.partition().id();
        let mut client = log.client();
        let sent = batch(100, 2, 30_000);
        let mut tags = Vec::new();
        // More than the limit of a pipeline (16), so that receiving pauses and goes on.
        for round in 0..12 {
            for mode in modes(driver) {
                tags.push(
                    client.send_fetch(id, Fetch { mode, ..Fetch::new(Offset::new(round * 16), 200_000) }),
                );
                tags.push(client.send_ping());
            }
        }
        let parked = Fetch { len_min: 1, wait_ms: 3_600_000, ..Fetch::new(Offset::new(200), 1 << 20) };
        tags.push(client.send_fetch(id, parked));
        tags.push(client.send_ping());
        let waiting = tags.len() - 2;
        for tag in &tags[..waiting] {
            assert_eq!(client.answer().tag, *tag);
        }
        // The parked one holds up those behind it until its data come, from another connection.
        assert_eq!(log.client().append(id, &sent).status, OK);
        log.sent.push(sent);
        let told = client.answer();
        assert_eq!(told.tag, tags[waiting]);
        log.check(&told.body, Offset::new(200));
        assert_eq!(client.answer().tag, tags[waiting + 1]);
        log.stop();
    }
}
