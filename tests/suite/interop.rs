//! With a real Apache Kafka broker and its tools as the other party.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::dump;
use rohrpost_engine::{DriverChoice, Engine};
use rohrpost_tests::{engine, golden, kafka, writer};

/// Directories that no version of our code has seen before: `inspect` says of every entry what Kafka says.
#[test]
fn inspect_agrees_with_dump_log_segments_on_fresh_directories() {
    if !kafka::is_available("inspect_agrees_with_dump_log_segments_on_fresh_directories") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    kafka::make_golden(scratch.path());
    for name in golden::NAMES {
        let dir = scratch.path().join(name);
        let theirs = dump::sections(&std::fs::read_to_string(dir.join("expected.txt")).unwrap());
        let (ours, report) = dump::ours(&dir.join("log"));
        assert!(theirs.values().flatten().count() > 50, "{name}: the oracle is there");
        dump::assert_equal(&ours, &theirs);
        assert_eq!(report.problems(), usize::from(name == "torn"), "{report}");
    }
}

/// One directory, in turn: the broker makes it, the engine fills it and stops (or is killed), DumpLogSegments finds
/// nothing wrong, the broker serves and appends, the engine serves both and appends, the broker serves all. After a
/// clean stop each trusts the other's indexes and checkpoints; after a kill each recovers the other's segments, with
/// preallocated zeros behind the last batch.
fn engine_and_broker_take_turns(topic: &str, clean: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let broker = kafka::Broker::start(scratch.path(), &[]);
    broker.create_topic(topic, &["retention.ms=-1"]);
    let root = broker.log_dir();
    broker.stop();
    let name = format!("{topic}-0");

    let first = engine::start(&root, DriverChoice::Auto);
    let partition = engine::open(&first, &name, engine::small_segments());
    let mut expected = Vec::new();
    for number in 0..BATCHES {
        engine::append(&partition, writer::batch((number * RECORDS) as i64, RECORDS));
        expected.extend((number * RECORDS..(number + 1) * RECORDS).map(writer::printed));
    }
    assert_eq!(engine::printed(&engine::read_all(&partition)), expected);
    stop(first, clean);
    assert!(segment_files(&root.join(&name), &name).len() > 6, "several segments");
    assert_clean(&root, &name, clean);

    let broker = kafka::Broker::start(scratch.path(), &[]);
    assert_eq!(broker.consume(topic, 0, expected.len()), expected);
    broker.produce(topic, &["theirs\tone".to_owned(), "theirs\ttwo".to_owned()]);
    let end = expected.len();
    expected.extend([format!("{end}\ttheirs\tone"), format!("{}\ttheirs\ttwo", end + 1)]);
    broker.stop();

    let second = engine::start(&root, DriverChoice::Auto);
    let partition = engine::open(&second, &name, engine::small_segments());
    assert_eq!(engine::printed(&engine::read_all(&partition)), expected);
    engine::append(&partition, writer::batch(0, 1));
    expected.push(format!("{}\t{}\t{}", end + 2, writer::key(0), writer::value(0)));
    stop(second, clean);
    assert_clean(&root, &name, clean);

    let broker = kafka::Broker::start(scratch.path(), &[]);
    assert_eq!(broker.consume(topic, 0, expected.len()), expected);
    broker.stop();
    assert_eq!(dump::report(&root).problems(), 0, "{}", dump::report(&root));
}

const BATCHES: usize = 60;
const RECORDS: usize = 40;

#[test]
fn engine_and_broker_take_turns_in_good_order() {
    if kafka::is_available("engine_and_broker_take_turns_in_good_order") {
        engine_and_broker_take_turns("orderly", true);
    }
}

#[test]
fn engine_and_broker_take_turns_after_a_kill() {
    if kafka::is_available("engine_and_broker_take_turns_after_a_kill") {
        engine_and_broker_take_turns("killed", false);
    }
}

/// A broker has appended to our log, rolled it and deleted its oldest records; then everything but the segments is lost.
/// The engine serves what the broker served, before and after the loss, and appends; the broker serves all of it.
#[test]
fn everything_but_the_segments_is_rebuilt_after_a_broker() {
    const TOPIC: &str = "rebuilt";
    if !kafka::is_available("everything_but_the_segments_is_rebuilt_after_a_broker") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let name = format!("{TOPIC}-0");
    let broker = kafka::Broker::start(scratch.path(), &[]);
    broker.create_topic(TOPIC, &["retention.ms=-1", "segment.bytes=1048576", "internal.segment.bytes=20000"]);
    let (root, dir) = (broker.log_dir(), broker.log_dir().join(&name));
    broker.stop();
    let first = engine::start(&root, DriverChoice::Auto);
    let partition = engine::open(&first, &name, engine::small_segments());
    for number in 0..BATCHES {
        engine::append(&partition, writer::batch((number * RECORDS) as i64, RECORDS));
    }
    first.shutdown().unwrap();
    let ours = segment_files(&dir, &name);

    let broker = kafka::Broker::start(
        scratch.path(),
        &["log.initial.task.delay.ms=200", "log.retention.check.interval.ms=200"],
    );
    let theirs: Vec<String> = (0..40).map(|number| format!("k{number}\t{}", "theirs ".repeat(300))).collect();
    theirs.chunks(10).for_each(|records| broker.produce(TOPIC, records));
    let start = (BATCHES * RECORDS / 2 + 7) as i64;
    broker.delete_records(TOPIC, start);
    let count = BATCHES * RECORDS + theirs.len() - start as usize;
    let expected = broker.consume(TOPIC, start, count);
    let oldest = root.join(&ours[1]);
    let patience = Instant::now() + Duration::from_secs(60);
    while oldest.exists() {
        assert!(Instant::now() < patience, "the broker does not delete {}", oldest.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    broker.stop();
    let logs =
        |files: &[String]| files.iter().filter(|file| file.ends_with(".log")).cloned().collect::<Vec<_>>();
    let left = segment_files(&dir, &name);
    assert!(
        !left.contains(&ours[1]) && ours[1].ends_with(".log"),
        "the broker has deleted segments: {left:?}"
    );
    assert!(logs(&left).iter().filter(|log| !ours.contains(log)).count() > 1, "and rolled: {left:?}");

    let second = engine::start(&root, DriverChoice::Auto);
    let partition = engine::open(&second, &name, engine::small_segments());
    let served = |partition| {
        let mut lines = engine::printed(&engine::read_all(partition));
        // The first batch served may begin before the log start offset, as the broker's does.
        lines.drain(..lines.len() - lines.iter().rev().take_while(|line| offset_of(line) >= start).count());
        lines
    };
    assert_eq!(served(&partition), expected);
    second.shutdown().unwrap();

    lose_all_but_segments(&root, &dir);
    let third = engine::start(&root, DriverChoice::Auto);
    let partition = engine::open(&third, &name, engine::small_segments());
    assert_eq!(served(&partition), expected);
    let end = engine::append(&partition, writer::batch(0, 1));
    third.shutdown().unwrap();
    assert_clean(&root, &name, true);

    let broker = kafka::Broker::start(scratch.path(), &[]);
    let all = broker.consume(TOPIC, start, count + 1);
    broker.stop();
    assert_eq!(all[..count], expected[..]);
    assert_eq!(all[count], format!("{end}\t{}\t{}", writer::key(0), writer::value(0)));
}

/// Removes what is derived from the segments of the partition in `dir`.
fn lose_all_but_segments(root: &Path, dir: &Path) {
    // The topic's and the directory's ids are identities, not derived from anything.
    let stays = |path: &Path| {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ending == "log" || path.ends_with("partition.metadata") || path.ends_with("meta.properties")
    };
    for folder in [root, dir] {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_file() && !stays(path)).for_each(|path| fs::remove_file(path).unwrap());
    }
}

fn offset_of(line: &str) -> i64 {
    line.split('\t').next().and_then(|offset| offset.parse().ok()).expect("a line begins with its offset")
}

/// Dropping an engine leaves the directory as a kill does.
fn stop(engine: Engine, clean: bool) {
    if clean {
        engine.shutdown().unwrap();
    } else {
        drop(engine);
    }
}

/// Neither tool finds anything wrong, and both find the same. A zero tail stops DumpLogSegments with an exception, so
/// what a kill leaves is `inspect`'s alone.
fn assert_clean(root: &Path, partition: &str, clean: bool) {
    let (ours, report) = dump::ours(root);
    assert_eq!(report.problems(), 0, "{report}");
    if clean {
        let theirs = kafka::dump(root, &segment_files(&root.join(partition), partition));
        assert_eq!(kafka::complaints(&theirs), [""; 0], "DumpLogSegments of what the engine wrote");
        let theirs = dump::sections(&theirs);
        assert!(theirs.values().flatten().count() > BATCHES, "the oracle is there");
        dump::assert_equal(&ours, &theirs);
    }
}

/// The files of a partition that DumpLogSegments reads, below the log directory.
fn segment_files(dir: &Path, partition: &str) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let wanted = |name: &String| [".log", ".index", ".timeindex"].iter().any(|end| name.ends_with(end));
    let mut files: Vec<String> = names.filter(wanted).map(|name| format!("{partition}/{name}")).collect();
    files.sort();
    files
}
