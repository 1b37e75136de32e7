//! After warm-up a shard allocates nothing per request: hot and cold fetches in every mode, and appends, over TCP, on
//! both drivers; nor do two shards that serve each other's connections. The allocator counts on the shards' threads
//! alone, while requests are being served.

mod counting;

use std::net::SocketAddr;

use rohrpost_engine::{ByteCount, DriverChoice, Engine, LogConfig, Offset, PartitionId};
use rohrpost_tests::log::{DRIVERS, batch, config, options};
use rohrpost_tests::served::modes;
use rohrpost_tests::service::{Client, Fetch, Hook, OK, Told, Wire};

/// A reservation larger than a test writes: the steps behind a growing segment are not part of a request.
fn roomy() -> LogConfig {
    LogConfig { segment_len_max: ByteCount::mib(512), preallocate_len_min: ByteCount::mib(64), ..config() }
}

struct Server {
    engine: Engine,
    /// One partition for each shard.
    ids: Vec<PartitionId>,
    _dir: tempfile::TempDir,
}

impl Server {
    /// An engine with `count` batches of `len` bytes in its log.
    fn start(driver: DriverChoice, config: LogConfig, count: u64, len: usize) -> Self {
        Self::with(driver, 1, config, count, len, counting::mark_thread)
    }

    fn with(
        driver: DriverChoice,
        shards: usize,
        config: LogConfig,
        count: u64,
        len: usize,
        hook: Hook,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), driver);
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        options.cores = vec![None; shards];
        let engine = Engine::start_with(options, |_| Wire { hook }).unwrap();
        let open = |at| {
            let name = format!("t-{at}").parse().unwrap();
            let partition = engine.handle().open_partition_blocking(&name, config.clone()).unwrap();
            let pending: Vec<_> = (0..count).map(|number| partition.append(batch(number, 1, len))).collect();
            for pending in pending {
                pending.wait().unwrap();
            }
            partition.id()
        };
        let ids = (0..shards).map(open).collect();
        Self { engine, ids, _dir: dir }
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
    let server = Server::with(driver, 1, roomy(), 1, 100, hook);
    let mut client = server.client();
    client.ping();
    let (count, traces) = counting::count(|| (0..10).for_each(|_| client.ping()));
    assert!(count >= 10 && !traces.is_empty(), "{driver:?}: {count}");
    server.engine.shutdown().unwrap();
}

/// Each client asks three times, elsewhere and for the next partition, then takes the answers.
fn fetch_round(server: &Server, clients: &mut [Client], at: &mut i64, fetch: Fetch, told: &mut Told) {
    const OFFSETS: i64 = 200;
    for client in clients.iter_mut() {
        for turn in 0..3 {
            *at = (*at + 37) % OFFSETS;
            let id = server.ids[turn % server.ids.len()];
            client.send_fetch(id, Fetch { offset: Offset::new(*at), ..fetch });
        }
    }
    for client in clients {
        for _ in 0..3 {
            client.answer_into(told).unwrap();
            assert_eq!(told.status, OK);
        }
    }
}

fn empty() -> Told {
    Told { status: 0, tag: 0, offset: 0, body: Vec::new() }
}

fn hot_fetches(driver: DriverChoice) {
    let server = Server::start(driver, roomy(), 200, 20_000);
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let (mut told, mut at) = (empty(), 0);
    for mode in modes(driver) {
        let fetch = Fetch { mode, ..Fetch::new(Offset::ZERO, 100_000) };
        assert_allocates_nothing(&format!("hot fetches, {driver:?} {mode:?}"), 300, 200, || {
            fetch_round(&server, &mut clients, &mut at, fetch, &mut told);
        });
    }
    server.engine.shutdown().unwrap();
}

/// The log is larger than the arena: nearly every fetch reads from the disk and evicts something.
fn cold_fetches(driver: DriverChoice) {
    let config = LogConfig { segment_len_max: ByteCount::mib(16), ..config() };
    let server = Server::start(driver, config, 260, 500_000);
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    let (mut told, mut at) = (empty(), 0);
    for mode in modes(driver) {
        let fetch = Fetch { mode, ..Fetch::new(Offset::ZERO, 1 << 20) };
        let warm_up = if mode.is_none() { 150 } else { 50 };
        assert_allocates_nothing(&format!("cold fetches, {driver:?} {mode:?}"), warm_up, 50, || {
            fetch_round(&server, &mut clients, &mut at, fetch, &mut told);
        });
    }
    let ends = server.engine.shutdown().unwrap();
    assert!(ends[0].stats.cold_read_len > 300 << 20, "{:?}", ends[0].stats);
}

/// Two shards, a partition of each, and connections that use both: requests, leases and appends travel.
fn two_shards(driver: DriverChoice) {
    let server = Server::with(driver, 2, roomy(), 200, 20_000, counting::mark_thread);
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let (mut told, mut at) = (empty(), 0);
    let fetch = Fetch::new(Offset::ZERO, 100_000);
    assert_allocates_nothing(&format!("fetches from two shards, {driver:?}"), 300, 200, || {
        fetch_round(&server, &mut clients, &mut at, fetch, &mut told);
    });
    let ends = server.engine.shutdown().unwrap();
    let travelled: u64 = ends.iter().map(|end| end.stats.fetches_at_others).sum();
    assert!(travelled > 0, "{driver:?}");
}

fn appends(driver: DriverChoice) {
    let server = Server::start(driver, roomy(), 100, 1_000);
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    let sent = batch(7, 3, 4_500);
    let mut told = empty();
    assert_allocates_nothing(&format!("appends, {driver:?}"), 150, 50, || {
        for client in &mut clients {
            for _ in 0..2 {
                client.send_append(server.ids[0], &sent);
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
        two_shards(driver);
    }
}
