//! The bill against what an engine takes, as `/proc` has it: descriptors, mappings of the rings, pinned memory. All of these
//! belong to the process, so this is the only test of its binary.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rohrpost_engine::bill::Due;
use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::{DriverChoice, Engine, EngineOptions, LogConfig, ShardLimits, Timestamp};

const PAGE_LEN: u64 = 4096;

fn descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").expect("proc is mounted").count() as u64
}

/// Bytes of all mappings of rings.
fn rings_len() -> u64 {
    let maps = fs::read_to_string("/proc/self/maps").expect("proc is mounted");
    let address = |text: &str| u64::from_str_radix(text, 16).expect("an address");
    let len_of = |line: &str| {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        address(end) - address(start)
    };
    maps.lines().filter(|line| line.ends_with("anon_inode:[io_uring]")).map(len_of).sum()
}

/// Bytes that the kernel has pinned for the process's rings.
fn pinned_len() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmPin:")?.trim().strip_suffix(" kB"));
    kib.expect("the kernel counts them").parse::<u64>().expect("a number") << 10
}

fn one_batch() -> Bytes {
    let mut batch = BatchBuilder::new();
    batch.record(Timestamp::new(1_000), None, Some(&[7; 100]));
    batch.build().into()
}

/// For both drivers and both profiles, one shard and two. The kernel may leave a part of a ring out (`no_sqarray`); what is
/// locked for an arena of one slab is that slab.
#[test]
fn an_engine_takes_what_its_bill_says() {
    let pinned_by_nobody = pinned_len();
    for (driver, shards, limits) in [
        (DriverChoice::Uring, 1, ShardLimits::small()),
        (DriverChoice::Uring, 2, ShardLimits::default()),
        (DriverChoice::Poll, 1, ShardLimits::default()),
        (DriverChoice::Poll, 3, ShardLimits::small()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let story = format!("{driver:?}, {shards} shard(s)");
        let mut options =
            EngineOptions { driver, limits, cores: vec![None; shards], ..EngineOptions::new(dir.path()) };
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let (bill, slabs_max) = (options.bill(), options.limits.slabs_max());
        let start = bill.at_start();
        let before = (descriptors(), rings_len());
        let engine = Engine::start(options).unwrap();
        assert_eq!(descriptors() - before.0, start.descriptors, "{story}: descriptors");

        let queues = bill.shard.iter().find(|item| item.what == "ring queues");
        let (queues, mapped) =
            (queues.map_or(0, |item| item.len.get()) * bill.shards, rings_len() - before.1);
        let left_out = queues.checked_sub(mapped);
        assert!(
            left_out.is_some_and(|len| len <= 2 * PAGE_LEN * bill.shards),
            "{story}: {queues} bytes of queues are on the bill, {mapped} are mapped"
        );
        assert!(start.locked_len >= queues && bill.shard.iter().any(|item| item.due == Due::Use));

        let partition =
            engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), LogConfig::default()).unwrap();
        partition.append(one_batch()).wait().unwrap();
        // Where locked memory is scarce the slab is used unregistered, with a remark.
        if slabs_max == 1 && engine.remarks().is_empty() {
            let lockable = bill.in_use().lockable_len / bill.shards;
            // What the probe's ring and those of the engine before had pinned is let go of some time after their end.
            let mut tries = (0..200).map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                pinned_len()
            });
            let settled = tries.any(|pinned| pinned == pinned_by_nobody + lockable);
            assert!(
                settled,
                "{story}: {} pinned, {pinned_by_nobody} before all engines, {lockable} on the bill for the arena",
                pinned_len()
            );
        }
        engine.shutdown().unwrap();
    }
}
