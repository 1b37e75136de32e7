//! The simulator's disk against real ones: random scripts run on ext4 and XFS, which are then cut, and on the model; what the
//! cut has left must be among the outcomes that the model allows.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use rohrpost_engine::linux::disk::LinuxDisk;
use rohrpost_engine_core::disk::{Caching, Disk, DiskError, OpenMode};
use rohrpost_engine_core::types::{ByteCount, Position};
use rohrpost_engine_sim::disk::SimDisk;
use rohrpost_engine_sim::prng::Prng;
use rohrpost_engine_sim::storage::{Observed, Storage};
use rohrpost_engine_sim::trace::Trace;
use rohrpost_tests::disk::{FileSystem, Journal, Mounted, missing};
use rohrpost_tests::host;

/// On each file system; so many instead, if the environment says so (`ROHRPOST_TEST_SCRIPTS`).
const SCRIPTS: u64 = 24;
const STEPS_MAX: u64 = 20;
const NAMES: [&str; 4] = ["a", "b", "c", "sub/d"];
const FOLDERS: [&str; 2] = ["", "sub"];
const BLOCK: u64 = 4096;

/// One operation of a script.
#[derive(Clone, Debug)]
enum Step {
    Create(&'static str, Caching),
    /// To a file, so many bytes of this value; whole blocks, if the file is opened for direct I/O.
    Write(&'static str, Caching, u64, u64, u8),
    SetLen(&'static str, u64),
    Preallocate(&'static str, u64),
    Sync(&'static str),
    SyncDir(&'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    Unlink(&'static str),
}

fn script(prng: &mut Prng) -> Vec<Step> {
    let mut steps = vec![Step::Create("a", Caching::Direct), Step::Create("b", Caching::Buffered)];
    for number in 0..prng.range(4, STEPS_MAX) {
        let (name, other) = (*prng.pick(&NAMES), *prng.pick(&NAMES));
        let caching = if prng.one_in(2) { Caching::Direct } else { Caching::Buffered };
        steps.push(match prng.below(17) {
            0 | 1 => Step::Create(name, caching),
            2..=7 => {
                let unit = if caching == Caching::Direct { BLOCK } else { 700 };
                let (position, len) = (unit * prng.below(6), unit * prng.range(1, 4));
                Step::Write(name, caching, position, len, number as u8 + 1)
            }
            8 => Step::SetLen(name, prng.below(8) * 1500),
            9 => Step::Preallocate(name, BLOCK * prng.range(1, 8)),
            10 | 11 => Step::Sync(name),
            12 | 13 => Step::SyncDir(prng.pick::<&str>(&FOLDERS)),
            14 => Step::Rename(name, other),
            15 => Step::Exchange(name, other),
            _ => Step::Unlink(name),
        });
    }
    steps
}

fn run<D: Disk>(disk: &D, root: &Path, step: &Step) -> Result<(), DiskError> {
    let open = |name: &str, caching| disk.open(&root.join(name), OpenMode::ReadWrite, caching);
    match step {
        Step::Create(name, caching) => disk.open(&root.join(name), OpenMode::CreateNew, *caching).map(drop),
        Step::Write(name, caching, position, len, value) => {
            let bytes = vec![*value; *len as usize];
            disk.write_at(&open(name, *caching)?, Position::new(*position), &bytes)
        }
        Step::SetLen(name, len) => disk.set_len(&open(name, Caching::Buffered)?, ByteCount::new(*len)),
        Step::Preallocate(name, to) => {
            let file = open(name, Caching::Buffered)?;
            let from = disk.len(&file)?.get().min(*to);
            disk.preallocate(&file, Position::new(from), Position::new(*to), false)
        }
        Step::Sync(name) => disk.sync(&open(name, Caching::Buffered)?),
        Step::SyncDir(name) => disk.sync_dir(&root.join(name)),
        Step::Rename(from, to) => disk.rename(&root.join(from), &root.join(to)),
        Step::Exchange(one, other) => disk.exchange(&root.join(one), &root.join(other)),
        Step::Unlink(name) => disk.unlink(&root.join(name)),
    }
}

/// An empty directory with an empty one in it, all of it durable.
fn prepare<D: Disk>(disk: &D, root: &Path) -> Result<(), DiskError> {
    disk.create_dir(root)?;
    disk.create_dir(&root.join("sub"))?;
    disk.sync_dir(&root.join("sub"))?;
    disk.sync_dir(root)?;
    disk.sync_dir(root.parent().expect("a folder below another"))
}

fn observe(below: &Path, path: &str, found: &mut Observed) {
    for entry in fs::read_dir(below).expect("a directory that was listed") {
        let entry = entry.expect("a directory that was listed");
        let path = format!("{path}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.insert(path.clone(), None);
            observe(&entry.path(), &path, found);
        } else {
            found.insert(path, Some(fs::read(entry.path()).expect("a sound file")));
        }
    }
}

/// Every outcome of a real cut is one that the simulator may choose.
#[test]
fn real_cuts_leave_what_the_model_allows() {
    const NAME: &str = "conformance::real_cuts_leave_what_the_model_allows";
    if let Err(reason) = missing(&["mkfs.xfs", "xfs_io"]) {
        return host::skip(NAME, &reason);
    }
    if !host::in_mounts(NAME) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let scripts = std::env::var("ROHRPOST_TEST_SCRIPTS").map_or(SCRIPTS, |count| count.parse().unwrap());
    let mut lossy = 0;
    for file_system in FileSystem::ALL {
        let (image, at) = (dir.path().join(format!("{file_system}")), dir.path().join("mount"));
        file_system.make(&image, 64).unwrap();
        for seed in 0..scripts {
            let mut prng = Prng::new(seed);
            let steps = script(&mut prng);
            let mounted = Mounted::new(&image, &at).unwrap();
            let (real, model) =
                (LinuxDisk, SimDisk::new(Storage::new(prng.fork(), 1 << 30, Trace::new(false))));
            let (there, here) = (at.join(format!("{seed}")), PathBuf::from("/data"));
            prepare(&real, &there).unwrap();
            prepare(&model, &here).unwrap();
            for step in &steps {
                let results = (run(&real, &there, step), run(&model, &here, step));
                assert_eq!(
                    results.0.is_ok(),
                    results.1.is_ok(),
                    "{file_system} {seed} {step:?}: {results:?}"
                );
            }
            mounted.cut(if seed % 4 == 3 { Journal::Kept } else { Journal::Dropped }).unwrap();
            mounted.unmount().unwrap();
            let mounted = Mounted::new(&image, &at).unwrap();
            let mut found: Observed = BTreeMap::from([("/data".to_owned(), None)]);
            observe(&there, "/data", &mut found);
            let outcome = model.storage().could_become(&found);
            outcome.unwrap_or_else(|why| panic!("{file_system} {seed}: {why}\n{}", listed(&steps)));
            lossy += u64::from(model.storage().is_dirty());
            // The checker can say no: one more file is in no outcome.
            found.insert("/data/never".to_owned(), Some(Vec::new()));
            assert!(model.storage().could_become(&found).is_err());
            mounted.unmount().unwrap();
        }
    }
    println!("{lossy} of {} scripts left something at stake", scripts * 2);
    assert!(lossy > scripts, "most scripts leave something at stake");
}

fn listed(steps: &[impl Debug]) -> String {
    steps.iter().map(|step| format!("  {step:?}\n")).collect()
}
