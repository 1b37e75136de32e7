//! Devices that are full, over quota, or broken: appends wait or fail by name, reads go on, nothing
//! acknowledged is lost, and when space comes back appends go on by themselves.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rohrpost_engine::{
    AppendError, AppendResult, Appended, ByteCount, DriverChoice, Engine, FetchError, LogConfig, Offset,
    Partition, Pending, RequestError, TopicPartition, WriteMode,
};
use rohrpost_tests::host::{self, LoopDisk, mount};
use rohrpost_tests::log::{DRIVERS, Ledger, batch, config, options, peek, read_all, settle};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// A hang is a failure, not a test run without end.
const PATIENCE: Duration = Duration::from_secs(60);

const BATCH_LEN: usize = 100_000;

/// A file system of a fixed size: what makes it, and where.
struct Small<'a> {
    story: &'a str,
    at: &'a Path,
    driver: DriverChoice,
    write_mode: WriteMode,
}

type Waiting = Vec<(Pending<AppendResult<Appended>>, Bytes)>;

/// Appends until it is refused, at most `batches_max` times; what has not ended yet is left in `waiting`.
fn append_until_refused(
    partition: &Partition,
    ledger: &mut Ledger,
    waiting: &mut Waiting,
    batches_max: u64,
) -> RequestError<AppendError> {
    let start = Instant::now();
    let mut number = 1_000 * ledger.len() as u64;
    let mut sent_count = 0;
    loop {
        if waiting.len() < 4 && sent_count < batches_max {
            number += 1;
            sent_count += 1;
            let sent = batch(number, 2, BATCH_LEN);
            waiting.push((partition.append(sent.clone()), sent));
        }
        let mut refused = None;
        let mut at = 0;
        while at < waiting.len() {
            match peek(&mut waiting[at].0) {
                None => at += 1,
                Some(Ok(appended)) => ledger.push(appended.base_offset, waiting.remove(at).1),
                Some(Err(error)) => {
                    drop(waiting.remove(at));
                    refused = Some(error);
                }
            }
        }
        if let Some(error) = refused {
            return error;
        }
        if waiting.len() >= 4 {
            // The full device is found out in memory; ask once more with another append.
            let probe = batch(number, 1, 10);
            let mut pending = partition.append(probe.clone());
            std::thread::sleep(Duration::from_millis(5));
            match peek(&mut pending) {
                None => waiting.push((pending, probe)),
                Some(Ok(appended)) => ledger.push(appended.base_offset, probe),
                Some(Err(error)) => return error,
            }
        }
        assert!(start.elapsed() < PATIENCE, "never refused, {} acknowledged", ledger.len());
        assert!(waiting.len() < 1_000, "never refused, {} wait", waiting.len());
    }
}

/// Appends one batch, again and again while there is no space.
fn append_when_there_is_space(partition: &Partition, sent: &Bytes) -> Appended {
    let start = Instant::now();
    loop {
        match partition.append(sent.clone()).wait() {
            Ok(appended) => return appended,
            Err(RequestError::Refused(AppendError::DiskFull(_) | AppendError::Busy)) => {
                assert!(start.elapsed() < PATIENCE, "space is back, appends are not");
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

impl Small<'_> {
    /// Fills the device, reads, gives space back, appends, and looks at everything again after a restart.
    fn fill_and_recover(&self, free_space: impl FnOnce()) {
        let story = format!("{} {:?} {:?}", self.story, self.driver, self.write_mode);
        let root = self.at.join("log");
        let name = "t-0".parse().unwrap();
        let config = rohrpost_engine::LogConfig { write_mode: self.write_mode, ..config() };
        let engine = Engine::start(options(&root, self.driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config.clone()).unwrap();
        let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
        let error = append_until_refused(&partition, &mut ledger, &mut waiting, 2_000);
        let RequestError::Refused(AppendError::DiskFull(_)) = &error else { panic!("{story}: {error:?}") };
        let text = error.to_string();
        assert!(text.contains("appends are suspended") && text.contains("appends resume"), "{story}: {text}");
        assert!(ledger.len() > 20, "{story}: it took some bytes");
        ledger.check(&partition);

        free_space();
        for (pending, sent) in waiting {
            match settle(pending) {
                Ok(appended) => ledger.push(appended.base_offset, sent),
                Err(RequestError::Refused(AppendError::DiskFull(_))) => {}
                Err(error) => panic!("{story}: {error}"),
            }
        }
        for number in 0..10 {
            let sent = batch(5_000_000 + number, 2, BATCH_LEN);
            ledger.push(append_when_there_is_space(&partition, &sent).base_offset, sent);
        }
        ledger.check(&partition);
        drop(engine);
        let engine = Engine::start(options(&root, self.driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config).unwrap();
        ledger.check(&partition);
        engine.shutdown().unwrap_or_else(|error| panic!("{story}: {error}"));
    }

    /// Fills the device and stops: the stop ends, and says what it could not do.
    fn fill_and_stop(&self) {
        let story = format!("{} {:?}", self.story, self.driver);
        let root = self.at.join("log");
        let name = "t-0".parse().unwrap();
        let engine = Engine::start(options(&root, self.driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
        append_until_refused(&partition, &mut ledger, &mut waiting, 2_000);
        assert!(!waiting.is_empty(), "{story}: something accepted waits for space");
        let error = engine.shutdown().expect_err("what was accepted could not be written");
        assert!(error.to_string().contains("no space left"), "{story}: {error}");
        for (pending, sent) in waiting {
            match settle(pending) {
                Ok(appended) => ledger.push(appended.base_offset, sent),
                Err(error) => assert!(error.to_string().contains("no space left"), "{story}: {error}"),
            }
        }
        let mut serve = options(&root, self.driver);
        serve.read_only = true;
        let engine = Engine::start(serve).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}

/// A file that takes space until it is removed.
fn ballast(at: &Path) -> impl FnOnce() {
    let path = at.join("ballast");
    fs::write(&path, vec![1; 12 << 20]).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    move || fs::remove_file(path).unwrap()
}

#[test]
fn a_full_tmpfs_is_waited_out() {
    const NAME: &str = "bad_space::a_full_tmpfs_is_waited_out";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        for write_mode in [WriteMode::Direct, WriteMode::Buffered] {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().join("mount");
            mount("tmpfs", "size=32m", "none", &at).unwrap();
            Small { story: "tmpfs", at: &at, driver, write_mode }.fill_and_recover(ballast(&at));
            host::run(&["umount", at.to_str().unwrap()]).unwrap();
        }
    }
}

#[test]
fn a_full_ext4_is_waited_out() {
    const NAME: &str = "bad_space::a_full_ext4_is_waited_out";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mount");
        let disk = match LoopDisk::ext4(&dir.path().join("image"), 48 << 20, 512, &[]) {
            Ok(disk) => disk,
            Err(reason) => return host::skip(NAME, &reason),
        };
        mount("ext4", "rw", disk.path(), &at).unwrap();
        let small = Small { story: "ext4", at: &at, driver, write_mode: WriteMode::Direct };
        small.fill_and_recover(ballast(&at));
        host::run(&["umount", at.to_str().unwrap()]).unwrap();
    }
}

#[test]
fn a_full_device_does_not_keep_an_engine_from_stopping() {
    const NAME: &str = "bad_space::a_full_device_does_not_keep_an_engine_from_stopping";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mount");
        mount("tmpfs", "size=24m", "none", &at).unwrap();
        Small { story: "stop", at: &at, driver, write_mode: WriteMode::Direct }.fill_and_stop();
        host::run(&["umount", at.to_str().unwrap()]).unwrap();
    }
}

/// Not every kernel can count quotas: a filter answers as one does, from 4 MiB of a file on. Without the
/// filter, which stands for a raised quota, appends go on.
#[test]
fn an_exhausted_quota_is_named_and_loses_nothing() {
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let name: TopicPartition = "t-0".parse().unwrap();
        let config = LogConfig { segment_len_max: ByteCount::mib(64), ..config() };
        let over_quota = || {
            fail_system_call(libc::SYS_fallocate, Some((2, 4 << 20)), libc::EDQUOT);
            let engine = Engine::start(options(dir.path(), driver)).unwrap();
            let partition = engine.handle().open_partition_blocking(&name, config.clone()).unwrap();
            let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
            let error = append_until_refused(&partition, &mut ledger, &mut waiting, 200);
            let RequestError::Refused(AppendError::DiskFull(_)) = &error else { panic!("{error:?}") };
            for word in ["appends are suspended", "disk quota exceeded", "raise the quota"] {
                assert!(error.to_string().contains(word), "{error}");
            }
            ledger.check(&partition);
            drop(engine);
            ledger
        };
        let mut ledger = std::thread::scope(|scope| scope.spawn(over_quota).join().unwrap());
        assert!(ledger.len() > 20, "{driver:?}");
        let engine = Engine::start(options(dir.path(), driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config.clone()).unwrap();
        for number in 0..100 {
            let sent = batch(7_000_000 + number, 2, BATCH_LEN);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        }
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}

/// A write or a sync that fails is never tried again: the partition fails by name, takes no more appends,
/// serves what it had acknowledged, and recovers when it is opened again. The poll driver's writes are
/// system calls, which a filter can fail; the ring's are below.
#[test]
fn a_failed_write_or_sync_fails_the_partition_by_name() {
    let stories = [
        (WriteMode::Direct, libc::SYS_pwritev2, Some((3, 1 << 20)), "writing segment 0 failed"),
        (WriteMode::Buffered, libc::SYS_pwritev2, Some((3, 1 << 20)), "writing segment 0 failed"),
    ];
    for (write_mode, call, from, what) in stories {
        let dir = tempfile::tempdir().unwrap();
        let name: TopicPartition = "t-0".parse().unwrap();
        let config = LogConfig { segment_len_max: ByteCount::mib(64), write_mode, ..config() };
        let broken = || {
            fail_system_call(call, from, libc::EIO);
            let engine = Engine::start(options(dir.path(), DriverChoice::Poll)).unwrap();
            let partition = engine.handle().open_partition_blocking(&name, config.clone()).unwrap();
            let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
            let error = append_until_refused(&partition, &mut ledger, &mut waiting, 200);
            let RequestError::Refused(AppendError::Failed(_)) = &error else { panic!("{error:?}") };
            for word in [what, "input/output error", "kernel log", "until it is reopened"] {
                assert!(error.to_string().contains(word), "{error}");
            }
            let again = partition.append(batch(1, 1, 1)).wait().unwrap_err();
            assert!(matches!(again, RequestError::Refused(AppendError::Failed(_))), "{again:?}");
            ledger.check(&partition);
            let error = engine.shutdown().unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            ledger
        };
        let ledger = std::thread::scope(|scope| scope.spawn(broken).join().unwrap());
        assert!(ledger.len() > 2, "{write_mode:?}");
        let engine = Engine::start(options(dir.path(), DriverChoice::Poll)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config.clone()).unwrap();
        partition.append(batch(2, 1, 1)).wait().unwrap();
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}

/// Lets a system call of this thread, and of those it starts, fail: always, or if the argument with that
/// index is at least so much.
fn fail_system_call(call: i64, if_at_least: Option<(u8, u64)>, errno: i32) {
    let rule = |(index, least)| {
        let condition =
            SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Ge, least).unwrap();
        SeccompRule::new(vec![condition]).unwrap()
    };
    let rules = [(call, if_at_least.into_iter().map(rule).collect())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// The disk behind an ext4 breaks: its backing file is cut away. A read that needs it fails by name; the
/// engine and its other readers go on.
#[test]
fn a_disk_that_fails_to_read_is_named() {
    const NAME: &str = "bad_space::a_disk_that_fails_to_read_is_named";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let (at, image) = (dir.path().join("mount"), dir.path().join("image"));
        let disk = match LoopDisk::ext4(&image, 96 << 20, 512, &[]) {
            Ok(disk) => disk,
            Err(reason) => return host::skip(NAME, &reason),
        };
        mount("ext4", "rw", disk.path(), &at).unwrap();
        let name = "t-0".parse().unwrap();
        let engine = Engine::start(options(&at.join("log"), driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        let mut ledger = Ledger::default();
        for number in 0..100 {
            let sent = batch(number, 2, BATCH_LEN);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        }
        engine.shutdown().unwrap();
        let mut serve = options(&at.join("log"), driver);
        serve.read_only = true;
        let engine = Engine::start(serve).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        // In memory from here on: the first segment.
        let first = partition.fetch(Offset::ZERO, ByteCount::mib(1)).wait().unwrap().to_bytes();
        fs::File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
        let error = (1..100)
            .find_map(|i| partition.fetch(Offset::new(2 * i), ByteCount::mib(1)).wait().err())
            .expect("a disk of 1 MiB does not hold 10 MiB");
        let RequestError::Refused(FetchError::ReadFailed { .. }) = &error else { panic!("{error:?}") };
        for word in ["reading segment", "at position", "input/output error", "kernel log"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        let again = partition.fetch(Offset::ZERO, ByteCount::mib(1)).wait().unwrap().to_bytes();
        assert!(first == again, "what is in memory is still served");
        engine.shutdown().unwrap();
        host::run(&["umount", at.to_str().unwrap()]).unwrap();
    }
}

/// The disk behind an ext4 refuses writes that the file system believed it had room for: the backing file
/// lies on a full tmpfs. The write fails with an error of the device, not of the file system.
#[test]
fn a_disk_that_fails_to_write_fails_the_partition_by_name() {
    const NAME: &str = "bad_space::a_disk_that_fails_to_write_fails_the_partition_by_name";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let (below, at) = (dir.path().join("below"), dir.path().join("mount"));
        mount("tmpfs", "size=24m", "none", &below).unwrap();
        let disk = match LoopDisk::ext4(&below.join("image"), 96 << 20, 512, &["-E", "nodiscard"]) {
            Ok(disk) => disk,
            Err(reason) => return host::skip(NAME, &reason),
        };
        mount("ext4", "rw,errors=continue", disk.path(), &at).unwrap();
        let name = "t-0".parse().unwrap();
        let engine = Engine::start(options(&at.join("log"), driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
        let error = append_until_refused(&partition, &mut ledger, &mut waiting, 600);
        let text = error.to_string();
        assert!(text.contains("errno") && text.contains(';'), "cause and remedy: {text}");
        assert!(ledger.len() > 20, "it took some bytes");
        // Every acknowledged batch can be read from where it is now.
        let stored = read_all(&partition, Offset::ZERO);
        assert!(stored.len() >= ledger.len());
        ledger.check(&partition);
        drop(engine);
        drop(waiting);
        host::run(&["umount", "--lazy", at.to_str().unwrap()]).unwrap();
    }
}
