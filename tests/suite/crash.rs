//! A writer killed at any moment, again and again: whatever it had reported as acknowledged is there at the
//! next start, byte for byte, at its offset.
//!
//! The writer is this test binary, started again; it reports every acknowledgement over a pipe before it
//! does anything else with it. The ledger lives here, in the process that survives.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use rohrpost_engine::{
    DriverChoice, Durability, Engine, EngineOptions, LogConfig, Offset, Partition, PartitionId, WriteMode,
};
use rohrpost_tests::host;
use rohrpost_tests::log::{DRIVERS, batch, config, number_of, options, read_all, split};
use rohrpost_tests::served::modes;
use rohrpost_tests::service::{Client, Fetch, OK, Wire};

const CYCLES: u64 = 20;
const CYCLES_SHARDS: u64 = 8;
/// On a slow machine: still every partition gets more than a hundred batches.
const CYCLES_SLOW: u64 = 6;
const PARTITIONS: usize = 3;

/// Marks a line of the writer's report.
const MARK: &str = "ACK";

/// Begins a line about an answer that was not what had been sent.
const WRONG: &str = "WRONG";

/// What the writer is told: on which driver, with how many shards, the first number to send, where.
const STORY: &str = "ROHRPOST_TEST_STORY";

/// Batch number `number` of a cycle: both processes know what it holds. Lengths from a few bytes to several
/// chunks, so that blocks, chunks and segments are crossed everywhere.
fn sent(number: u64) -> bytes::Bytes {
    let len =
        [10, 700, 4_000, 17_000, 90_000, 300_000][(number.wrapping_mul(2_654_435_761) >> 16) as usize % 6];
    batch(number, 1 + number as usize % 4, len + number as usize % 97)
}

fn configs() -> [LogConfig; PARTITIONS] {
    let buffered = LogConfig { write_mode: WriteMode::Buffered, ..config() };
    let written = LogConfig { durability: Durability::Written, ..config() };
    [config(), buffered, written]
}

fn open(engine: &Engine) -> Vec<Partition> {
    let open = |(index, config)| {
        let name = format!("t-{index}").parse().unwrap();
        engine.handle().open_partition_blocking(&name, config).unwrap()
    };
    configs().into_iter().enumerate().map(open).collect()
}

/// What one partition has acknowledged: base offset and number of batch.
type Acked = Vec<(i64, u64)>;

#[test]
fn what_a_killed_writer_had_acknowledged_is_there() {
    kill_again_and_again("crash::what_a_killed_writer_had_acknowledged_is_there", 1, CYCLES);
}

/// The same with two shards, while clients of either read what either owns, in every mode; the next start has one
/// shard or two.
#[test]
fn what_killed_shards_had_acknowledged_is_there() {
    kill_again_and_again("crash::what_killed_shards_had_acknowledged_is_there", 2, CYCLES_SHARDS);
}

/// The story of both: `name` is the test that runs, here and in the child.
fn kill_again_and_again(name: &str, shards: usize, cycles: u64) {
    if host::is_child(name) {
        return write_until_killed();
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let mut acked: [Acked; PARTITIONS] = Default::default();
        let mut sent_end = 0;
        for cycle in 0..if host::is_slow() { CYCLES_SLOW } else { cycles } {
            let story = format!("{driver:?} {shards} {sent_end} {}", dir.path().display());
            let mut command = host::child_command(name, &[]);
            let mut child =
                command.env(STORY, &story).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            // Killed after so many acknowledgements: at the start, while segments roll, and later.
            let count = 1 + (cycle * 37) % 150;
            let end = collect(lines, &mut acked, count, || child.kill().unwrap());
            child.wait().unwrap();
            sent_end = sent_end.max(end) + 1_000;
            let shards = 1 + cycle as usize % shards;
            check(options_for(dir.path(), driver, shards), &acked, sent_end, cycle);
        }
        assert!(acked.iter().all(|acked| acked.len() > 100), "{driver:?}: a test of something");
    }
}

fn options_for(root: &Path, driver: DriverChoice, shards: usize) -> EngineOptions {
    EngineOptions { cores: vec![None; shards], ..options(root, driver) }
}

/// Reads the writer's report; kills it after `count` lines and takes what else had got into the pipe.
fn collect(
    lines: BufReader<ChildStdout>,
    acked: &mut [Acked; PARTITIONS],
    count: u64,
    kill: impl FnOnce(),
) -> u64 {
    let (mut kill, mut seen, mut end) = (Some(kill), 0, 0);
    for line in lines.lines() {
        let line = line.unwrap();
        assert!(!line.starts_with(WRONG), "{line}");
        let mut words = line.split(' ');
        // A line that the kill has cut short has no end mark: it may be any number's beginning.
        if words.next() != Some(MARK) || !line.ends_with(" .") {
            continue;
        }
        let mut next = || words.next().unwrap().parse::<i64>().unwrap();
        let (partition, base_offset, number) = (next() as usize, next(), next() as u64);
        acked[partition].push((base_offset, number));
        end = end.max(number + 1);
        seen += 1;
        if seen == count
            && let Some(kill) = kill.take()
        {
            kill();
        }
    }
    assert!(seen >= count, "the writer ended by itself after {seen} acknowledgements");
    end
}

fn check(options: EngineOptions, acked: &[Acked; PARTITIONS], sent_end: u64, cycle: u64) {
    let driver = options.driver;
    let engine = Engine::start(options).unwrap();
    for (index, partition) in open(&engine).iter().enumerate() {
        let story = format!("{driver:?} cycle {cycle} partition {index}");
        let stored = read_all(partition, Offset::ZERO);
        let mut next = Offset::ZERO;
        for batch in &stored {
            assert_eq!(batch.base_offset, next, "{story}: offsets are dense");
            next = batch.next_offset;
        }
        for (base_offset, number) in &acked[index] {
            let at = stored.binary_search_by_key(base_offset, |batch| batch.base_offset.get());
            let at = at.unwrap_or_else(|_| panic!("{story}: acknowledged {base_offset} is lost"));
            assert!(stored[at].is(&sent(*number)), "{story}: {base_offset} is not what was acknowledged");
        }
        // Nothing is served that was not sent, twice, or out of order: acknowledged or not.
        let mut before = None;
        for batch in &stored {
            let number = number_of(&batch.bytes);
            assert!(before < Some(number) && number < sent_end, "{story}: {number} after {before:?}");
            before = Some(number);
        }
        let known: BTreeSet<_> = acked[index].iter().map(|(base_offset, _)| *base_offset).collect();
        for batch in stored.iter().filter(|batch| !known.contains(&batch.base_offset.get())) {
            let number = number_of(&batch.bytes);
            assert!(batch.is(&sent(number)), "{story}: {number} is not what was sent");
        }
    }
    // Every other stop is clean, so that both kinds of start are met.
    if cycle.is_multiple_of(2) { drop(engine) } else { engine.shutdown().map(drop).unwrap() }
}

/// The child: appends to every partition, eight batches in flight each, and reports. Clients read meanwhile if there
/// are several shards.
fn write_until_killed() {
    let story = std::env::var(STORY).unwrap();
    let mut words = story.splitn(4, ' ');
    let mut next = || words.next().unwrap();
    let driver = if next() == "Poll" { DriverChoice::Poll } else { DriverChoice::Uring };
    let (shards, first, root) = (next().parse().unwrap(), next().parse::<u64>().unwrap(), next());
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let options = EngineOptions { listen, ..options_for(Path::new(root), driver, shards) };
    let engine = Engine::start_with(options, |_| Wire::default()).unwrap();
    let partitions = open(&engine);
    let mut out = std::io::stdout();
    // The harness has begun a line of its own.
    out.write_all(b"\n").unwrap();
    if shards > 1 {
        let (address, ids) = (engine.local_addr().unwrap(), partitions.iter().map(Partition::id).collect());
        std::thread::spawn(move || read_until_killed(driver, address, ids));
    }
    let mut number = first;
    let mut waiting: Vec<std::collections::VecDeque<_>> =
        (0..PARTITIONS).map(|_| Default::default()).collect();
    loop {
        for (index, partition) in partitions.iter().enumerate() {
            if waiting[index].len() >= 8
                && let Some((pending, number)) = waiting[index].pop_front()
            {
                let pending: rohrpost_engine::Pending<rohrpost_engine::AppendResult<_>> = pending;
                let appended: rohrpost_engine::Appended = pending.wait().unwrap();
                let line = format!("{MARK} {index} {} {number} .\n", appended.base_offset.get());
                out.write_all(line.as_bytes()).unwrap();
                out.flush().unwrap();
            }
            waiting[index].push_back((partition.append(sent(number)), number));
            number += 1;
        }
    }
}

/// Reads every partition from its start, over and over, on connections that the kernel deals out to the shards.
fn read_until_killed(driver: DriverChoice, address: SocketAddr, ids: Vec<PartitionId>) {
    for mode in modes(driver).into_iter().cycle() {
        let mut client = Client::connect(address);
        for id in &ids {
            let mut offset = Offset::ZERO;
            loop {
                let told = client.fetch(*id, Fetch { mode, ..Fetch::new(offset, 700_000) });
                if told.status != OK {
                    println!("{WRONG}: {mode:?} {id:?} {offset}: status {}", told.status);
                }
                let batches = split(&told.body, offset);
                let Some(last) = batches.last() else { break };
                offset = last.next_offset;
                if let Some(batch) = batches.iter().find(|batch| !batch.is(&sent(number_of(&batch.bytes)))) {
                    println!("{WRONG}: {mode:?} {id:?} {} is not what was sent", batch.base_offset);
                }
            }
        }
    }
}
