//! Many partitions with little to spend on each.

use rohrpost_engine::{ByteCount, Engine, LogConfig};
use rohrpost_tests::host;
use rohrpost_tests::log::{DRIVERS, Ledger, batch, config, options};
use rustix::process::Resource;

/// Several times as many partitions as descriptors: files are closed and opened again, for appends, reads, a clean end
/// and the next start, and nobody notices.
#[test]
fn more_partitions_than_descriptors() {
    const PARTITIONS: u64 = 300;
    if !host::in_child("many::more_partitions_than_descriptors") {
        return;
    }
    host::limit(Resource::Nofile, 128);
    let config = LogConfig { preallocate_len_min: ByteCount::kib(16), ..config() };
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let mut ledgers: Vec<_> = (0..PARTITIONS).map(|_| Ledger::default()).collect();
        for start in 0..2 {
            let engine = Engine::start(options(dir.path(), driver)).unwrap();
            let open = |number| {
                let name = format!("t-{number}").parse().unwrap();
                engine.handle().open_partition_blocking(&name, config.clone()).unwrap()
            };
            let partitions: Vec<_> = (0..PARTITIONS).map(open).collect();
            for round in 0..3 {
                // All at once: more at work than there can be open files.
                let sent = (0..PARTITIONS).map(|at| batch(PARTITIONS * (3 * start + round) + at, 2, 600));
                let pending: Vec<_> = partitions
                    .iter()
                    .zip(sent)
                    .map(|(partition, sent)| (partition.append(sent.clone()), sent))
                    .collect();
                for ((pending, sent), ledger) in pending.into_iter().zip(&mut ledgers) {
                    ledger.push(pending.wait().unwrap().base_offset, sent);
                }
            }
            for (ledger, partition) in ledgers.iter().zip(&partitions) {
                ledger.check(partition);
            }
            engine.shutdown().unwrap();
        }
        assert!(dir.path().join(".kafka_cleanshutdown").exists(), "{driver:?}: not a clean end");
    }
}
