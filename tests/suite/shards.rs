//! Two shards behind one listener: a connection uses the partitions of both, wherever it was accepted.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rohrpost_engine::{DriverChoice, Engine, EngineOptions, Mode, Offset, Partition, ShardEnd, ShardLimits};
use rohrpost_tests::log::{DRIVERS, batch, config, options, read_all, split};
use rohrpost_tests::served::modes;
use rohrpost_tests::service::{Client, Fetch, OK, Told, Wire};
use tempfile::TempDir;

/// One partition of each shard: they are dealt out in turn.
const PARTITIONS: usize = 2;

/// Batches of each partition, and records of each batch.
const BATCHES: u64 = 60;
const RECORDS: i64 = 2;

/// Two shards over partitions `t-0` and `t-1`, whose batches are known.
struct Pair {
    _dir: TempDir,
    options: EngineOptions,
    engine: Option<Engine>,
    partitions: Vec<Partition>,
    sent: Vec<Vec<Bytes>>,
}

impl Pair {
    fn new(driver: DriverChoice, limits: ShardLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            cores: vec![None; PARTITIONS],
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            limits,
            ..options(dir.path(), driver)
        };
        let mut pair = Self { _dir: dir, options, engine: None, partitions: Vec::new(), sent: Vec::new() };
        pair.start();
        for (index, partition) in pair.partitions.iter().enumerate() {
            let number = |at: u64| at + 1_000 * index as u64;
            let sent: Vec<_> =
                (0..BATCHES).map(|at| batch(number(at), 2, 70_000 + 100 * at as usize)).collect();
            let pending: Vec<_> = sent.iter().map(|sent| partition.append(sent.clone())).collect();
            for pending in pending {
                pending.wait().unwrap();
            }
            pair.sent.push(sent);
        }
        pair
    }

    fn start(&mut self) {
        let engine = Engine::start_with(self.options.clone(), |_| Wire::default()).unwrap();
        let open = |index| {
            let name = format!("t-{index}").parse().unwrap();
            engine.handle().open_partition_blocking(&name, config()).unwrap()
        };
        self.partitions = (0..PARTITIONS).map(open).collect();
        self.engine = Some(engine);
    }

    fn stop(&mut self) -> Vec<ShardEnd> {
        self.partitions.clear();
        self.engine.take().unwrap().shutdown().unwrap()
    }

    /// Nothing of the log is in memory afterwards.
    fn restart(&mut self) {
        self.stop();
        self.start();
    }

    fn client(&self) -> Client {
        Client::connect(self.engine.as_ref().unwrap().local_addr().unwrap())
    }

    /// Checks an answer against what was sent to a partition; returns the next offset.
    fn check(&self, partition: usize, told: &Told, offset: Offset) -> Offset {
        assert_eq!(told.status, OK, "{partition} {offset}");
        let mut next = Offset::new(offset.get() / RECORDS * RECORDS);
        let batches = split(&told.body, offset);
        assert!(!batches.is_empty(), "the first batch is whole");
        for stored in batches {
            assert_eq!(stored.base_offset, next);
            let sent = &self.sent[partition][(next.get() / RECORDS) as usize];
            assert!(stored.is(sent), "{partition} {next} is not what was sent");
            next = stored.next_offset;
        }
        next
    }
}

/// Sums a counter over all shards.
fn sum(ends: &[ShardEnd], count: impl Fn(&ShardEnd) -> u64) -> u64 {
    ends.iter().map(count).sum()
}

/// One connection reads both logs at a time, in every mode, from cold and from warm memory; each answer is that of
/// its question, and no byte of it was copied from shard to shard.
#[test]
fn a_connection_reads_the_partitions_of_every_shard() {
    for driver in DRIVERS {
        let mut pair = Pair::new(driver, ShardLimits::small());
        let end = Offset::new(BATCHES as i64 * RECORDS);
        for mode in modes(driver) {
            pair.restart();
            for _ in 0..2 {
                let mut client = pair.client();
                let mut offsets = [Offset::ZERO; PARTITIONS];
                while offsets.iter().any(|offset| *offset < end) {
                    // Pipelined, so that an answer from afar holds up one from here, and the other way round.
                    let asked: Vec<_> = (0..2 * PARTITIONS).map(|at| at % PARTITIONS).collect();
                    let asked: Vec<_> = asked.into_iter().filter(|at| offsets[*at] < end).collect();
                    for at in &asked {
                        let fetch = Fetch { mode, ..Fetch::new(offsets[*at], 400_001) };
                        client.send_fetch(pair.partitions[*at].id(), fetch);
                    }
                    let from = offsets;
                    for at in asked {
                        offsets[at] = pair.check(at, &client.answer(), from[at]);
                    }
                }
            }
            let ends = pair.stop();
            assert!(sum(&ends, |end| end.stats.fetches_at_others) > 0, "{driver:?} {mode:?}");
            assert_eq!(sum(&ends, |end| end.stats.payload_copied_between_shards), 0, "{driver:?} {mode:?}");
            let len = 2 * pair.sent.iter().flatten().map(|sent| sent.len() as u64).sum::<u64>();
            let by_mode = match mode {
                Some(Mode::DirectSplice) => sum(&ends, |end| end.stats.sent_through_pipes),
                Some(Mode::Splice | Mode::Sendfile) => sum(&ends, |end| end.stats.sent_from_page_cache),
                Some(Mode::SendRef) => sum(&ends, |end| end.stats.sent_by_reference),
                _ => sum(&ends, |end| end.stats.sent_from_memory),
            };
            assert!(by_mode > len / 4, "{driver:?} {mode:?}: only {by_mode} of {len} bytes went that way");
            pair.start();
        }
        pair.stop();
    }
}

/// Frames that fill more than one receive buffer travel in the connection's own memory; what came in the driver's
/// is copied once, and that is counted.
#[test]
fn a_connection_appends_to_the_partitions_of_every_shard() {
    for driver in DRIVERS {
        let mut pair = Pair::new(driver, ShardLimits::small());
        pair.restart();
        let mut client = pair.client();
        let mut ends = [BATCHES as i64 * RECORDS; PARTITIONS];
        let lens = [300_000, 100, 40_000, 200_000, 3_000];
        for round in 0..6 {
            let mut asked = Vec::new();
            for (index, len) in lens.iter().enumerate() {
                let at = (round + index) % PARTITIONS;
                let sent = batch(5_000 + (10 * round + index) as u64, 2, *len);
                client.send_append(pair.partitions[at].id(), &sent);
                pair.sent[at].push(sent);
                asked.push(at);
            }
            for at in asked {
                let told = client.answer();
                assert_eq!((told.status, told.offset), (OK, ends[at]), "{driver:?}: in order");
                ends[at] += RECORDS;
            }
        }
        for (at, partition) in pair.partitions.iter().enumerate() {
            let stored = read_all(partition, Offset::ZERO);
            assert_eq!(stored.len(), pair.sent[at].len(), "{driver:?}");
            assert!(stored.iter().zip(&pair.sent[at]).all(|(stored, sent)| stored.is(sent)), "{driver:?}");
        }
        let ends = pair.stop();
        assert_eq!(sum(&ends, |end| end.stats.appends_at_others), 15, "{driver:?}: every other one");
    }
}

/// A reader that waits for data is woken by an append, at whichever shard; its time runs out there too.
#[test]
fn waiting_works_across_shards() {
    for driver in DRIVERS {
        let mut pair = Pair::new(driver, ShardLimits::small());
        let end = Offset::new(BATCHES as i64 * RECORDS);
        let mut clients: Vec<_> = (0..4).map(|_| pair.client()).collect();
        let wait = Fetch { len_min: 1, wait_ms: 20_000, ..Fetch::new(end, 1 << 20) };
        for client in &mut clients {
            for partition in &pair.partitions {
                client.send_fetch(partition.id(), wait);
            }
        }
        for at in 0..PARTITIONS {
            let sent = batch(9_000 + at as u64, 2, 1_000);
            pair.sent[at].push(sent.clone());
            let told = pair.client().append(pair.partitions[at].id(), &sent);
            assert_eq!(told.status, OK);
        }
        for client in &mut clients {
            for at in 0..PARTITIONS {
                pair.check(at, &client.answer(), end);
            }
        }
        let short = Fetch { len_min: 1, wait_ms: 20, ..Fetch::new(end.plus(RECORDS), 1 << 20) };
        for partition in &pair.partitions {
            let told = clients[0].fetch(partition.id(), short);
            assert_eq!((told.status, told.body.len()), (OK, 0), "{driver:?}");
        }
        pair.stop();
    }
}

/// Connections that break off while they wait take their fetches with them, at the owner too: otherwise the few there
/// may be would be used up.
#[test]
fn a_broken_connection_ends_its_waits_at_other_shards() {
    for driver in DRIVERS {
        let mut pair = Pair::new(driver, ShardLimits { fetches_max: 8, ..ShardLimits::small() });
        let end = Offset::new(BATCHES as i64 * RECORDS);
        let wait = Fetch { len_min: 1, wait_ms: 60_000, ..Fetch::new(end, 1 << 20) };
        for round in 0..20 {
            let mut client = pair.client();
            // Answered before the waits begin, so that the frames have been read when the reset comes.
            client.ping();
            for partition in &pair.partitions {
                client.send_fetch(partition.id(), wait);
            }
            std::thread::sleep(Duration::from_millis(5));
            client.reset();
            // The reset and the question below reach the owner on different ways.
            let mut reader = pair.client();
            for (at, partition) in pair.partitions.iter().enumerate() {
                let told = ask_until_taken(&mut reader, partition, round);
                pair.check(at, &told, Offset::ZERO);
            }
        }
        pair.stop();
    }
}

fn ask_until_taken(client: &mut Client, partition: &Partition, round: usize) -> Told {
    for _ in 0..500 {
        let told = client.fetch(partition.id(), Fetch::new(Offset::ZERO, 100_000));
        if told.status == OK {
            return told;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("round {round}: the slots never come back");
}

/// Resets while the owner reads, and while its memory is on its way: nothing breaks, nothing is lost. The log is
/// larger than the arena can spare for dead connections.
#[test]
fn resets_while_the_owner_reads_cost_nothing() {
    for driver in DRIVERS {
        let mut pair = Pair::new(driver, ShardLimits::small());
        for mode in modes(driver) {
            pair.restart();
            for round in 0..15 {
                let mut client =
                    Client::with_buffer(pair.engine.as_ref().unwrap().local_addr().unwrap(), Some(16 << 10));
                for partition in &pair.partitions {
                    let offset = Offset::new((round * 7 % BATCHES as i64) * RECORDS);
                    client.send_fetch(partition.id(), Fetch { mode, ..Fetch::new(offset, 2 << 20) });
                }
                if round % 3 == 0 {
                    client.try_answer().map(drop).unwrap();
                }
                client.reset();
            }
            let mut reader = pair.client();
            for at in 0..PARTITIONS {
                let told = reader.fetch(pair.partitions[at].id(), Fetch::new(Offset::ZERO, 3 << 20));
                pair.check(at, &told, Offset::ZERO);
            }
        }
        pair.stop();
    }
}

/// A stop while connections wait at both shards ends; they are told, or their connection ends. Afterwards everything
/// is there.
#[test]
fn a_stop_ends_what_waits_at_other_shards() {
    for driver in DRIVERS {
        let mut pair = Pair::new(driver, ShardLimits::small());
        let end = Offset::new(BATCHES as i64 * RECORDS);
        let wait = Fetch { len_min: 1, wait_ms: 60_000, ..Fetch::new(end, 1 << 20) };
        let mut client = pair.client();
        for partition in &pair.partitions {
            client.send_fetch(partition.id(), wait);
        }
        std::thread::sleep(Duration::from_millis(20));
        pair.stop();
        while let Ok(told) = client.try_answer() {
            assert_ne!(told.status, OK, "{driver:?}: there was nothing to tell");
        }
        pair.start();
        let mut reader = pair.client();
        for at in 0..PARTITIONS {
            let told = reader.fetch(pair.partitions[at].id(), Fetch::new(Offset::ZERO, 1 << 20));
            pair.check(at, &told, Offset::ZERO);
        }
        pair.stop();
    }
}
