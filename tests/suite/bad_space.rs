//! Devices that are full or over quota: appends wait or fail by name, reads go on, nothing
//! acknowledged is lost, and when space comes back appends go on by themselves.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rohrpost_engine::{
    AppendError, Appended, ByteCount, DriverChoice, Engine, LogConfig, Offset, Partition, RequestError,
    TopicPartition, WriteMode,
};
use rohrpost_tests::disk::{FileSystem, Mounted, missing};
use rohrpost_tests::host::{self, LoopDisk, fail_system_call, mount};
use rohrpost_tests::log::{
    DRIVERS, Ledger, Waiting, append_until_refused, batch, config, options, read_all, settle,
};
use rustix::fs::FallocateFlags;

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
    fn config(&self) -> LogConfig {
        LogConfig { write_mode: self.write_mode, ..config() }
    }

    /// Fills the device, reads, gives space back, appends, and looks at everything again after a restart.
    fn fill_and_recover(&self, free_space: impl FnOnce()) {
        let story = format!("{} {:?} {:?}", self.story, self.driver, self.write_mode);
        let root = self.at.join("log");
        let name = "t-0".parse().unwrap();
        let config = self.config();
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
        let partition = engine.handle().open_partition_blocking(&name, self.config()).unwrap();
        let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
        append_until_refused(&partition, &mut ledger, &mut waiting, 2_000);
        // What waits may still find its last blocks, or have found them: a stop in good order then loses nothing.
        let stopped = engine.shutdown().map(drop).map_err(|error| error.to_string());
        assert!(
            stopped.as_ref().err().is_none_or(|error| error.contains("no space left")),
            "{story}: {stopped:?}"
        );
        for (pending, sent) in waiting {
            match settle(pending) {
                Ok(appended) => ledger.push(appended.base_offset, sent),
                Err(error) => assert!(error.to_string().contains("no space left"), "{story}: {error}"),
            }
        }
        let mut serve = options(&root, self.driver);
        serve.read_only = true;
        let engine = Engine::start(serve).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, self.config()).unwrap();
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
            if write_mode == WriteMode::Direct && !host::takes_direct_io(&at) {
                host::run(&["umount", at.to_str().unwrap()]).unwrap();
                continue;
            }
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
        let write_mode = if host::takes_direct_io(&at) { WriteMode::Direct } else { WriteMode::Buffered };
        Small { story: "stop", at: &at, driver, write_mode }.fill_and_stop();
        host::run(&["umount", at.to_str().unwrap()]).unwrap();
    }
}

/// Takes every block there is.
fn take_all(at: &Path) {
    let file = File::options().append(true).create(true).open(at.join("ballast")).unwrap();
    let (mut len, mut step) = (file.metadata().unwrap().len(), 64 << 20);
    while step >= 512 {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), len, step) {
            Ok(()) => len += step,
            Err(rustix::io::Errno::NOSPC) => step /= 2,
            Err(errno) => panic!("{errno}"),
        }
    }
    file.sync_all().unwrap();
}

/// Without a single free block, deleting works as ever, also where it frees none at first: it is what gives space back,
/// and appends go on by themselves.
#[test]
fn deleting_needs_no_space() {
    const NAME: &str = "bad_space::deleting_needs_no_space";
    if let Err(reason) = missing(&["mkfs.xfs"]) {
        return host::skip(NAME, &reason);
    }
    if !host::in_mounts(NAME) {
        return;
    }
    for (file_system, driver) in FileSystem::ALL.into_iter().zip(DRIVERS) {
        let dir = tempfile::tempdir().unwrap();
        let (image, name) = (dir.path().join("image"), "t-0".parse().unwrap());
        file_system.make(&image, 48).unwrap();
        let mounted = Mounted::new(&image, &dir.path().join("mount")).unwrap();
        let root = mounted.path().join("log");
        let engine = Engine::start(options(&root, driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        let other = engine.handle().open_partition_blocking(&"d-0".parse().unwrap(), config()).unwrap();
        other.append(batch(0, 1, BATCH_LEN)).wait().unwrap();
        let mut sent = Vec::new();
        for number in 0..100 {
            sent.push(batch(number, 1, BATCH_LEN));
            assert_eq!(
                partition.append(sent[number as usize].clone()).wait().unwrap().base_offset,
                Offset::new(number as i64)
            );
        }
        take_all(mounted.path());
        let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
        let error = append_until_refused(&partition, &mut ledger, &mut waiting, 200);
        let RequestError::Refused(AppendError::DiskFull(_)) = &error else {
            panic!("{file_system}: {error}")
        };
        take_all(mounted.path());

        let delete_below = |before| {
            let start = partition.delete_records(Offset::new(before)).wait();
            let start = start.unwrap_or_else(|error| panic!("{file_system}, below {before}: {error}"));
            assert_eq!(start.get(), before);
        };
        for before in [1, 2, 3] {
            delete_below(before);
        }
        other.delete().wait().unwrap_or_else(|error| panic!("{file_system}, a partition: {error}"));
        take_all(mounted.path());
        delete_below(80);
        append_when_there_is_space(&partition, &batch(5_000_000, 1, BATCH_LEN));
        drop((waiting, engine));
        let engine = Engine::start(options(&root, driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        let start = partition.watermarks().wait().unwrap().log_start_offset;
        assert_eq!(start.get(), 80, "{file_system}");
        for (stored, sent) in read_all(&partition, start).iter().zip(&sent[80..]) {
            assert!(stored.is(sent), "{file_system}: {}", stored.base_offset);
        }
        engine.shutdown().unwrap();
        mounted.unmount().unwrap();
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
