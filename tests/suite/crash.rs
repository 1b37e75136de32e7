//! A writer killed at any moment, again and again: whatever it had reported as acknowledged is there at the
//! next start, byte for byte, at its offset.
//!
//! The writer is this test binary, started again; it reports every acknowledgement over a pipe before it
//! does anything else with it. The history lives here, in the process that survives: what it may show over all
//! lives is the checker's to say.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use rohrpost_engine::{
    DriverChoice, Durability, Engine, EngineOptions, LogConfig, Offset, Partition, PartitionId, WriteMode,
};
use rohrpost_history::{Checker, Event, Rules, Sent, Stored};
use rohrpost_tests::host;
use rohrpost_tests::log::{DRIVERS, batch, config, number_of, options, read_all, split};
use rohrpost_tests::served::modes;
use rohrpost_tests::service::{Client, Fetch, OK, Wire};

const CYCLES: u64 = 20;
const CYCLES_SHARDS: u64 = 8;
/// On a slow machine: still every partition gets more than a hundred batches.
const CYCLES_SLOW: u64 = 8;
const PARTITIONS: usize = 4;

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
    batch(number, records_of(number), len + number as usize % 97)
}

fn records_of(number: u64) -> usize {
    1 + number as usize % 4
}

fn configs() -> [LogConfig; PARTITIONS] {
    let buffered = LogConfig { write_mode: WriteMode::Buffered, ..config() };
    let written = LogConfig { durability: Durability::Written, ..config() };
    let guarded = LogConfig { guard_last_block: true, ..config() };
    [config(), buffered, written, guarded]
}

fn open(engine: &Engine) -> Vec<Partition> {
    let open = |(index, config)| {
        let name = format!("t-{index}").parse().unwrap();
        engine.handle().open_partition_blocking(&name, config).unwrap()
    };
    configs().into_iter().enumerate().map(open).collect()
}

/// Numbers of a life: more than it can send beyond its last acknowledgement.
const SENT_MORE: u64 = 1_000;

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
        let mut history = Checker::new([Rules::default(); PARTITIONS]);
        let mut sent_end = 0;
        for cycle in 0..if host::is_slow() { CYCLES_SLOW } else { cycles } {
            let story = format!("{driver:?} {shards} {sent_end} {}", dir.path().display());
            let mut command = host::child_command(name, &[]);
            let mut child =
                command.env(STORY, &story).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            // Killed after so many acknowledgements: at the start, while segments roll, and later.
            let count = 1 + (cycle as usize * 37) % 150;
            let acked = collect(lines, count, || child.kill().unwrap());
            child.wait().unwrap();
            sent_end = tell(&mut history, sent_end, &acked);
            let shards = 1 + cycle as usize % shards;
            check(options_for(dir.path(), driver, shards), &mut history, cycle);
        }
        assert!((0..PARTITIONS).all(|at| history.batches(at) > 100), "{driver:?}: a test of something");
    }
}

fn options_for(root: &Path, driver: DriverChoice, shards: usize) -> EngineOptions {
    EngineOptions { cores: vec![None; shards], ..options(root, driver) }
}

/// Reads the writer's report, partitions, base offsets and numbers; kills it after `count` lines and takes what else had
/// got into the pipe.
fn collect(lines: BufReader<ChildStdout>, count: usize, kill: impl FnOnce()) -> Vec<(usize, i64, u64)> {
    let (mut kill, mut acked) = (Some(kill), Vec::new());
    for line in lines.lines() {
        let line = line.unwrap();
        assert!(!line.starts_with(WRONG), "{line}");
        let mut words = line.split(' ');
        // A line that the kill has cut short has no end mark: it may be any number's beginning.
        if words.next() != Some(MARK) || !line.ends_with(" .") {
            continue;
        }
        let mut next = || words.next().unwrap().parse::<i64>().unwrap();
        acked.push((next() as usize, next(), next() as u64));
        if acked.len() == count
            && let Some(kill) = kill.take()
        {
            kill();
        }
    }
    assert!(acked.len() >= count, "the writer ended by itself after {} acknowledgements", acked.len());
    acked
}

/// One life of the writer, which has sent batches from this number on: to every partition in turn. Returns the first
/// number of the next life.
fn tell(history: &mut Checker, first: u64, acked: &[(usize, i64, u64)]) -> u64 {
    let end = acked.iter().map(|(.., number)| number + 1).max().unwrap_or(first) + SENT_MORE;
    for number in first..end {
        let partition = (number - first) as usize % PARTITIONS;
        let batches = vec![Sent { number, records: records_of(number) as i64 }];
        // One client per partition and life: what it sends stays in order.
        let client = first * PARTITIONS as u64 + partition as u64;
        history.push(&Event::AppendSent { request: number, client, partition, batches });
    }
    for (.., base, number) in acked {
        history.push(&Event::Acked { request: *number, base: *base });
    }
    history.push(&Event::Restarted);
    end
}

/// Reads everything at the next start.
fn check(options: EngineOptions, history: &mut Checker, cycle: u64) {
    let driver = options.driver;
    let engine = Engine::start(options).unwrap();
    for (index, partition) in open(&engine).iter().enumerate() {
        let stored = read_all(partition, Offset::ZERO);
        let log_end = stored.last().map_or(0, |last| last.next_offset.get());
        let batches = stored.iter().map(|batch| {
            let number = number_of(&batch.bytes);
            Stored { base: batch.base_offset.get(), number: batch.is(&sent(number)).then_some(number) }
        });
        let (log_start, high_watermark, batches) = (0, log_end, batches.collect());
        history.push(&Event::Looked { partition: index, log_start, high_watermark });
        // Nobody else's number: appends are counted from zero.
        let request = u64::MAX;
        history.push(&Event::FetchSent { request, partition: index, from: 0 });
        history.push(&Event::Fetched { request, log_start, high_watermark, batches });
    }
    let found = history.violations();
    assert!(found.is_empty(), "{driver:?} cycle {cycle}: {found:?}");
    // Every other stop is clean, so that both kinds of start are met.
    if cycle.is_multiple_of(2) {
        drop(engine)
    } else {
        engine.shutdown().map(drop).unwrap()
    }
    history.push(&Event::Restarted);
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
