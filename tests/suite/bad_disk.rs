//! Disks that break: reads fail by name and only for those that need them, a failed write fails its partition
//! by name, and nothing acknowledged is lost.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rohrpost_engine::{
    AppendError, ByteCount, DriverChoice, Engine, FetchError, LogConfig, Offset, RequestError,
    TopicPartition, WriteMode,
};
use rohrpost_tests::host::{self, LoopDisk, fail_system_call, mount};
use rohrpost_tests::log::{DRIVERS, Ledger, Waiting, append_until_refused, batch, config, options};

const BATCH_LEN: usize = 100_000;

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

/// The disk behind an ext4 breaks: its backing file is cut away. A read that needs it fails by name; the
/// engine and its other readers go on.
#[test]
fn a_disk_that_fails_to_read_is_named() {
    const NAME: &str = "bad_disk::a_disk_that_fails_to_read_is_named";
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
        if fs::File::open(disk.path()).unwrap().read_at(&mut [0; 512], 90 << 20).is_ok() {
            return host::skip(NAME, "the loop device of this kernel reads zeros behind its file's end");
        }
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

/// A disk that promises more than it has, as thinly provisioned ones do: the file system has reserved the
/// blocks, the write itself finds no space.
#[test]
fn a_thin_disk_that_is_full_is_named() {
    const NAME: &str = "bad_disk::a_thin_disk_that_is_full_is_named";
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
        let (ledger, error, _engine) = append_until_broken(&at.join("log"), driver);
        // Whether the write or the file system's journal meets it first is not for us to say.
        assert!(error.contains("errno") && error.contains(';'), "cause and remedy: {error}");
        assert!(ledger.len() > 20, "it took some bytes");
        host::run(&["umount", "--lazy", at.to_str().unwrap()]).unwrap();
    }
}

/// The disk behind an ext4 fails every write with an error of the device: the file it is made of lies on
/// another ext4, which an error has turned read-only.
#[test]
fn a_disk_that_fails_to_write_fails_the_partition_by_name() {
    const NAME: &str = "bad_disk::a_disk_that_fails_to_write_fails_the_partition_by_name";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let (below, at) = (dir.path().join("below"), dir.path().join("mount"));
        let disks = LoopDisk::ext4(&dir.path().join("image"), 160 << 20, 512, &[]).and_then(|lower| {
            mount("ext4", "rw,errors=remount-ro", lower.path(), &below)?;
            let upper = LoopDisk::ext4(&below.join("image"), 96 << 20, 512, &[])?;
            mount("ext4", "rw,errors=continue", upper.path(), &at)?;
            Ok((lower, upper))
        });
        let (lower, upper) = match disks {
            Ok(disks) => disks,
            Err(reason) => return host::skip(NAME, &reason),
        };
        let root = at.join("log");
        let name = "t-0".parse().unwrap();
        let engine = Engine::start(options(&root, driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, config()).unwrap();
        let mut ledger = Ledger::default();
        for number in 0..30 {
            let sent = batch(number, 2, BATCH_LEN);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        }
        if let Err(reason) = lower.break_file_system() {
            return host::skip(NAME, &reason);
        }
        let error = partition.append(batch(99, 1, 10)).wait().unwrap_err();
        let RequestError::Refused(AppendError::Failed(_)) = &error else { panic!("{error:?}") };
        // The next segment is made beside the append, and its directory's sync may be the first to fail.
        let told = error.to_string();
        assert!(told.contains("writing segment") || told.contains("cannot sync"), "{driver:?}: {told}");
        for word in ["input/output error", "kernel log", "until it is reopened"] {
            assert!(told.contains(word), "{driver:?}: {told}");
        }
        ledger.check(&partition);
        let error = engine.shutdown().unwrap_err();
        assert!(error.to_string().contains("input/output error"), "{driver:?}: {error}");
        host::run(&["umount", "--lazy", at.to_str().unwrap()]).unwrap();
        drop(upper);
        host::run(&["umount", "--lazy", below.to_str().unwrap()]).unwrap();
    }
}

/// Appends until the disk refuses; checks what was acknowledged while the engine still runs.
fn append_until_broken(root: &Path, driver: DriverChoice) -> (Ledger, String, Engine) {
    let engine = Engine::start(options(root, driver)).unwrap();
    let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
    let (mut ledger, mut waiting) = (Ledger::default(), Waiting::new());
    let error = append_until_refused(&partition, &mut ledger, &mut waiting, 600);
    ledger.check(&partition);
    (ledger, error.to_string(), engine)
}
