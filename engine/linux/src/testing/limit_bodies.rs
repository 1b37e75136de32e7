//! Test bodies: what a host runs out of. Limits of the process are lowered in a process of its own.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rohrpost_engine_core::disk::{Caching, Disk, Errno, OpenMode};
use rohrpost_engine_core::ops::{DiskOp, Driver, Event, Token, Write};
use rohrpost_engine_core::platform::Chunk;
use rohrpost_engine_core::types::{ByteCount, Position};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{LinuxTypes, Options, PATIENCE, Rig, arena, patterned, skip};
use crate::disk::LinuxDisk;

const ROLE: &str = "ROHRPOST_TEST_LIMIT";

/// Runs the test of this full name in a process of its own; `false` in the parent, after the child
/// succeeded.
pub(crate) fn in_child(test: &str) -> bool {
    if std::env::var(ROLE).as_deref() == Ok(test) {
        return true;
    }
    let program = std::env::current_exe().expect("a test binary knows its path");
    let output = Command::new(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, test)
        .output()
        .expect("the test binary starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test} in a child:\n{text}\n{errors}");
    assert!(text.contains("1 passed"), "the child ran nothing:\n{text}");
    for skipped in errors.lines().filter(|line| line.starts_with("skipped ")) {
        // Past the harness's capture, as `skip` itself does it.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{skipped}\n").as_bytes());
    }
    false
}

/// No descriptor is left for a second connection: it waits, the first is served, and the second is
/// accepted when the first has gone.
pub(crate) fn out_of_descriptors<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let _clients: Vec<_> = (0..2).map(|_| TcpStream::connect(address).expect("a backlog")).collect();
    let mut hoard = exhaust_descriptors();
    hoard.pop();
    let accepted = |event: &mut Event<D::Platform>| match event {
        Event::Accepted { conn, .. } => Some(*conn),
        _ => None,
    };
    let first = rig.until("the first connection", accepted);
    (0..20).for_each(|_| rig.turn());
    assert!(rig.events.is_empty(), "there is no descriptor for another connection: {:?}", rig.kinds());
    rig.close(first);
    let second = rig.until("the second connection", accepted);
    assert_ne!(first, second);
}

/// Takes every descriptor the process may still open: more than a few, whatever it has inherited.
pub(crate) fn exhaust_descriptors() -> Vec<std::fs::File> {
    let_threads_rest();
    let open = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    let limit = numbers.max().expect("standard input at least") + 8;
    let old = rustix::process::getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: old.maximum })
        .expect("limits may be lowered");
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}

/// Looks in a row that must find every thread asleep: one of them may wait for another in the middle of its start.
const RESTING_LOOKS: usize = 5;

/// Waits until every other thread sleeps, so that none holds a descriptor that comes back later.
///
/// A thread that starts allocates, and where so many threads do, the C library counts the processors first: it opens
/// `/sys/devices/system/cpu/online`. On a busy machine that is long after the thread was made.
pub(crate) fn let_threads_rest() {
    let me = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut looks = 0;
    let started = Instant::now();
    while looks < RESTING_LOOKS {
        assert!(started.elapsed() < PATIENCE, "a thread does not come to rest");
        std::thread::sleep(Duration::from_millis(1));
        let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
        let mut others = tasks.filter_map(Result::ok).filter(|task| *task.file_name() != *me);
        looks = if others.all(|task| sleeps(&task.path())) { looks + 1 } else { 0 };
    }
}

/// Whether a thread sleeps; one that is gone does.
fn sleeps(task: &Path) -> bool {
    let Ok(stat) = std::fs::read_to_string(task.join("stat")) else { return true };
    // The state follows the name, which stands in brackets and may hold some.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// A full file system: the write fails as full or comes back short, its memory is free again, and once
/// there is space the same write succeeds.
pub(crate) fn full_disk<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    if !mount_small_tmpfs(dir.path()) {
        return skip("mounting a small tmpfs needs root");
    }
    std::fs::write(dir.path().join("ballast"), vec![1; 900 << 10]).expect("room for the ballast");
    let file = LinuxDisk.open(&dir.path().join("a"), OpenMode::CreateNew, Caching::Buffered).expect("a file");
    let mut rig = Rig::new(make(Options::default()));
    let mut arena = arena();
    let chunk = patterned(&mut arena, ByteCount::kib(512), 1);
    let mut write = |token| {
        rig.disk(DiskOp::Write(Write {
            token: Token(token),
            file: file.clone(),
            position: Position::ZERO,
            extents: [chunk.lease(0..512 << 10)].into_iter().collect(),
            bounce: None,
            len: ByteCount::kib(512),
            durable: true,
        }));
        rig.until("write", |event| match event {
            Event::Written { token: Token(of), result } if *of == token => Some(*result),
            _ => None,
        })
    };
    match write(1) {
        Ok(len) => assert!(len < ByteCount::kib(512), "512 KiB do not fit"),
        Err(errno) => assert_eq!(errno, Errno::NOSPC),
    }
    std::fs::remove_file(dir.path().join("ballast")).expect("the ballast goes");
    assert_eq!(write(2), Ok(ByteCount::kib(512)));
    drop((rig, file));
    assert!(Command::new("umount").arg(dir.path()).status().expect("umount").success());
}

fn mount_small_tmpfs(at: &Path) -> bool {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).output();
    mount.is_ok_and(|output| output.status.success())
}
