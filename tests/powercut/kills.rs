//! kill -9 under load, and the successor started at once, or even before: it waits for the locks that its predecessor
//! still holds. Meanwhile a third process is refused. Nothing unmounts or drops a cache, so level `written` counts too.

use std::time::Duration;

use rohrpost_engine::{Engine, EngineOptions};

use crate::ledger::{End, Ledger};
use crate::life::{Life, Load};
use crate::load::options;
use crate::report::Line;
use crate::tally::{Run, Tally};

/// How long the process that must be refused waits for the lock, milliseconds.
const REFUSED_AFTER_MS: u64 = 20;

/// Kills until `count` of them counted.
pub(crate) fn run(run: &Run, count: u64) -> Result<Tally, String> {
    let mut tally = Tally { images: 1, ..Tally::default() };
    kill(run, count, &mut tally).map_err(|what| run.keep(&what, run.seed))?;
    Ok(tally)
}

fn kill(run: &Run, count: u64, tally: &mut Tally) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(run.seed);
    let mut ledger = Ledger::new();
    let load = |first| Load {
        root: run.dir.join("log"),
        poll: run.poll,
        first,
        plant: run.plant,
        ..Load::default()
    };
    // Its numbers begin beyond anything that this one can reach.
    let mut first = 0;
    let mut next_load = || {
        first += 10_000_000;
        load(first)
    };
    let mut life = Life::start(&next_load())?;
    while tally.counted < count {
        let mut left = 1 + random.usize(..150);
        let reached = life.until(|line| {
            left -= usize::from(matches!(line, Line::Ack { .. }));
            left == 0 || matches!(line, Line::Failed { .. } | Line::Refused { .. })
        })?;
        if !reached || life.complaint().is_some() {
            return Err(format!("complained before it was killed: {:?}", life.complaint()));
        }
        if tally.cuts.is_multiple_of(5) {
            must_be_refused(run)?;
        }
        let successor = if random.bool() { Some(Life::start(&next_load())?) } else { None };
        if successor.is_some() {
            std::thread::sleep(Duration::from_micros(random.u64(..30_000)));
        }
        life.kill()?;
        life.tell(&mut ledger, |ledger| ledger.settle(End::Killed))?;
        tally.cuts += 1;
        tally.counted += u64::from(ledger.in_flight() > 0);
        life = successor.map_or_else(|| Life::start(&next_load()), Ok)?;
    }
    life.until(|line| *line == Line::Ready)?;
    life.kill()?;
    if let (false, why) = (life.was_ready(), life.complaint()) {
        return Err(format!("does not open after a kill: {why:?}"));
    }
    life.tell(&mut ledger, |ledger| ledger.settle(End::Killed))?;
    tally.acked += ledger.acked_count;
    tally.checked += ledger.checked_count;
    Ok(())
}

/// There is a writer: a second one must not get in.
fn must_be_refused(run: &Run) -> Result<(), String> {
    let patience =
        EngineOptions { lock_patience_ms: REFUSED_AFTER_MS, ..options(&run.dir.join("log"), run.poll) };
    match Engine::start(patience) {
        Err(error) if error.to_string().contains("lock") => Ok(()),
        Err(error) => Err(format!("a second writer was refused for another reason: {error}")),
        Ok(_) => Err("a second writer got in".to_owned()),
    }
}
