//! With a real Apache Kafka broker and its tools as the other party.

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
