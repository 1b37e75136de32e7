//! Damaged files: what can be rebuilt is rebuilt, what was acknowledged is never cut off, and a refusal
//! names the file and the byte and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rohrpost_engine::format::crc::crc32c;
use rohrpost_engine::{
    ByteCount, DriverChoice, Engine, FetchError, LogConfig, Offset, OnDamage, Partition, PartitionError,
    RequestError,
};
use rohrpost_tests::log::{DRIVERS, Ledger, batch, config, options};
use tempfile::TempDir;

const NAME: &str = "t-0";

/// A log directory with one partition of several segments, and what was acknowledged.
struct Written {
    dir: TempDir,
    ledger: Ledger,
}

impl Written {
    fn new(driver: DriverChoice, clean: bool) -> Self {
        Self::with(driver, clean, config())
    }

    fn with(driver: DriverChoice, clean: bool, config: LogConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(options(dir.path(), driver)).unwrap();
        let partition = engine.handle().open_partition_blocking(&NAME.parse().unwrap(), config).unwrap();
        let mut ledger = Ledger::default();
        for number in 0..80 {
            let sent = batch(number, 1 + number as usize % 5, 60_000);
            ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        }
        if clean {
            engine.shutdown().map(drop).unwrap()
        } else {
            drop(engine)
        }
        Self { dir, ledger }
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join(NAME)).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|found| found == ending));
        files.sort();
        files
    }

    fn start(&self, driver: DriverChoice) -> (Engine, Result<Partition, RequestError<PartitionError>>) {
        let engine = Engine::start(options(self.dir.path(), driver)).unwrap();
        let opened = engine.handle().open_partition_blocking(&NAME.parse().unwrap(), config());
        (engine, opened)
    }

    /// Everything acknowledged is there, and the log goes on.
    fn check_whole(&mut self, driver: DriverChoice, story: &str) {
        let (engine, opened) = self.start(driver);
        let partition = opened.unwrap_or_else(|error| panic!("{story}: {error}"));
        let sent = batch(1_000, 2, 100);
        self.ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
        self.ledger.check(&partition);
        engine.shutdown().unwrap();
    }

    /// The partition is refused, and no byte of it has changed.
    fn check_refused(&self, driver: DriverChoice, story: &str) -> PartitionError {
        let before = contents(&self.dir.path().join(NAME));
        let (engine, opened) = self.start(driver);
        let Err(RequestError::Refused(error)) = opened else { panic!("{story}: {opened:?}") };
        engine.shutdown().unwrap();
        assert!(before == contents(&self.dir.path().join(NAME)), "{story}: changed by a refusal");
        error
    }
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Indexes are derived data, wherever they lie and whatever has become of them.
#[test]
fn damaged_indexes_are_rebuilt() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 5] = [
        ("missing", |path| fs::remove_file(path).unwrap()),
        ("empty", |path| change(path, Vec::clear)),
        ("cut inside an entry", |path| change(path, |bytes| bytes.truncate(bytes.len() - 3))),
        ("garbage", |path| change(path, |bytes| bytes.fill(0xa5))),
        ("a foreign file", |path| fs::write(path, b"not an index at all").unwrap()),
    ];
    for driver in DRIVERS {
        for clean in [true, false] {
            let mut written = Written::new(driver, clean);
            for (story, damage) in damages {
                for ending in ["index", "timeindex", "chain"] {
                    for path in written.files(ending) {
                        damage(&path);
                    }
                    written.check_whole(driver, &format!("{ending} {story}, clean stop: {clean}"));
                }
            }
        }
    }
}

/// A batch that is not what was written, with acknowledged ones further behind it than one commit reaches:
/// neither served nor cut off.
#[test]
fn a_corrupt_segment_is_refused_with_the_place_of_the_damage() {
    for driver in DRIVERS {
        let config = LogConfig { segment_len_max: ByteCount::mib(64), ..config() };
        let written = Written::with(driver, false, config);
        let last = &written.files("log")[0];
        change(last, |bytes| bytes[100] ^= 1);
        let error = written.check_refused(driver, "a flipped bit in the first batch of the last segment");
        let PartitionError::Corrupt { path, position, .. } = &error else { panic!("{error:?}") };
        assert_eq!((path, *position), (last, 0));
        for word in ["corrupt at position 0", "nothing was changed", "rohrpost-bench inspect"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        // Repaired by hand, it opens: the refusal has left it alone.
        change(last, |bytes| bytes[100] ^= 1);
        let mut written = written;
        written.check_whole(driver, "the bit is flipped back");
    }
}

/// A sealed segment that lost its end, by the operator's choice: served around, which changes nothing and never skips a
/// record in silence; or cut there, and the log goes on from there.
#[test]
fn damage_is_served_around_or_cut_off_by_choice() {
    for driver in DRIVERS {
        let written = Written::new(driver, false);
        let logs = written.files("log");
        let second: i64 = logs[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
        change(&logs[0], |bytes| bytes.truncate(bytes.len() - 1_000));
        let before = contents(&written.dir.path().join(NAME));
        let open = |on_damage| {
            let engine = Engine::start(options(written.dir.path(), driver)).unwrap();
            let config = LogConfig { on_damage, ..config() };
            let partition = engine.handle().open_partition_blocking(&NAME.parse().unwrap(), config).unwrap();
            (engine, partition)
        };

        let (engine, partition) = open(OnDamage::Serve);
        let fetch = |offset| partition.fetch(Offset::new(offset), ByteCount::new(1)).wait();
        assert!(!fetch(0).unwrap().is_empty());
        let lost = fetch(second - 1).unwrap_err();
        assert!(matches!(lost, RequestError::Refused(FetchError::Corrupt { .. })), "{lost}");
        assert!(!fetch(second).unwrap().is_empty());
        let refused = partition.append(batch(7, 1, 100)).wait().unwrap_err();
        assert!(refused.to_string().contains("damaged from position"), "{refused}");
        assert!(engine.notes().iter().any(|note| note.contains("is corrupt")), "{:?}", engine.notes());
        engine.shutdown().unwrap();
        assert!(before == contents(&written.dir.path().join(NAME)), "changed by serving");

        let (engine, partition) = open(OnDamage::Cut);
        let end = partition.watermarks().wait().unwrap().high_watermark;
        assert!(end < Offset::new(second) && end > Offset::ZERO);
        assert_eq!(partition.append(batch(7, 1, 100)).wait().unwrap().base_offset, end);
        engine.shutdown().unwrap();
        assert_eq!(written.files("log").len(), 1);
        let (engine, partition) = open(OnDamage::Refuse);
        assert_eq!(partition.watermarks().wait().unwrap().high_watermark.get(), end.get() + 1);
        engine.shutdown().unwrap();
    }
}

/// One partition of an engine is refused for its damage; its neighbours are opened and served as ever, appends included,
/// before and after it, and so is one made anew. Repaired, it opens beside them.
#[test]
fn neighbours_of_a_refused_partition_are_served() {
    for driver in DRIVERS {
        let written = Written::new(driver, true);
        let mut ledgers: [Ledger; 3] = Default::default();
        let mut live = |refused: fn(Result<Partition, RequestError<PartitionError>>) -> Option<Partition>| {
            let engine = Engine::start(options(written.dir.path(), driver)).unwrap();
            let open = |name: &str| engine.handle().open_partition_blocking(&name.parse().unwrap(), config());
            let mut neighbours = vec![open("s-0").unwrap()];
            let opened = refused(open(NAME));
            neighbours.extend(["t-1", "u-0"].map(|name| open(name).unwrap()));
            for (partition, ledger) in neighbours.iter().zip(&mut ledgers) {
                for number in 0..40 {
                    let sent = batch(1_000 * ledger.len() as u64 + number, 2, 60_000);
                    ledger.push(partition.append(sent.clone()).wait().unwrap().base_offset, sent);
                }
                ledger.check(partition);
            }
            if let Some(opened) = opened {
                written.ledger.check(&opened);
            }
            engine.shutdown().unwrap();
        };
        let first = &written.files("log")[0];
        let sound = fs::read(first).unwrap();
        change(first, |bytes| bytes.truncate(bytes.len() - 1_000));
        for _ in 0..2 {
            live(|opened| match opened {
                Err(RequestError::Refused(PartitionError::Corrupt { .. })) => None,
                other => panic!("{other:?}"),
            });
        }
        fs::write(first, sound).unwrap();
        live(|opened| Some(opened.unwrap()));
    }
}

#[test]
fn a_truncated_sealed_segment_is_refused() {
    for driver in DRIVERS {
        for clean in [true, false] {
            let written = Written::new(driver, clean);
            let first = &written.files("log")[0];
            change(first, |bytes| bytes.truncate(bytes.len() - 1_000));
            let error = written.check_refused(driver, "a sealed segment that lost its end");
            let PartitionError::Corrupt { path, reason, .. } = &error else { panic!("{error:?}") };
            assert_eq!(path, first);
            assert!(reason.contains("cut short"), "{reason}");
        }
    }
}

/// A clean stop says where the log ends: a shorter file has lost acknowledged batches.
#[test]
fn a_last_segment_that_lost_its_end_after_a_clean_stop_is_refused() {
    for driver in DRIVERS {
        let written = Written::new(driver, true);
        let last = written.files("log").pop().unwrap();
        change(&last, |bytes| bytes.truncate(bytes.len() - 1_000));
        let error = written.check_refused(driver, "the end of the log is missing");
        let PartitionError::Corrupt { path, reason, .. } = &error else { panic!("{error:?}") };
        assert_eq!(path, &last);
        assert!(reason.contains("closed cleanly"), "{reason}");
    }
}

/// A segment that is believed after a clean stop, and whose headers are damaged: what lies before the damage
/// is served, at the damage a reader gets an error with its place, never wrong bytes.
#[test]
fn damage_below_a_clean_stop_is_an_error_for_its_readers_only() {
    for driver in DRIVERS {
        let written = Written::new(driver, true);
        let first = &written.files("log")[0];
        // The third batch's magic.
        let mut at = 0;
        change(first, |bytes| {
            for _ in 0..2 {
                let len = u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap());
                at += 12 + len as usize;
            }
            bytes[at + 16] = 9;
        });
        let (engine, opened) = written.start(driver);
        let partition = opened.unwrap();
        let fetch = |offset| partition.fetch(Offset::new(offset), ByteCount::new(1)).wait();
        assert!(!fetch(0).unwrap().is_empty());
        // Offsets of the batches: 1 + 2 + 3 records.
        let error = fetch(4).unwrap_err();
        let RequestError::Refused(FetchError::Corrupt { base_offset, position }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*base_offset, *position), (Offset::ZERO, at as u64));
        assert!(error.to_string().contains("rohrpost-bench inspect"), "{error}");
        let end = partition.watermarks().wait().unwrap().high_watermark;
        assert!(!partition.fetch(Offset::new(end.get() - 1), ByteCount::new(1)).wait().unwrap().is_empty());
        engine.shutdown().unwrap();
    }
}

/// Kafka before 0.11 wrote another format; a later Kafka may write one more. Neither is a torn tail.
#[test]
fn a_segment_of_another_format_is_refused_and_kept() {
    for driver in DRIVERS {
        for magic in [0, 1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let partition_dir = dir.path().join(NAME);
            fs::create_dir(&partition_dir).unwrap();
            let mut log = Vec::new();
            for offset in 0..20 {
                log.extend(foreign_message(magic, offset));
            }
            let path = partition_dir.join("00000000000000000000.log");
            fs::write(&path, &log).unwrap();
            let engine = Engine::start(options(dir.path(), driver)).unwrap();
            let opened = engine.handle().open_partition_blocking(&NAME.parse().unwrap(), config());
            let Err(RequestError::Refused(error)) = opened else { panic!("magic {magic}: {opened:?}") };
            engine.shutdown().unwrap();
            assert!(
                matches!(&error, PartitionError::Unusable { path: found, .. } if *found == path),
                "{error:?}"
            );
            for word in [&format!("format {magic}"), "nothing was changed"] {
                assert!(error.to_string().contains(word), "{error}");
            }
            assert_eq!(fs::read(&path).unwrap(), log, "magic {magic}: kept byte for byte");
        }
    }
}

/// A message of format 0 or 1 with its CRC-32, or something of a later format.
fn foreign_message(magic: u8, offset: i64) -> Vec<u8> {
    let mut body = vec![magic, 0];
    if magic > 0 {
        body.extend(1_400_000_000_000_i64.to_be_bytes());
    }
    body.extend((-1_i32).to_be_bytes());
    body.extend(5_i32.to_be_bytes());
    body.extend(b"value");
    let crc = if magic < 2 { crc32(&body) } else { crc32c(&body) };
    let mut message = offset.to_be_bytes().to_vec();
    message.extend((body.len() as i32 + 4).to_be_bytes());
    message.extend(crc.to_be_bytes());
    message.extend(body);
    message
}

/// The CRC of zip files, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn a_log_directory_of_an_unknown_version_is_refused() {
    for driver in DRIVERS {
        let written = Written::new(driver, true);
        let metadata = written.dir.path().join(NAME).join("partition.metadata");
        let before = fs::read(&metadata).unwrap();
        fs::write(&metadata, b"version: 9\ntopic_id: AAAAAAAAAAAAAAAAAAAAAA\n").unwrap();
        let error = written.check_refused(driver, "partition.metadata of a later version");
        assert!(matches!(&error, PartitionError::Unusable { path, .. } if *path == metadata), "{error:?}");
        fs::write(&metadata, before).unwrap();

        let checkpoint = written.dir.path().join("recovery-point-offset-checkpoint");
        fs::write(&checkpoint, b"7\n0\n").unwrap();
        let error = Engine::start(options(written.dir.path(), driver)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(checkpoint.to_str().unwrap()), "{text}");
        assert!(text.contains("the program that wrote it"), "{text}");
        assert_eq!(fs::read(&checkpoint).unwrap(), b"7\n0\n");
    }
}
