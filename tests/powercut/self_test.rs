//! The lab can fail: each lie of the load generator is found out by every tool that can see it, and named for what it is.

use crate::load::Plant;
use crate::tally::{Lab, Run, Tally};
use crate::{cuts, kills, prefixes};
use rohrpost_tests::disk::FileSystem;

/// Crash points, cuts or kills until a lie must have been found.
const TRIES: u64 = 40;

type Tool = (&'static str, fn(&Run) -> Result<Tally, String>);

const PREFIXES: Tool = ("crash points", |run| prefixes::run(run, FileSystem::Ext4, Some(TRIES)));
const CUTS: Tool = ("live cuts", |run| cuts::run(run, FileSystem::Xfs, TRIES));
const KILLS: Tool = ("kills", |run| kills::run(run, TRIES));

/// A lie, who must find it, and what it is called then.
const LIES: [(Plant, Tool, &str); 6] = [
    (Plant::AckBeforeSync, PREFIXES, "lost-write"),
    (Plant::AckBeforeSync, CUTS, "lost-write"),
    (Plant::AckBeforeSync, KILLS, "lost-write"),
    (Plant::WrittenAsFlushed, PREFIXES, "lost-write"),
    (Plant::WrittenAsFlushed, CUTS, "lost-write"),
    (Plant::SkipOnRead, KILLS, "lost-write"),
];

/// Fails if a lie is believed.
pub(crate) fn run(lab: &Lab) -> Result<(), String> {
    for (plant, (name, tool), word) in LIES {
        let run = Run::new(&Lab { plant: Some(plant), ..lab.clone() })?;
        match tool(&run) {
            Ok(tally) => return Err(format!("{plant:?} was not found out by {name}: {tally}")),
            Err(what) if what.contains(word) => println!("self-test: {plant:?}, {name}: found: {what}"),
            Err(what) => return Err(format!("{plant:?}, {name}: found something else: {what}")),
        }
        run.remove()?;
    }
    Ok(())
}
