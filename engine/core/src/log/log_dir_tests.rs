//! The root of a log directory: lock, checkpoints, markers, deletions.

use super::*;
use crate::disk::Errno;
use crate::disk::memory::MemoryDisk;
use crate::error::PartitionError;
use crate::log::test_support::*;

const MARKER: &str = "/data/.kafka_cleanshutdown";

fn open(disk: &MemoryDisk) -> Result<Arc<LogDir<MemoryDisk>>, OpenError> {
    LogDir::open(disk.clone(), Path::new(ROOT), LogDirOptions::default())
}

#[test]
fn a_missing_directory_is_made_but_not_its_parent() {
    let disk = disk();
    let dir = open(&disk).unwrap();
    assert_eq!((dir.was_clean(), dir.partitions().unwrap(), dir.root()), (false, vec![], Path::new(ROOT)));
    let trace = disk.take_trace();
    assert_eq!(trace[..3], ["create directory /data", "sync directory /", "create /data/.lock"]);
    let rest = |entry: &String| entry.ends_with("-checkpoint.tmp") || entry == "sync directory /data";
    assert!(trace[3..].iter().all(rest), "{trace:?}");
    let missing = LogDir::open(disk, Path::new("/none/data"), LogDirOptions::default()).map(|_| ());
    assert_eq!(missing, Err(OpenError::NoParent { root: PathBuf::from("/none/data") }));
}

#[test]
fn only_one_process_has_a_log_directory() {
    let disk = disk();
    let first = open(&disk).unwrap();
    let second = open(&disk).map(|_| ());
    assert_eq!(second, Err(OpenError::Locked { root: PathBuf::from(ROOT) }));
    let message = second.unwrap_err().to_string();
    assert!(message.contains("stop that process"), "{message}");
    drop(first);
    assert!(open(&disk).is_ok());
}

/// A refusal leaves the marker and everything else where it was.
#[test]
fn files_of_an_unknown_version_are_refused_and_kept() {
    for (name, content) in [
        ("meta.properties", &b"version=2\nnode.id=1\ncluster.id=x\n"[..]),
        ("recovery-point-offset-checkpoint", b"1\n0\n"),
        ("log-start-offset-checkpoint", b"7\n0\n"),
        ("replication-offset-checkpoint", b"1\n1\nt 0 5 new\n"),
    ] {
        let (disk, path) = (disk(), Path::new(ROOT).join(name));
        disk.put(&path, content);
        disk.put(MARKER, b"");
        disk.put("/data/x-0.0123456789abcdef0123456789abcdef-delete/f", b"");
        disk.put("/data/.lock", b"");
        let before = disk.files();
        match open(&disk).map(|_| ()) {
            Err(OpenError::UnknownVersion { path: found, .. }) => assert_eq!(found, path),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(disk.files(), before);
    }
}

#[test]
fn damaged_checkpoints_count_as_absent_and_are_noted() {
    let disk = disk();
    disk.put("/data/recovery-point-offset-checkpoint", b"0\n2\nt 0 5\n");
    disk.put("/data/log-start-offset-checkpoint", b"0\n1\nt 0 5\n");
    disk.put("/data/meta.properties", b"garbage");
    disk.put("/data/odd name/f", b"");
    let dir = open(&disk).unwrap();
    let tp = name();
    assert_eq!((dir.recovery_point(&tp), dir.log_start_offset(&tp)), (None, Some(Offset::new(5))));
    assert_eq!(dir.notes().len(), 3, "{:?}", dir.notes());
    assert_eq!(disk.get("/data/meta.properties").unwrap(), b"garbage");
}

#[test]
fn partitions_are_listed_and_deletions_finished() {
    let disk = disk();
    for dir in ["b-1", "a-0", "a-10", "a-2", "__cluster_metadata-0", "plain"] {
        disk.put(format!("/data/{dir}/f"), b"");
    }
    let deleted = "/data/a-1.0123456789abcdef0123456789abcdef-delete";
    disk.put(format!("{deleted}/00000000000000000000.log"), b"x");
    let stray = "/data/a-3.0123456789abcdef0123456789abcdef-stray/f";
    disk.put(stray, b"x");
    let dir = open(&disk).unwrap();
    let names: Vec<String> = dir.partitions().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a-0", "a-2", "a-10", "b-1"]);
    assert!(disk.files().keys().all(|path| !path.starts_with(deleted)));
    assert!(disk.list(Path::new(deleted)).is_err());
    assert!(disk.get(stray).is_some());
}

/// The marker says that everything may be believed: it is written last, only if it is true, and taken away first.
#[test]
fn the_clean_marker_is_there_only_while_everything_is_clean() {
    let disk = killed_with(&batches(0, 4, 50));
    let dir = log_dir(&disk);
    assert!(!dir.close_clean().unwrap(), "a partition was never opened after the kill");
    let opened = try_open(&dir, &config()).unwrap();
    assert!(!dir.close_clean().unwrap(), "a partition is open");
    close(&dir, opened);
    disk.take_trace();
    assert!(dir.close_clean().unwrap());
    assert_eq!(disk.take_trace().last().unwrap(), "sync directory /data");
    assert!(disk.get(MARKER).is_some());
    for checkpoint in ["recovery-point-offset-checkpoint", "replication-offset-checkpoint"] {
        assert_eq!(disk.get(Path::new(ROOT).join(checkpoint)).unwrap(), b"0\n1\nt 0 4\n");
    }
    assert_eq!(disk.get("/data/log-start-offset-checkpoint").unwrap(), b"0\n1\nt 0 0\n");

    let opened = try_open(&dir, &config()).unwrap();
    assert!(opened.recovery.clean && disk.get(MARKER).is_none(), "opened again, so no longer clean");
    close(&dir, opened);
    assert!(dir.close_clean().unwrap());
    drop(dir);

    disk.take_trace();
    let dir = log_dir(&disk);
    assert!(dir.was_clean() && disk.get(MARKER).is_none());
    assert_eq!(disk.take_trace(), ["unlink /data/.kafka_cleanshutdown", "sync directory /data"]);
    assert!(dir.close_clean().unwrap(), "nothing was opened: still clean");
}

/// A partition that was refused unchanged does not make the others recover.
#[test]
fn a_refused_partition_keeps_its_state() {
    let disk = killed_with(&batches(0, 4, 50));
    let dir = log_dir(&disk);
    let opened = try_open(&dir, &config()).unwrap();
    close(&dir, opened);
    dir.close_clean().unwrap();
    drop(dir);
    let dir = log_dir(&disk);
    disk.edit(segment(0, "log"), |file| file[70] ^= 1);
    disk.remove(segment(0, "index"));
    assert!(matches!(try_open(&dir, &config()).map(|_| ()), Err(PartitionError::Corrupt { .. })));
    assert!(dir.close_clean().unwrap());
}

#[test]
fn checkpoints_are_replaced_whole_and_only_forward() {
    let disk = disk();
    let dir = open(&disk).unwrap();
    let tp = name();
    disk.take_trace();
    dir.raise_recovery_point(&tp, Offset::new(7)).unwrap();
    let path = "/data/recovery-point-offset-checkpoint";
    let spare = format!("{path}.tmp");
    let calls = |verbs: &[&str]| {
        let of_spare = verbs.iter().map(|verb| format!("{verb} {spare}"));
        of_spare.chain(["sync directory /data".to_owned()]).collect::<Vec<_>>()
    };
    assert_eq!(disk.take_trace(), calls(&["write", "truncate", "sync", "exchange"]), "no block is needed");
    dir.raise_recovery_point(&tp, Offset::new(5)).unwrap();
    assert_eq!((disk.take_trace().len(), dir.recovery_point(&tp)), (0, Some(Offset::new(7))));

    disk.fail("sync", "recovery-point", Errno::IO);
    assert!(dir.raise_recovery_point(&tp, Offset::new(9)).is_err());
    assert_eq!(disk.get(path).unwrap(), b"0\n1\nt 0 7\n");
    disk.heal();
    dir.raise_recovery_point(&tp, Offset::new(9)).unwrap();
    assert_eq!(disk.get(path).unwrap(), b"0\n1\nt 0 9\n", "a failed write is not forgotten");
    assert_eq!(disk.get(&spare).unwrap(), b"0\n1\nt 0 7\n");
    dir.raise_recovery_point(&tp, Offset::new(10)).unwrap();

    // A power cut may bring back what was replaced: it is not written over.
    disk.fail("sync directory", "/data", Errno::IO);
    assert!(dir.raise_recovery_point(&tp, Offset::new(11)).is_err());
    assert_eq!(disk.get(&spare).unwrap(), b"0\n1\nt 0 10\n");
    disk.heal();
    disk.take_trace();
    dir.raise_recovery_point(&tp, Offset::new(12)).unwrap();
    let another = calls(&["unlink", "create", "write", "truncate", "sync", "exchange"]);
    assert_eq!(disk.take_trace()[..another.len()], another);
    assert_eq!(disk.get(path).unwrap(), b"0\n1\nt 0 12\n");
}
