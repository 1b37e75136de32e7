//! With a real Apache Kafka broker and its tools as the other party.

use std::fs;
use std::path::Path;

use rohrpost_tests::writer::{self, Shape};
use rohrpost_tests::{dump, golden, kafka};

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

/// A partition of our making takes the place of one that a broker created. The broker must open it, serve every
/// record and append; `inspect` must find nothing wrong, before and after.
fn broker_takes_over(topic: &str, shape: Shape, clean: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let broker = kafka::Broker::start(scratch.path(), &[]);
    broker.create_topic(topic, &["retention.ms=-1"]);
    let root = broker.log_dir();
    broker.stop();
    let dir = root.join(format!("{topic}-0"));
    remove_segments(&dir);
    writer::write_partition(&dir, shape);
    if !clean {
        fs::remove_file(root.join(".kafka_cleanshutdown")).unwrap();
    }
    let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
    if shape.zero_tail == 0 {
        let theirs = kafka::dump(&root, &segment_files(&dir, &name));
        assert_eq!(kafka::complaints(&theirs), [""; 0], "DumpLogSegments of what we wrote");
        dump::assert_equal(&dump::ours(&root).0, &dump::sections(&theirs));
    }
    assert_eq!(dump::report(&root).problems(), 0, "{}", dump::report(&root));

    let broker = kafka::Broker::start(scratch.path(), &[]);
    let expected: Vec<String> = (0..shape.count()).map(writer::printed).collect();
    assert_eq!(broker.consume(topic, 0, shape.count()), expected);
    broker.produce(topic, &["theirs\tone".to_owned(), "theirs\ttwo".to_owned()]);
    let end = shape.count() as i64;
    let appended = [format!("{end}\ttheirs\tone"), format!("{}\ttheirs\ttwo", end + 1)];
    assert_eq!(broker.consume(topic, end, 2), appended);
    broker.stop();

    let report = dump::report(&dir);
    assert_eq!(report.problems(), 0, "{report}");
    assert_eq!(report.partitions[0].offsets(), Some((0, end + 2)));
}

#[test]
fn kafka_trusts_our_indexes_after_a_clean_stop() {
    if kafka::is_available("kafka_trusts_our_indexes_after_a_clean_stop") {
        let shape = Shape { segments: 3, batches: 40, records: 10, zero_tail: 0 };
        broker_takes_over("trusted", shape, true);
    }
}

/// Without the clean marker the broker scans every batch; preallocated zeros are the end to it as well.
#[test]
fn kafka_recovers_our_segments_and_cuts_the_zero_tail() {
    if kafka::is_available("kafka_recovers_our_segments_and_cuts_the_zero_tail") {
        let shape = Shape { segments: 2, batches: 30, records: 7, zero_tail: 1 << 16 };
        broker_takes_over("recovered", shape, false);
    }
}

fn remove_segments(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "partition.metadata" {
            fs::remove_file(path).unwrap();
        }
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
