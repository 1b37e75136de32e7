//! Log directories that cannot be used: each refusal names the cause and the remedy, and changes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rohrpost_engine::{
    Engine, LogConfig, Offset, OpenError, PartitionError, RequestError, StartError, WriteMode,
};
use rohrpost_tests::host::{self, LoopDisk, mount};
use rohrpost_tests::log::{DRIVERS, Ledger, batch, config, options};
use rustix::thread::CapabilitySet;

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_missing_directory_is_created_but_not_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such");
    for driver in DRIVERS {
        let error = Engine::start(options(&missing, driver)).unwrap_err();
        assert!(matches!(error, StartError::LogDir(OpenError::NoParent { .. })), "{error:?}");
        assert_says(
            &error.to_string(),
            &[missing.to_str().unwrap(), "nor its parent exists", "create the parent"],
        );
        assert!(!dir.path().join("no").exists());
    }
    fs::create_dir(dir.path().join("no")).unwrap();
    Engine::start(options(&missing, DRIVERS[0])).unwrap().shutdown().unwrap();
    assert!(missing.is_dir());
}

/// To serve a directory that is not there makes no sense: it is not created, not even empty.
#[test]
fn a_missing_directory_is_not_served_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let mut options = options(&missing, DRIVERS[0]);
    options.read_only = true;
    let error = Engine::start(options).unwrap_err();
    assert_says(&error.to_string(), &[missing.to_str().unwrap(), "no such file or directory"]);
    assert!(!missing.exists());
}

#[test]
fn a_file_is_no_log_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"precious").unwrap();
    let error = Engine::start(options(&file, DRIVERS[0])).unwrap_err();
    assert_says(&error.to_string(), &[file.to_str().unwrap(), "not a directory"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

/// Root may read and write everything by a right of its own: the threads of this test have given it up.
#[test]
fn missing_permissions_are_named_with_the_remedy() {
    let run = || {
        host::without(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER);
        for driver in DRIVERS {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("log");
            let engine = Engine::start(options(&root, driver)).unwrap();
            let partition =
                engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
            let mut ledger = Ledger::default();
            let sent = batch(1, 3, 5_000);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
            engine.shutdown().unwrap();

            for (mode, at) in
                [(0o000, root.clone()), (0o555, root.join(".lock")), (0o444, root.join(".lock"))]
            {
                let before = fs::metadata(&at).unwrap().permissions();
                fs::set_permissions(&at, Permissions::from_mode(mode)).unwrap();
                let error = Engine::start(options(&root, driver)).unwrap_err();
                fs::set_permissions(&at, before).unwrap();
                assert_says(
                    &error.to_string(),
                    &[at.to_str().unwrap(), "permission denied", "run as the owner"],
                );
            }
            // One partition that may not be written: it is refused by name, the engine lives on.
            let segment = root.join("t-0/00000000000000000000.log");
            let before = fs::metadata(&segment).unwrap().permissions();
            fs::set_permissions(&segment, Permissions::from_mode(0o444)).unwrap();
            let engine = Engine::start(options(&root, driver)).unwrap();
            let error =
                engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap_err();
            assert_says(
                &error.to_string(),
                &[segment.to_str().unwrap(), "permission denied", "run as the owner"],
            );
            fs::set_permissions(&segment, before).unwrap();
            let partition =
                engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
            ledger.check(&partition);
            engine.shutdown().unwrap();
        }
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn a_second_engine_is_told_who_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let first = Engine::start(options(dir.path(), DRIVERS[0])).unwrap();
    for driver in DRIVERS {
        let mut options = options(dir.path(), driver);
        options.lock_patience_ms = 50;
        let error = Engine::start(options).unwrap_err();
        assert!(matches!(error, StartError::LogDir(OpenError::Locked { .. })), "{error:?}");
        assert_says(&error.to_string(), &["in use by another process", ".lock", "stop that process"]);
    }
    first.shutdown().unwrap();
    Engine::start(options(dir.path(), DRIVERS[0])).unwrap().shutdown().unwrap();
}

#[test]
fn a_read_only_mount_is_refused_for_writing_and_served_for_reading() {
    const NAME: &str = "bad_directory::a_read_only_mount_is_refused_for_writing_and_served_for_reading";
    if !host::in_mounts(NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mount");
    mount("tmpfs", "size=64m", "none", &at).unwrap();
    let root = at.join("log");
    let write_mode = if host::takes_direct_io(&at) { WriteMode::Direct } else { WriteMode::Buffered };
    let config = || LogConfig { write_mode, ..config() };
    let mut ledger = Ledger::default();
    let engine = Engine::start(options(&root, DRIVERS[0])).unwrap();
    let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
    for number in 0..20 {
        let sent = batch(number, 2, 10_000);
        ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
    }
    drop(engine); // an unclean end: reading must not need what only recovery writes
    host::run(&["mount", "-o", "remount,ro", at.to_str().unwrap()]).unwrap();
    for driver in DRIVERS {
        let error = Engine::start(options(&root, driver)).unwrap_err();
        assert_says(&error.to_string(), &["read-only file system", "remount", "another data directory"]);
        let mut serve = options(&root, driver);
        serve.read_only = true;
        let engine = Engine::start(serve).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        ledger.check(&partition);
        let error = partition.append(batch(99, 1, 10)).wait().unwrap_err();
        assert_says(&error.to_string(), &["for reading only"]);
        engine.shutdown().unwrap();
    }
}

/// A mount that turns read-only under a running engine, as ext4 does after an error: the partition fails by
/// name, what was acknowledged is still served.
#[test]
fn a_mount_that_turns_read_only_fails_the_partition_and_keeps_its_reads() {
    const NAME: &str = "bad_directory::a_mount_that_turns_read_only_fails_the_partition_and_keeps_its_reads";
    if !host::in_mounts(NAME) {
        return;
    }
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mount");
        let disk = match LoopDisk::ext4(&dir.path().join("image"), 64 << 20, 512, &[]) {
            Ok(disk) => disk,
            Err(reason) => return host::skip(NAME, &reason),
        };
        mount("ext4", "rw,errors=remount-ro", disk.path(), &at).unwrap();
        let engine = Engine::start(options(&at.join("log"), driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        let mut ledger = Ledger::default();
        let mut number = 0;
        let mut append = || {
            number += 1;
            let sent = batch(number, 2, 100_000);
            partition.append(sent.clone()).wait().map(|appended| ledger.push(appended.base_offset, sent))
        };
        (0..8).for_each(|_| append().unwrap());
        if let Err(reason) = disk.break_file_system() {
            return host::skip(NAME, &reason);
        }
        let error = (0..200).find_map(|_| append().err()).expect("a file system without writes");
        let RequestError::Refused(refused) = &error else { panic!("{error:?}") };
        assert!(matches!(refused, rohrpost_engine::AppendError::Failed(_)), "{refused:?}");
        assert_says(&error.to_string(), &["has failed", "until it is reopened"]);
        ledger.check(&partition);
        let error = engine.shutdown().unwrap_err();
        assert!(matches!(error, RequestError::Refused(PartitionError::Failed(_))), "{error:?}");
        host::run(&["umount", at.to_str().unwrap()]).unwrap();
    }
}

/// ramfs has neither direct I/O nor preallocation.
#[test]
fn a_file_system_without_direct_io_is_named_and_works_buffered() {
    const NAME: &str = "bad_directory::a_file_system_without_direct_io_is_named_and_works_buffered";
    if !host::in_mounts(NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mount");
    mount("ramfs", "mode=700", "none", &at).unwrap();
    for driver in DRIVERS {
        let root = at.join(format!("{driver:?}"));
        let name = "t-0".parse().unwrap();
        let engine = Engine::start(options(&root, driver)).unwrap();
        let error = engine.handle().open_partition_blocking(&name, config()).unwrap_err();
        let RequestError::Refused(PartitionError::DirectUnsupported { .. }) = &error else {
            panic!("{error:?}")
        };
        assert_says(
            &error.to_string(),
            &["does not support direct I/O", "write_mode = buffered", "ext4 or XFS"],
        );
        assert_eq!(list(&root.join("t-0")), ["partition.metadata"], "no segment is left behind");

        let mut buffered = config();
        buffered.write_mode = WriteMode::Buffered;
        let partition = engine.handle().open_partition_blocking(&name, buffered.clone()).unwrap();
        let mut ledger = Ledger::default();
        for number in 0..60 {
            let sent = batch(number, 2, 100_000);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        }
        drop(engine);
        let engine = Engine::start(options(&root, driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&name, buffered).unwrap();
        ledger.check(&partition);
        engine.shutdown().unwrap();
    }
}

/// Segments that end inside a block, their last block re-read and rewritten, on 4 KiB sectors, where no
/// smaller direct transfer is possible.
#[test]
fn four_kib_sectors_hold_what_is_acknowledged() {
    const NAME: &str = "bad_directory::four_kib_sectors_hold_what_is_acknowledged";
    if !host::in_mounts(NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mount");
    let disk = match LoopDisk::ext4(&dir.path().join("image"), 96 << 20, 4096, &[]) {
        Ok(disk) => disk,
        Err(reason) => return host::skip(NAME, &reason),
    };
    mount("ext4", "rw", disk.path(), &at).unwrap();
    let sectors = host::run(&["blockdev", "--getss", disk.path()]).unwrap();
    assert_eq!(sectors, "4096", "the disk is what it is to be");
    for driver in DRIVERS {
        let root = at.join(format!("{driver:?}"));
        let mut ledger = Ledger::default();
        let mut number = 0;
        for round in 0..4 {
            let engine = Engine::start(options(&root, driver)).unwrap();
            let partition =
                engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
            for _ in 0..30 {
                number += 1;
                let sent = batch(number, 1 + number as usize % 3, 1 + 3_001 * (number as usize % 31));
                ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
            }
            ledger.check(&partition);
            if round % 2 == 0 { drop(engine) } else { engine.shutdown().map(drop).unwrap() }
        }
        let engine = Engine::start(options(&root, driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        ledger.check(&partition);
        assert!(partition.watermarks().wait().unwrap().log_start_offset == Offset::ZERO);
        engine.shutdown().unwrap();
    }
    host::run(&["umount", at.to_str().unwrap()]).unwrap();
}

fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
