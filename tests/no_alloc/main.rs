//! After warm-up a shard allocates nothing per request: hot fetches, cold fetches and appends over TCP, on
//! both drivers. The allocator counts on the shard's thread alone, while requests are being served.

mod counting;

use std::net::SocketAddr;

use rohrpost_engine::{ByteCount, DriverChoice, Engine, LogConfig, Mode, Offset, PartitionId};
use rohrpost_tests::log::{DRIVERS, batch, config, options};
use rohrpost_tests::service::{Client, Fetch, Hook, OK, Told, Wire};

/// A reservation larger than a test writes: the steps behind a growing segment are not part of a request.
fn roomy() -> LogConfig {
    LogConfig { segment_len_max: ByteCount::mib(512), preallocate_len_min: ByteCount::mib(64), ..config() }
}

struct Server {
    engine: Engine,
    id: PartitionId,
    _dir: tempfile::TempDir,
}

impl Server {
    /// An engine with `count` batches of `len` bytes in its log.
    fn start(driver: DriverChoice, config: LogConfig, count: u64, len: usize) -> Self {
        Self::with_hook(driver, config, count, len, counting::mark_thread)
    }

    fn with_hook(driver: DriverChoice, config: LogConfig, count: u64, len: usize, hook: Hook) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), driver);
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let engine = Engine::start_with(options, |_| Wire { hook }).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config).unwrap();
        let pending: Vec<_> = (0..count).map(|number| partition.append(batch(number, 1, len))).collect();
        for pending in pending {
            pending.wait().unwrap();
        }
        Self { engine, id: partition.id(), _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(self.engine.local_addr().unwrap())
    }
}

/// Runs `round` until it has warmed up, then counts.
fn assert_allocates_nothing(story: &str, warm_up: usize, rounds: usize, mut round: impl FnMut()) {
    (0..warm_up).for_each(|_| round());
    let (count, traces) = counting::count(|| (0..rounds).for_each(|_| round()));
    assert_eq!(count, 0, "{story}: allocations in {rounds} rounds; the first:\n{}", traces.join("\n\n"));
}

/// The counter counts: what allocates on a marked thread is found, elsewhere it is not.
fn the_counter_counts() {
    let marked = std::thread::spawn(|| {
        let (unmarked, _) = counting::count(|| drop(std::hint::black_box(vec![1_u8; 100])));
        counting::mark_thread();
        let (marked, traces) = counting::count(|| drop(std::hint::black_box(vec![1_u8; 100])));
        (unmarked, marked, traces.len())
    });
    assert_eq!(marked.join().unwrap(), (0, 1, 1));
}

/// So does it on a shard: one allocation per frame, by a service that makes one, is found.
fn an_allocating_shard_is_found_out(driver: DriverChoice) {
    let hook = || {
        counting::mark_thread();
        drop(std::hint::black_box(Box::new(1_u64)));
    };
    let server = Server::with_hook(driver, roomy(), 1, 100, hook);
    let mut client = server.client();
    client.ping();
    let (count, traces) = counting::count(|| (0..10).for_each(|_| client.ping()));
    assert!(count >= 10 && !traces.is_empty(), "{driver:?}: {count}");
    server.engine.shutdown().unwrap();
}

fn hot_fetches(driver: DriverChoice) {
    for mode in [None, Some(Mode::Sendfile)] {
        let server = Server::start(driver, roomy(), 200, 20_000);
        let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
        let mut told = Told { status: 0, tag: 0, offset: 0, body: Vec::new() };
        let mut at = 0;
        assert_allocates_nothing(&format!("hot fetches, {driver:?} {mode:?}"), 300, 300, || {
            for client in &mut clients {
                for _ in 0..3 {
                    at = (at + 37) % 200;
                    client.send_fetch(server.id, Fetch { mode, ..Fetch::new(Offset::new(at), 100_000) });
                }
            }
            for client in &mut clients {
                for _ in 0..3 {
                    client.answer_into(&mut told).unwrap();
                    assert_eq!(told.status, OK);
                }
            }
        });
        server.engine.shutdown().unwrap();
    }
}

/// The log is larger than the arena: nearly every fetch reads from the disk and evicts something.
fn cold_fetches(driver: DriverChoice) {
    let config = LogConfig { segment_len_max: ByteCount::mib(16), ..config() };
    let server = Server::start(driver, config, 260, 500_000);
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    let mut told = Told { status: 0, tag: 0, offset: 0, body: Vec::new() };
    let mut at = 0;
    assert_allocates_nothing(&format!("cold fetches, {driver:?}"), 400, 200, || {
        for client in &mut clients {
            at = (at + 83) % 250;
            client.send_fetch(server.id, Fetch::new(Offset::new(at), 1 << 20));
        }
        for client in &mut clients {
            client.answer_into(&mut told).unwrap();
            assert_eq!(told.status, OK);
        }
    });
    let ends = server.engine.shutdown().unwrap();
    assert!(ends[0].stats.cold_read_len > 300 << 20, "{:?}", ends[0].stats);
}

fn appends(driver: DriverChoice) {
    let server = Server::start(driver, roomy(), 100, 1_000);
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let sent = batch(7, 3, 4_500);
    let mut told = Told { status: 0, tag: 0, offset: 0, body: Vec::new() };
    assert_allocates_nothing(&format!("appends, {driver:?}"), 150, 50, || {
        for client in &mut clients {
            for _ in 0..2 {
                client.send_append(server.id, &sent);
            }
        }
        for client in &mut clients {
            for _ in 0..2 {
                client.answer_into(&mut told).unwrap();
                assert_eq!(told.status, OK);
            }
        }
    });
    server.engine.shutdown().unwrap();
}

/// One test, since the counter is one: tests beside each other would count each other's shards.
#[test]
fn a_shard_allocates_nothing_per_request() {
    the_counter_counts();
    for driver in DRIVERS {
        an_allocating_shard_is_found_out(driver);
        hot_fetches(driver);
        appends(driver);
        cold_fetches(driver);
    }
}
