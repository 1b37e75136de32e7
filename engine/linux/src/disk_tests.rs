//! The file operations against a real file system.

use std::path::PathBuf;
use std::process::Command;

use super::*;

struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> LinuxFile {
        LinuxDisk.open(&self.path(name), mode, caching).unwrap()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Every combination of misaligned start and end over a direct file equals the bytes of the file.
#[test]
fn direct_reads_bounce_every_edge() {
    let scratch = Scratch::new();
    let bytes = pattern(2 * BLOCK_LEN + 5000);
    std::fs::write(scratch.path("a"), &bytes).unwrap();
    for caching in [Caching::Direct, Caching::Buffered] {
        let file = scratch.open("a", OpenMode::Read, caching);
        let edges = [0, 1, 4095, 4096, 4097, BLOCK_LEN - 1, BLOCK_LEN, 2 * BLOCK_LEN + 4999];
        for from in edges {
            for len in [0, 1, 4095, 4096, 5001, BLOCK_LEN, BLOCK_LEN + 4097, 3 * BLOCK_LEN] {
                let mut buf = vec![0xAA; len];
                let read = LinuxDisk.read_at(&file, Position::new(from as u64), &mut buf).unwrap();
                let end = (from + len).min(bytes.len());
                assert_eq!(read, end.saturating_sub(from), "{caching:?} {from} {len}");
                assert_eq!(buf[..read], bytes[from..from + read]);
                assert!(buf[read..].iter().all(|&byte| byte == 0xAA));
            }
        }
        let mut buf = [0; 8];
        let beyond = Position::new(bytes.len() as u64 + 10_000);
        assert_eq!(LinuxDisk.read_at(&file, beyond, &mut buf).unwrap(), 0);
    }
}

#[test]
fn writes_of_unaligned_memory_reach_direct_files() {
    let scratch = Scratch::new();
    let file = scratch.open("a", OpenMode::CreateNew, Caching::Direct);
    let bytes = pattern(BLOCK_LEN + 3 * 4096 + 1);
    LinuxDisk.write_at(&file, Position::new(4096), &bytes[1..]).unwrap();
    let on_disk = std::fs::read(scratch.path("a")).unwrap();
    assert!(on_disk[..4096].iter().all(|&byte| byte == 0));
    assert_eq!(on_disk[4096..], bytes[1..]);
    let error = LinuxDisk.write_at(&file, Position::new(1), &bytes[..4096]).unwrap_err();
    assert_eq!(error.errno, Errno::INVAL);
    assert_eq!(error.action, "write");
}

/// Preallocation extends the file, keeps what is there, and writes zeros only behind `from`.
#[test]
fn preallocation_extends_with_zeros() {
    let scratch = Scratch::new();
    for (zero, caching) in [(false, Caching::Direct), (true, Caching::Direct), (true, Caching::Buffered)] {
        let name = format!("{zero}{caching:?}");
        let file = scratch.open(&name, OpenMode::CreateNew, caching);
        LinuxDisk.write_at(&file, Position::ZERO, &[7; 8192]).unwrap();
        let to = Position::new(2 * BLOCK_LEN as u64 + 12_288);
        LinuxDisk.preallocate(&file, Position::new(8192), to, zero).unwrap();
        assert_eq!(LinuxDisk.len(&file).unwrap().get(), to.get());
        LinuxDisk.preallocate(&file, to, to, zero).unwrap();
        let bytes = std::fs::read(scratch.path(&name)).unwrap();
        assert!(bytes[..8192].iter().all(|&byte| byte == 7));
        assert!(bytes[8192..].iter().all(|&byte| byte == 0));
        LinuxDisk.set_len(&file, ByteCount::new(100)).unwrap();
        assert_eq!(LinuxDisk.len(&file).unwrap().get(), 100);
    }
}

/// Zeros start at the first whole block of a direct file and leave the bytes before it alone.
#[test]
fn zeros_keep_the_block_of_the_data() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("a"), [7; 5000]).unwrap();
    for (caching, kept) in [(Caching::Direct, 5000), (Caching::Buffered, 4500)] {
        let file = scratch.open("a", OpenMode::ReadWrite, caching);
        write_zeros(&file, Position::new(4500), Position::new(16384)).unwrap();
        let bytes = std::fs::read(scratch.path("a")).unwrap();
        assert_eq!(bytes.len(), 16384);
        assert!(bytes[..kept].iter().all(|&byte| byte == 7), "{caching:?}");
        assert!(bytes[kept..].iter().all(|&byte| byte == 0), "{caching:?}");
    }
}

/// Two descriptions exclude each other by either lock, the two kinds do not meet, and the last clone
/// releases.
#[test]
fn locks_exclude_other_descriptions() {
    let scratch = Scratch::new();
    let first = scratch.open("a", OpenMode::CreateNew, Caching::Buffered);
    let second = scratch.open("a", OpenMode::ReadWrite, Caching::Buffered);
    for lock in [Lock::InputOutput, Lock::Record] {
        LinuxDisk.lock(&first, lock, 0).unwrap();
        LinuxDisk.lock(&first, lock, 0).unwrap();
        let error = LinuxDisk.lock(&second, lock, 5).unwrap_err();
        assert_eq!(error.errno, Errno::AGAIN);
    }
    let clone = first.clone();
    drop(first);
    assert!(LinuxDisk.lock(&second, Lock::InputOutput, 0).is_err());
    drop(clone);
    for lock in [Lock::InputOutput, Lock::Record] {
        LinuxDisk.lock(&second, lock, 0).unwrap();
    }
}

/// Whoever waits for a lock gets it when its holder lets go within the patience.
#[test]
fn lock_waits_for_its_holder() {
    let scratch = Scratch::new();
    let first = scratch.open("a", OpenMode::CreateNew, Caching::Buffered);
    let second = scratch.open("a", OpenMode::ReadWrite, Caching::Buffered);
    LinuxDisk.lock(&first, Lock::InputOutput, 0).unwrap();
    let (started, start) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        started.send(()).unwrap();
        LinuxDisk.lock(&second, Lock::InputOutput, 60_000)
    });
    start.recv().unwrap();
    drop(first);
    waiter.join().unwrap().unwrap();
}

/// The record lock meets a POSIX lock of another process, which is what a JVM takes.
#[test]
fn record_lock_conflicts_with_posix_locks() {
    let scratch = Scratch::new();
    let file = scratch.open(".lock", OpenMode::CreateNew, Caching::Buffered);
    LinuxDisk.lock(&file, Lock::Record, 0).unwrap();
    let script = "import fcntl,sys\ntry:\n fcntl.lockf(open(sys.argv[1],'r+'),fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: sys.exit(3)";
    let posix = |path: &Path| Command::new("python3").args(["-c", script]).arg(path).status();
    let path = scratch.path(".lock");
    let Ok(status) = posix(&path) else {
        eprintln!("SKIPPED record_lock_conflicts_with_posix_locks: python3 is not installed");
        return;
    };
    assert_eq!(status.code(), Some(3));
    drop(file);
    assert_eq!(posix(&path).unwrap().code(), Some(0));
}

#[test]
fn directories_are_listed_renamed_and_removed() {
    let scratch = Scratch::new();
    let disk = LinuxDisk;
    disk.create_dir(&scratch.path("t-0")).unwrap();
    assert_eq!(disk.create_dir(&scratch.path("t-0")).unwrap_err().errno, Errno::EXIST);
    scratch.open("t-0/b", OpenMode::CreateNew, Caching::Buffered);
    scratch.open("t-0/a", OpenMode::CreateNew, Caching::Buffered);
    disk.create_dir(&scratch.path("t-0/c")).unwrap();
    disk.sync_dir(&scratch.path("t-0")).unwrap();
    let entry = |name: &str, is_dir| DirEntry { name: name.to_owned(), is_dir };
    let listed = disk.list(&scratch.path("t-0")).unwrap();
    assert_eq!(listed, [entry("a", false), entry("b", false), entry("c", true)]);
    disk.rename(&scratch.path("t-0/a"), &scratch.path("t-0/b")).unwrap();
    disk.unlink(&scratch.path("t-0/b")).unwrap();
    assert_eq!(disk.unlink(&scratch.path("t-0/b")).unwrap_err().errno, Errno::NOENT);
    disk.remove_dir(&scratch.path("t-0/c")).unwrap();
    disk.remove_dir(&scratch.path("t-0")).unwrap();
    assert_eq!(disk.list(&scratch.path("t-0")).unwrap_err().errno, Errno::NOENT);
    assert_eq!(disk.sync_dir(&scratch.path("t-0")).unwrap_err().errno, Errno::NOENT);
}

/// Names change, files do not; both must be there.
#[test]
fn two_files_change_places() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("a"), b"first").unwrap();
    let missing = LinuxDisk.exchange(&scratch.path("a"), &scratch.path("b")).unwrap_err();
    assert_eq!((missing.errno, missing.path), (Errno::NOENT, scratch.path("a")));
    std::fs::write(scratch.path("b"), b"second").unwrap();
    LinuxDisk.exchange(&scratch.path("a"), &scratch.path("b")).unwrap();
    assert_eq!(std::fs::read(scratch.path("a")).unwrap(), b"second");
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), b"first");
}

#[test]
fn modification_time_is_in_milliseconds() {
    let scratch = Scratch::new();
    let file = std::fs::File::create(scratch.path("a")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123)).unwrap();
    assert_eq!(LinuxDisk.modified(&scratch.path("a")).unwrap(), Timestamp::new(1_234_567_890_123));
}

/// Reading leaves the access time alone, so that a foreign directory is left as it was found.
#[test]
fn reading_keeps_the_access_time() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("a"), [1; 100]).unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let times = std::fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago);
    std::fs::File::options().write(true).open(scratch.path("a")).unwrap().set_times(times).unwrap();
    for caching in [Caching::Direct, Caching::Buffered] {
        let file = scratch.open("a", OpenMode::Read, caching);
        assert_eq!(LinuxDisk.read_at(&file, Position::ZERO, &mut [0; 100]).unwrap(), 100);
        rustix::io::pread(file.buffered_fd().unwrap(), &mut [0; 100], 0).unwrap();
    }
    assert_eq!(std::fs::metadata(scratch.path("a")).unwrap().accessed().unwrap(), long_ago);
}

/// A full file system is reported as such by every writer, and forgets it when space comes back.
#[test]
fn full_disk_is_named() {
    let scratch = Scratch::new();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(scratch.dir.path())
        .output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED full_disk_is_named: mounting a small tmpfs needs root");
        return;
    }
    let file = scratch.open("a", OpenMode::CreateNew, Caching::Buffered);
    let error = LinuxDisk.preallocate(&file, Position::ZERO, Position::new(2 << 20), false).unwrap_err();
    assert_eq!((error.action, error.errno), ("preallocate", Errno::NOSPC));
    assert!(error.to_string().contains("free space"), "{error}");
    LinuxDisk.preallocate(&file, Position::ZERO, Position::new(900 << 10), true).unwrap();
    let error = LinuxDisk.write_at(&file, Position::new(900 << 10), &[0; 300 << 10]).unwrap_err();
    assert!(error.errno.is_full());
    LinuxDisk.set_len(&file, ByteCount::ZERO).unwrap();
    LinuxDisk.write_at(&file, Position::ZERO, &[1; 300 << 10]).unwrap();
    drop(file);
    assert!(Command::new("umount").arg(scratch.dir.path()).status().unwrap().success());
}
