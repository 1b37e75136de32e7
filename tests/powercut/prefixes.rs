//! Crash points between any two block writes: the reference workload runs on a disk that logs every write and flush;
//! afterwards the disk is put together as it was at each point, mounted, and read by the real engine.
//!
//! At every second point all that was written is there, as if the disk had no cache; at the others an arbitrary part of
//! what was not flushed, in units of a sector. That is harsher than what file systems are made for: an image that its
//! own file system refuses to mount says nothing about the engine; it is not counted, and must be rare.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::ledger::{End, Ledger};
use crate::life::{Life, Load};
use crate::report::Line;
use crate::tally::{Run, Tally};
use crate::write_log::{Replay, Survivors, WriteLog};
use rohrpost_tests::disk::{Daemon, FileSystem, Journal, Mounted, say, text};

/// Batches of each partition in the reference workload: some segments, and one deletion of old ones.
const BATCHES: u64 = 250;
const IMAGE_MIB: u64 = 64;
/// Two of so many times, the first recovery is cut as well.
const SECOND_CUT_EVERY: usize = 8;

/// One of at least so many images may be one that its file system refuses.
const REFUSED_SHARE: u64 = 10;

/// What was recorded once.
struct Recording {
    base: PathBuf,
    log: WriteLog,
    lines: Vec<Line>,
}

/// Looks at `count` points, evenly spread, or at all of them. Only points that count are looked at.
pub(crate) fn run(run: &Run, file_system: FileSystem, count: Option<u64>) -> Result<Tally, String> {
    let recording = record(run, file_system)?;
    let points = recording.points();
    let count = count.map_or(points.len(), |count| points.len().min(count as usize));
    let mut random = fastrand::Rng::with_seed(run.seed);
    let disk = File::options().read(true).write(true).open(&recording.base);
    let disk = disk.map_err(|error| say(&recording.base, &error))?;
    let mut replay = Replay::new(&recording.log, &disk);
    let mut tally = Tally { images: 1, ..Tally::default() };
    for number in 0..count {
        // Somewhere in the number-th of `count` equal parts.
        let (from, to) = (number * points.len() / count, (number + 1) * points.len() / count);
        let index = points[random.usize(from..to)];
        replay.advance(index + 1).map_err(|error| error.to_string())?;
        let mut ledger = recording.ledger(recording.log.entries[index].end);
        let subset = number % 2 == 1;
        let survivors = if subset { Survivors::Subset(random.u64(..)) } else { Survivors::Prefix };
        let image = run.dir.join("image");
        rohrpost_tests::host::run(&["cp", text(&recording.base), text(&image)])?;
        let copy = File::options().write(true).open(&image).map_err(|error| say(&image, &error))?;
        replay.cut(&copy, survivors).map_err(|error| error.to_string())?;
        drop(copy);
        let twice = number % SECOND_CUT_EVERY == 0 || number % SECOND_CUT_EVERY == 1;
        let looked = look(run, &image, &mut ledger, subset, twice).map_err(|what| {
            let total = recording.log.entries.len();
            run.keep(&format!("after entry {index} of {total}, {survivors:?}: {what}"), run.seed)
        })?;
        tally.cuts += 1;
        if !looked {
            tally.refused += 1;
            continue;
        }
        tally.counted += 1;
        tally.in_recovery += u64::from(twice);
        tally.checked += ledger.checked_count;
        tally.acked = ledger.acked_count;
    }
    if tally.refused * REFUSED_SHARE > tally.cuts {
        return Err(format!("{} of {} images cannot be mounted", tally.refused, tally.cuts));
    }
    Ok(tally)
}

/// Runs the reference workload.
fn record(run: &Run, file_system: FileSystem) -> Result<Recording, String> {
    let (live, base) = (run.dir.join("live"), run.dir.join("base"));
    file_system.make(&live, IMAGE_MIB)?;
    rohrpost_tests::host::run(&["cp", text(&live), text(&base)])?;
    let log = run.dir.join("write-log");
    File::create(&log).map_err(|error| say(&log, &error))?;
    let nodes = [
        format!("driver=file,node-name=log,filename={}", text(&log)),
        "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512".to_owned(),
    ];
    let nodes: Vec<String> = nodes.into_iter().flat_map(|node| ["--blockdev".to_owned(), node]).collect();
    let daemon = Daemon::start(&live, &run.dir.join("disk"), "logged", &nodes)?;
    let mounted = Mounted::new(daemon.file(), &run.dir.join("mount"))?;
    let mut life = Life::start(&Load {
        root: mounted.path().join("log"),
        poll: run.poll,
        batches: Some(BATCHES),
        write_log: Some(log.clone()),
        plant: run.plant,
        ..Load::default()
    })?;
    life.until(|_| false)?;
    if life.said.last() != Some(&Line::Done) {
        return Err(format!("the reference workload did not end well: {:?}", life.complaint()));
    }
    let lines = std::mem::take(&mut life.said);
    mounted.unmount()?;
    daemon.stop();
    let log = WriteLog::read(&log).map_err(|error| say(&log, &error))?;
    Ok(Recording { base, log, lines })
}

impl Recording {
    /// Entries of the write log after which something is unsynced or an append unacknowledged.
    fn points(&self) -> Vec<usize> {
        let mut points = Vec::new();
        for (index, entry) in self.log.entries.iter().enumerate() {
            if !entry.is_flush() || self.ledger(entry.end).in_flight() > 0 {
                points.push(index);
            }
        }
        points
    }

    /// What had been promised when the write log was `len` bytes long.
    fn ledger(&self, len: u64) -> Ledger {
        let mut ledger = Ledger::new();
        for line in &self.lines {
            match line {
                Line::Send { at, .. } | Line::TrimAsked { at, .. } if *at <= len => ledger.push(line),
                Line::Ack { at, .. } | Line::Trimmed { at, .. } if *at <= len => ledger.push(line),
                _ => {}
            }
        }
        ledger
    }
}

/// Mounts a disk as the cut has left it, lets the engine recover and reads; once more after a second cut, if `twice`.
/// `false`: the file system refuses an image of which a `subset` of the writes survived.
fn look(run: &Run, image: &Path, ledger: &mut Ledger, subset: bool, twice: bool) -> Result<bool, String> {
    let at = run.dir.join("mount");
    let load = Load { root: at.join("log"), poll: run.poll, batches: Some(0), ..Load::default() };
    for second in [false, true].into_iter().take(1 + usize::from(twice)) {
        let mounted = match Mounted::new(image, &at) {
            Err(_) if subset && !second => return Ok(false),
            mounted => mounted?,
        };
        let mut life = Life::start(&load)?;
        if !life.until(|line| *line == Line::Ready)? {
            return Err(format!("does not open (second look: {second}): {:?}", life.complaint()));
        }
        if twice && !second {
            mounted.cut(Journal::Dropped)?;
        }
        life.kill()?;
        life.tell(ledger, |ledger| ledger.settle(End::PowerCut))?;
        drop(life);
        mounted.unmount()?;
    }
    Ok(true)
}
