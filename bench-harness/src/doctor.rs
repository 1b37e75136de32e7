//! `doctor`: what this machine offers the engine, what is in its way, and what would help.
//!
//! Changes nothing but for one block in the data directory, which it removes again.

use std::path::Path;

use rohrpost_engine::linux::probe::{DirFacts, HostFacts};
use rohrpost_engine::linux::uring;
use rohrpost_engine::{DriverChoice, EngineOptions, ShardLimits};

use crate::sys;

/// Prints machine, ring features with the reason for each missing one, and data directory.
pub(crate) fn run(data_dir: &Path) {
    let host = HostFacts::gather();
    print!("{host}");
    let driver = match uring::probe(uring::FeatureMask::default()) {
        Ok(report) => {
            println!("{report}");
            DriverChoice::Uring
        }
        Err(error) => {
            println!("no io_uring: {error}; the engine runs on its poll driver");
            DriverChoice::Poll
        }
    };
    print_bills(&host, driver);
    let existing = data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match DirFacts::gather(existing) {
        Ok(facts) => print!("{facts}"),
        Err(error) => println!("data directory: {error}"),
    }
    println!("harness uses     {} congestion control on both sides", sys::congestion_control());
    if !sys::may_raise_priority() {
        println!("note: the priority of server and client cannot be raised; other load shows in latencies");
    }
}

/// Prints what an engine of one shard takes with the limits it has unless told otherwise, and with the small ones.
fn print_bills(host: &HostFacts, driver: DriverChoice) {
    for (name, limits) in [("default", ShardLimits::default()), ("small", ShardLimits::small())] {
        let bill = EngineOptions { driver, limits, ..EngineOptions::new("") }.bill();
        print!("bill of an engine with {name} limits and one shard\n{bill}");
        bill.misfits(host).iter().for_each(|misfit| println!("  note: {misfit}"));
    }
}
