//! Clients on several connections append to the same partitions and read them, over several lives of one engine: what
//! they saw, as one history, shows nothing that a log may not show.
//!
//! Answers that overlap are recorded when they are sent and when they have come. Every life ends with appends nobody
//! has waited for, half of them without a word to the engine.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rohrpost_engine::{
    DriverChoice, Durability, Engine, EngineOptions, LogConfig, Offset, PartitionId, WriteMode,
};
use rohrpost_history::{Checker, Event, Rules, Sent, Stored};
use rohrpost_tests::host;
use rohrpost_tests::log::{DRIVERS, batch, config, number_of, options, split};
use rohrpost_tests::service::{Client, Fetch, OK, Wire};

const PARTITIONS: usize = 3;
const CLIENTS: u64 = 4;
const LIVES: u64 = 4;
/// Of each client in a life.
const REQUESTS: u64 = 150;
/// Appends of one connection without an answer.
const IN_FLIGHT: usize = 4;

#[test]
fn what_clients_see_is_one_log() {
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let story = Story::new();
        for life in 0..if host::is_slow() { 2 } else { LIVES } {
            let (engine, ids) = start(dir.path(), driver);
            let address = engine.local_addr().unwrap();
            ids.iter().for_each(|id| story.read_all(address, *id));
            std::thread::scope(|scope| {
                for client in 0..CLIENTS {
                    let (story, ids) = (&story, &ids);
                    scope.spawn(move || story.run_client(life * CLIENTS + client, address, ids));
                }
            });
            if life % 2 == 0 {
                drop(engine)
            } else {
                engine.shutdown().map(drop).unwrap()
            }
            story.push(&Event::Restarted);
        }
        let (engine, ids) = start(dir.path(), driver);
        ids.iter().for_each(|id| story.read_all(engine.local_addr().unwrap(), *id));
        let checker = story.checker.into_inner().unwrap();
        for id in &ids {
            assert!(checker.batches(id.0 as usize) > 100, "{driver:?}: a test of something");
        }
        let found = checker.finish();
        assert!(found.is_empty(), "{driver:?}: {found:?}");
    }
}

fn start(dir: &Path, driver: DriverChoice) -> (Engine, Vec<PartitionId>) {
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let options = EngineOptions { listen, cores: vec![None; 2], ..options(dir, driver) };
    let engine = Engine::start_with(options, |_| Wire::default()).unwrap();
    let buffered = LogConfig { write_mode: WriteMode::Buffered, ..config() };
    let written = LogConfig { durability: Durability::Written, ..config() };
    let open = |(index, config): (usize, LogConfig)| {
        let name = format!("t-{index}").parse().unwrap();
        engine.handle().open_partition_blocking(&name, config).unwrap().id()
    };
    let ids: Vec<PartitionId> = [config(), buffered, written].into_iter().enumerate().map(open).collect();
    let expected: Vec<PartitionId> = (0..PARTITIONS as u32).map(PartitionId).collect();
    assert_eq!(ids, expected, "partitions are numbered as they are opened");
    (engine, ids)
}

/// Records of a batch, and its bytes: everybody knows what a number stands for.
fn records_of(number: u64) -> usize {
    1 + number as usize % 4
}

fn sent(number: u64) -> bytes::Bytes {
    let len = [10, 700, 4_000, 17_000, 90_000][(number.wrapping_mul(2_654_435_761) >> 16) as usize % 5];
    batch(number, records_of(number), len + number as usize % 97)
}

/// The history, in the making.
struct Story {
    checker: Mutex<Checker>,
    /// Requests and batches are numbered together.
    next: AtomicU64,
}

impl Story {
    fn new() -> Self {
        let checker = Mutex::new(Checker::new([Rules::default(); PARTITIONS]));
        Self { checker, next: AtomicU64::new(0) }
    }

    fn push(&self, event: &Event) {
        self.checker.lock().unwrap().push(event);
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn run_client(&self, client: u64, address: SocketAddr, ids: &[PartitionId]) {
        let mut random = fastrand::Rng::with_seed(client);
        let mut connection = Client::connect(address);
        let (mut waiting, mut ends) = (VecDeque::new(), [0_i64; PARTITIONS]);
        for _ in 0..REQUESTS {
            let id = ids[random.usize(..ids.len())];
            if random.u8(..3) < 2 {
                if waiting.len() == IN_FLIGHT {
                    self.take_ack(&mut connection, &mut waiting);
                }
                waiting.push_back(self.append(&mut connection, client, id));
            } else {
                while !waiting.is_empty() {
                    self.take_ack(&mut connection, &mut waiting);
                }
                let end = &mut ends[id.0 as usize];
                let from = if random.bool() { *end } else { random.i64(0..=*end) };
                let wait_ms = if random.bool() { 10 } else { 0 };
                *end = (*end).max(self.fetch(&mut connection, id, from, random.u32(1..300_000), wait_ms));
            }
        }
        waiting.iter().for_each(|request| self.push(&Event::Unknown { request: *request }));
    }

    fn append(&self, connection: &mut Client, client: u64, id: PartitionId) -> u64 {
        let number = self.number();
        let batches = vec![Sent { number, records: records_of(number) as i64 }];
        self.push(&Event::AppendSent { request: number, client, partition: id.0 as usize, batches });
        connection.send_append(id, &sent(number));
        number
    }

    fn take_ack(&self, connection: &mut Client, waiting: &mut VecDeque<u64>) {
        let request = waiting.pop_front().expect("something is waited for");
        let told = connection.answer();
        let acked = told.status == OK;
        self.push(&if acked {
            Event::Acked { request, base: told.offset }
        } else {
            Event::Unknown { request }
        });
    }

    /// Returns the offset after the last batch.
    fn fetch(&self, connection: &mut Client, id: PartitionId, from: i64, len_max: u32, wait_ms: u32) -> i64 {
        let request = self.number();
        self.push(&Event::FetchSent { request, partition: id.0 as usize, from });
        let len_min = wait_ms.min(1);
        let fetch = Fetch { len_min, wait_ms, ..Fetch::new(Offset::new(from), len_max) };
        let told = connection.fetch(id, fetch);
        assert_eq!(told.status, OK, "{id:?} from {from}");
        let stored = split(&told.body, Offset::new(from));
        let known = |batch: &rohrpost_tests::log::Stored| {
            let number = number_of(&batch.bytes);
            Stored { base: batch.base_offset.get(), number: batch.is(&sent(number)).then_some(number) }
        };
        let mut batches: Vec<Stored> = stored.iter().map(known).collect();
        if stored.is_empty() && !told.body.is_empty() {
            batches.push(Stored { base: from, number: None });
        }
        self.push(&Event::Fetched { request, log_start: 0, high_watermark: told.offset, batches });
        stored.last().map_or(from, |last| last.next_offset.get())
    }

    fn read_all(&self, address: SocketAddr, id: PartitionId) {
        let mut connection = Client::connect(address);
        let mut from = 0;
        loop {
            let next = self.fetch(&mut connection, id, from, 1 << 20, 0);
            if next == from {
                return;
            }
            from = next;
        }
    }
}
