//! Hosts that forbid or lack something: the engine runs without it and says so, or refuses by name.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use rohrpost_engine::{DriverChoice, DriverInUse, Engine, EngineOptions, Offset, ShardLimits, StartError};
use rohrpost_tests::host::{self, NoDescriptors};
use rohrpost_tests::log::{DRIVERS, Ledger, batch, config, options};
use rohrpost_tests::service::{Client, Fetch, OK, Wire};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

fn loopback() -> Option<SocketAddr> {
    Some(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// Appends and reads, across a restart.
fn assert_works(options: &EngineOptions) {
    let mut ledger = Ledger::default();
    for round in 0..2 {
        let engine = Engine::start(options.clone()).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        for number in 0..30 {
            let sent = batch(100 * round + number, 2, 70_000);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        }
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}

#[test]
fn where_io_uring_is_filtered_poll_runs_and_says_why() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let story = move || {
            // What a container's default profile does.
            host::fail_system_call(libc::SYS_io_uring_setup, None, errno);
            let dir = tempfile::tempdir().unwrap();
            let error = Engine::start(options(dir.path(), DriverChoice::Uring)).unwrap_err();
            let StartError::Uring(_) = &error else { panic!("{error:?}") };
            for word in ["seccomp", "io_uring_setup", "poll driver"] {
                assert!(error.to_string().contains(word), "{error}");
            }
            let options = options(dir.path(), DriverChoice::Auto);
            let engine = Engine::start(options.clone()).unwrap();
            let DriverInUse::Poll { reason } = engine.driver() else { panic!("{:?}", engine.driver()) };
            assert!(reason.contains("seccomp"), "{reason}");
            engine.shutdown().unwrap();
            assert_works(&options);
        };
        std::thread::spawn(story).join().unwrap();
    }
}

#[test]
fn a_sysctl_that_forbids_io_uring_is_in_doctors_hands() {
    let text = rohrpost_engine::linux::uring::SetupError::Disabled { sysctl: 2 }.to_string();
    for word in ["kernel.io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0", "poll driver"] {
        assert!(text.contains(word), "{text}");
    }
}

/// 8 MiB of locked memory hold a ring, not a slab: the slab is used all the same.
#[test]
fn memory_beyond_the_locked_memory_limit_is_used_unregistered() {
    if !host::in_child("bad_host::memory_beyond_the_locked_memory_limit_is_used_unregistered") {
        return;
    }
    host::without(CapabilitySet::IPC_LOCK);
    host::limit(Resource::Memlock, 8 << 20);
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), DriverChoice::Uring);
    assert_works(&options);
    let engine = Engine::start(options).unwrap();
    assert!(matches!(engine.driver(), DriverInUse::Uring { .. }));
    let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
    partition.append(batch(9, 1, 10)).wait().unwrap();
    let remarks = engine.remarks();
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    for word in ["shard 0", "locked-memory limit", "ulimit -l", "CAP_IPC_LOCK"] {
        assert!(remarks[0].contains(word), "{word:?} is not in: {}", remarks[0]);
    }
    engine.shutdown().unwrap();
}

#[test]
fn where_no_ring_fits_poll_runs_and_says_why() {
    const NAME: &str = "bad_host::where_no_ring_fits_poll_runs_and_says_why";
    if !host::counts_rings(NAME) || !host::in_child(NAME) {
        return;
    }
    host::without(CapabilitySet::IPC_LOCK);
    host::limit(Resource::Memlock, 0);
    let dir = tempfile::tempdir().unwrap();
    let error = Engine::start(options(dir.path(), DriverChoice::Uring)).unwrap_err();
    for word in ["locked-memory limit is 0", "ulimit -l", "CAP_IPC_LOCK", "poll driver"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let auto = options(dir.path(), DriverChoice::Auto);
    let engine = Engine::start(auto.clone()).unwrap();
    let DriverInUse::Poll { reason } = engine.driver() else { panic!("{:?}", engine.driver()) };
    assert!(reason.contains("locked-memory limit"), "{reason}");
    engine.shutdown().unwrap();
    assert_works(&auto);
}

/// A limit between the probe's small ring and the ring of a large shard: whatever the shard's own ring meets
/// is a refusal by name, or with `Auto` the other driver, never an engine that does not answer.
#[test]
fn a_ring_that_does_not_fit_is_found_out_at_the_start() {
    const NAME: &str = "bad_host::a_ring_that_does_not_fit_is_found_out_at_the_start";
    if !host::counts_rings(NAME) || !host::in_child(NAME) {
        return;
    }
    host::without(CapabilitySet::IPC_LOCK);
    let dir = tempfile::tempdir().unwrap();
    let limits =
        ShardLimits { connections_max: 60_000, commits_in_flight_max: 4_096, ..ShardLimits::small() };
    let (mut refused, mut fell_back) = (0, 0);
    for kib in [2048, 1024, 512, 256, 128, 64, 32, 16] {
        host::limit(Resource::Memlock, kib << 10);
        let large = |driver| EngineOptions { limits: limits.clone(), ..options(dir.path(), driver) };
        match Engine::start(large(DriverChoice::Uring)) {
            Ok(engine) => drop(engine.shutdown().unwrap()),
            Err(error @ (StartError::Shard { .. } | StartError::Uring(_))) => {
                assert!(error.to_string().contains("ulimit -l"), "{kib} KiB: {error}");
                refused += 1;
            }
            Err(error) => panic!("{kib} KiB: {error}"),
        }
        let engine = Engine::start(large(DriverChoice::Auto)).unwrap();
        fell_back += i32::from(matches!(engine.driver(), DriverInUse::Poll { .. }));
        engine.shutdown().unwrap();
    }
    // The kernel gives a ring's memory back some time after its end: the two counts may differ.
    assert!(refused > 0 && fell_back > 0, "{refused} refused, {fell_back} fell back");
}

#[test]
fn an_absent_core_is_refused_with_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let absent = rohrpost_engine::linux::cpu::allowed().into_iter().max().unwrap() + 1;
    for driver in DRIVERS {
        for core in [absent, usize::MAX] {
            let mut options = options(dir.path(), driver);
            options.cores = vec![Some(core)];
            let error = Engine::start(options).unwrap_err();
            let StartError::InvalidOption { setting: "cores", .. } = &error else { panic!("{error:?}") };
            for word in [&format!("core {core} is absent or not allowed"), "allowed: [0"] {
                assert!(error.to_string().contains(word), "{error}");
            }
        }
    }
}

#[test]
fn an_address_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    for driver in DRIVERS {
        let mut options = options(dir.path(), driver);
        options.listen = Some(taken.local_addr().unwrap());
        let error = Engine::start_with(options, |_| Wire::default()).unwrap_err();
        for word in [&taken.local_addr().unwrap().to_string(), "already in use", "choose another port"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

/// No descriptor is left: who is connected goes on, who connects waits, what must be opened fails by name;
/// when there are descriptors again, everything goes on.
#[test]
fn too_few_descriptors_stop_nothing_that_runs() {
    if !host::in_child("bad_host::too_few_descriptors_stop_nothing_that_runs") {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), driver);
        options.listen = loopback();
        let engine = Engine::start_with(options, |_| Wire::default()).unwrap();
        let address = engine.local_addr().unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        let mut ledger = Ledger::default();
        let mut client = Client::connect(address);
        let sent = batch(1, 1, 1_000);
        let told = client.append(partition.id(), &sent);
        ledger.push(Offset::new(told.offset), sent);
        // A socket takes its descriptor when it is made, not when it connects.
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let none_left = NoDescriptors::take();

        rustix::net::connect(&socket, &address).unwrap();
        let mut waiting = Client::from_socket(socket.into());
        waiting.send_ping();
        for number in 2..20 {
            let sent = batch(number, 1, 1_000);
            let told = client.append(partition.id(), &sent);
            assert_eq!(told.status, OK, "{driver:?}: who is connected goes on");
            ledger.push(Offset::new(told.offset), sent);
            assert!(!client.fetch(partition.id(), Fetch::new(Offset::ZERO, 1)).body.is_empty());
        }
        let error = engine.handle().open_partition_blocking(&"u-0".parse().unwrap(), config()).unwrap_err();
        for word in ["too many open files", "ulimit -n"] {
            assert!(error.to_string().contains(word), "{driver:?}: {error}");
        }
        let error = Engine::start(rohrpost_tests::log::options(&dir.path().join("x"), driver)).unwrap_err();
        assert!(error.to_string().contains("ulimit -n"), "{driver:?}: {error}");

        drop(none_left);
        waiting.answer();
        engine.handle().open_partition_blocking(&"u-0".parse().unwrap(), config()).unwrap();
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}

/// A start that lacks descriptors fails with the remedy, and where the shards' own are lacking with how many it takes; with
/// enough of them it succeeds.
#[test]
fn a_start_without_descriptors_says_how_many_it_takes() {
    if !host::in_child("bad_host::a_start_without_descriptors_says_how_many_it_takes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // More shards than a start has files open for a moment: it is their own descriptors that are lacking.
    let options = EngineOptions { cores: vec![None; 8], ..options(dir.path(), DriverChoice::Poll) };
    let takes = options.bill().at_start().descriptors;
    // What the process has inherited may have high numbers: the lowest free one is the next to be given out.
    let free = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    let before = getrlimit(Resource::Nofile);
    let mut told = 0;
    for end in free.. {
        setrlimit(Resource::Nofile, Rlimit { current: Some(end), ..before }).unwrap();
        match Engine::start(options.clone()) {
            Ok(engine) => {
                setrlimit(Resource::Nofile, before).unwrap();
                engine.shutdown().unwrap();
                break;
            }
            Err(error) => {
                assert!(error.to_string().contains("ulimit -n"), "{end}: {error}");
                if let StartError::Descriptors { needed, allowed, .. } = error {
                    assert_eq!((needed, allowed), (takes, end));
                    told += 1;
                }
            }
        }
    }
    assert!(told > 0, "the shards' inboxes take some");
}

/// A segment is full and the next one cannot be made: appends are suspended by name, and go on.
#[test]
fn too_few_descriptors_for_a_segment_suspend_appends() {
    if !host::in_child("bad_host::too_few_descriptors_for_a_segment_suspend_appends") {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(options(dir.path(), driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        let mut ledger = Ledger::default();
        let sent = batch(0, 2, 300_000);
        ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        let none_left = NoDescriptors::take();
        // Segments hold 2 MiB: the last of these waits for a file.
        let waiting: Vec<_> = (1..8)
            .map(|number| {
                let sent = batch(number, 2, 300_000);
                (partition.append(sent.clone()), sent)
            })
            .collect();
        let error = (0..500).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            let mut pending = partition.append(batch(77, 1, 1));
            std::thread::sleep(std::time::Duration::from_millis(5));
            rohrpost_tests::log::peek(&mut pending).and_then(Result::err)
        });
        let text = error.expect("appends are suspended").to_string();
        for word in ["appends are suspended", "too many open files", "ulimit -n"] {
            assert!(text.contains(word), "{driver:?}: {text}");
        }
        drop(none_left);
        for (pending, sent) in waiting {
            match pending.wait() {
                Ok(appended) => ledger.push(appended.base_offset, sent),
                // Asked for when appends were suspended already.
                Err(error) => assert!(error.to_string().contains("too many open files"), "{error}"),
            }
        }
        assert!(ledger.len() > 5, "{driver:?}: what was accepted is written");
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}
