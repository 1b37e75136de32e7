//! Disks that fail while the engine writes, and come back: full, slow, suddenly read-only, errors on every write, on every
//! flush, on sectors of one segment.
//!
//! One rule for all: as long as the fault lasts, the engine may refuse by name, and what it does acknowledge or serve is
//! true; once it is over and the log was opened again, nothing is missing and appends go on. What each fault must show
//! besides is in `suffer`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use rohrpost_tests::host;
use serde_json::{Value, json};

use crate::control::Control;
use crate::ledger::{End, Ledger};
use crate::life::{Life, Load};
use crate::load::{PARTITIONS, records_of, sent};
use crate::report::Line;
use crate::tally::{Run, Tally};
use rohrpost_tests::disk::{Daemon, FileSystem, Journal, Mounted, say, text};

const IMAGE_MIB: u64 = 128;
/// Acknowledgements before a fault begins, and after it.
const ACKS: usize = 150;
/// Acknowledgements before sectors go bad: every partition has several segments.
const ACKS_SECTORS: usize = 600;
/// Acknowledgements under a fault that refuses nothing.
const ACKS_SLOW: usize = 30;
/// Acknowledgements of every partition that must come while its neighbour is damaged, or after space has come back.
const ACKS_EACH: usize = 10;
/// Writes a second of the slow disk.
const SLOW_WRITES: u64 = 40;
/// The first batch of a life has a number higher by at least so much than the last one of the life before: a line that
/// a kill has cut short may have been one more.
const FIRST: u64 = 1_000;
/// The sectors that go bad, in bytes of the first segment.
const BAD: Range<u64> = 32 << 10..36 << 10;
const SECTOR: u64 = 512;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No space left; the power fails as well, then there is space again.
    Full,
    /// Some writes a second; the engine is killed meanwhile and started at once.
    Slow,
    /// The file system has met an error and takes no more writes.
    ReadOnly,
    /// Every write fails.
    Writes,
    /// Every flush fails.
    Flushes,
    /// Reads of some sectors of a segment fail.
    Sectors,
}

impl Fault {
    pub(crate) const ALL: [Fault; 6] =
        [Fault::Full, Fault::Slow, Fault::ReadOnly, Fault::Writes, Fault::Flushes, Fault::Sectors];

    /// XFS does not turn read-only, it shuts down, which is what a live cut is.
    pub(crate) fn exists_on(self, file_system: FileSystem) -> bool {
        self != Fault::ReadOnly || file_system == FileSystem::Ext4
    }

    /// What the engine must call it.
    fn names(self) -> &'static [&'static str] {
        match self {
            Fault::Full => &["no space left"],
            // A journal that was given up answers either.
            Fault::ReadOnly => &["read-only file system", "input/output error"],
            Fault::Slow | Fault::Writes | Fault::Flushes | Fault::Sectors => &["input/output error"],
        }
    }
}

/// One fault on one file system.
pub(crate) fn run(run: &Run, file_system: FileSystem, fault: Fault) -> Result<Tally, String> {
    let mut bench = Bench::new(run, file_system)?;
    bench.endure(fault).map_err(|what| run.keep(&what, run.seed))?;
    let Bench { ledger, .. } = &bench;
    let (acked, checked) = (ledger.acked_count, ledger.checked_count);
    Ok(Tally { cuts: 1, counted: 1, images: 1, acked, checked, ..Tally::default() })
}

/// A disk whose blocks obey, the file system on it, and what was promised there.
struct Bench<'a> {
    run: &'a Run,
    ledger: Ledger,
    mounted: Option<Mounted>,
    control: Control,
    daemon: Option<Daemon>,
}

impl<'a> Bench<'a> {
    fn new(run: &'a Run, file_system: FileSystem) -> Result<Self, String> {
        file_system.make(&run.dir.join("image"), IMAGE_MIB)?;
        let (daemon, control) = sound_disk(run)?;
        let mounted = Some(Mounted::new(daemon.file(), &run.dir.join("mount"))?);
        Ok(Self { run, ledger: Ledger::new(), mounted, control, daemon: Some(daemon) })
    }

    fn endure(&mut self, fault: Fault) -> Result<(), String> {
        let mut life = self.start()?;
        self.expect_acks(&mut life, if fault == Fault::Sectors { ACKS_SECTORS } else { ACKS })?;
        if fault == Fault::Sectors {
            // A segment that nobody holds in memory.
            self.end_life(life, End::Killed)?;
            self.begin(fault)?;
            life = self.start()?;
        } else {
            if fault == Fault::ReadOnly {
                // As in a live cut: a write under way may be reported as synced while the file system gives up.
                life.mark_cut();
            }
            self.begin(fault)?;
        }
        self.suffer(&mut life, fault)?;
        life.kill()?;
        // The disk of which no error was reported to anybody has its page cache still: level `written` counts.
        let end = if fault == Fault::Slow { End::Killed } else { End::PowerCut };
        life.tell(&mut self.ledger, |ledger| ledger.settle(End::Killed))?;
        drop(life);
        if fault == Fault::Slow {
            let mut successor = self.start()?;
            self.expect_acks(&mut successor, ACKS_SLOW / 2)?;
            self.end_life(successor, End::Killed)?;
        }
        self.heal(fault)?;
        let mut life = self.start()?;
        self.expect_acks(&mut life, ACKS)?;
        self.end_life(life, end)?;
        let mut life = self.start()?;
        life.until(|line| *line == Line::Ready)?;
        self.end_life(life, End::Killed)?;
        self.mounted.take().expect("mounted").unmount()
    }

    fn start(&self) -> Result<Life, String> {
        Life::start(&Load {
            root: self.mount()?.path().join("log"),
            poll: self.run.poll,
            first: self.ledger.sent_end().next_multiple_of(PARTITIONS as u64) + FIRST,
            endure: true,
            plant: self.run.plant,
            ..Load::default()
        })
    }

    fn mount(&self) -> Result<&Mounted, String> {
        self.mounted.as_ref().ok_or_else(|| "not mounted".to_owned())
    }

    fn expect_acks(&self, life: &mut Life, count: usize) -> Result<(), String> {
        let mut left = count;
        let reached = life.until(|line| {
            left -= usize::from(matches!(line, Line::Ack { .. }));
            left == 0 || matches!(line, Line::Refused { .. } | Line::Failed { .. })
        })?;
        match life.complaint() {
            None if reached => Ok(()),
            why => Err(format!("{left} of {count} acknowledgements are missing: {why:?}")),
        }
    }

    fn end_life(&mut self, mut life: Life, end: End) -> Result<(), String> {
        life.kill()?;
        if !life.was_ready() {
            return Err(format!("does not open: {:?}", life.complaint()));
        }
        life.tell(&mut self.ledger, |ledger| ledger.settle(end))
    }

    /// Waits for the engine to say what is wrong, in the words of the fault, and to go on with what is not.
    fn suffer(&self, life: &mut Life, fault: Fault) -> Result<(), String> {
        let why = match fault {
            Fault::Slow => return self.expect_acks(life, ACKS_SLOW),
            Fault::Full => self.suffer_full(life)?,
            Fault::Sectors => self.suffer_sectors(life)?,
            Fault::ReadOnly | Fault::Writes | Fault::Flushes => {
                life.until(|line| matches!(line, Line::Failed { .. } | Line::Refused { .. }))?;
                life.complaint().ok_or_else(|| format!("{fault:?} was not noticed"))?
            }
        };
        println!("  {fault:?}: {why}");
        if life.said.iter().any(|line| matches!(line, Line::Garbage { .. })) {
            return Err("what was never sent is served".to_owned());
        }
        match fault.names().iter().any(|name| why.contains(name)) {
            true => Ok(()),
            false => Err(format!("{fault:?} is not named")),
        }
    }

    /// Appends are refused by name; once there is space, all partitions go on by themselves; then there is none again.
    fn suffer_full(&self, life: &mut Life) -> Result<String, String> {
        let mut why = None;
        let is_refused = |line: &Line, why: &mut Option<String>| {
            if let Line::Full { why: this, .. } = line {
                *why = Some(this.clone());
            }
            why.is_some()
        };
        life.until(|line| is_refused(line, &mut why) || matches!(line, Line::Failed { .. }))?;
        let path = self.mount()?.path().join("ballast");
        fs::remove_file(&path).map_err(|error| say(&path, &error))?;
        self.expect_acks_of_all(life)?;
        self.fill()?;
        why = None;
        life.until(|line| is_refused(line, &mut why) || matches!(line, Line::Failed { .. }))?;
        match life.complaint() {
            Some(complaint) => Err(format!("more than appends was refused: {complaint}")),
            None => why.ok_or_else(|| "a full disk was not noticed".to_owned()),
        }
    }

    /// What lies on other sectors can be read, of the same partition too, and every partition takes appends.
    fn suffer_sectors(&self, life: &mut Life) -> Result<String, String> {
        if !life.until(|line| *line == Line::Ready)? {
            return Err(format!("bad sectors in one segment stop everything: {:?}", life.complaint()));
        }
        let mut gaps = life.said.iter().filter_map(|line| match line {
            Line::Unreadable { partition, from, to, why } => Some((*partition, *from, *to, why.clone())),
            _ => None,
        });
        let (partition, from, to, why) = gaps.next().ok_or("nobody has met the bad sectors")?;
        let hit = offsets_on_bad_sectors();
        if (partition, from..to) != (0, hit.clone()) || gaps.next().is_some() {
            let gaps = life.said.iter().filter(|line| matches!(line, Line::Unreadable { .. }));
            return Err(format!("only {hit:?} of partition 0 lies there: {:?}", gaps.collect::<Vec<_>>()));
        }
        self.expect_acks_of_all(life)?;
        Ok(format!("{} offsets, from {from}: {why}", to - from))
    }

    fn expect_acks_of_all(&self, life: &mut Life) -> Result<(), String> {
        let mut left = [ACKS_EACH; PARTITIONS];
        let reached = life.until(|line| {
            if let Line::Ack { partition, .. } = line {
                left[*partition] = left[*partition].saturating_sub(1);
            }
            left == [0; PARTITIONS] || matches!(line, Line::Refused { .. } | Line::Failed { .. })
        })?;
        match life.complaint() {
            None if reached => Ok(()),
            why => Err(format!("{left:?} acknowledgements are missing: {why:?}")),
        }
    }

    fn begin(&mut self, fault: Fault) -> Result<(), String> {
        let all = |kind: &str| json!([{ "event": "none", "iotype": kind, "errno": 5 }]);
        match fault {
            Fault::Full => self.fill(),
            Fault::Slow => self.control.limit_writes(SLOW_WRITES),
            Fault::ReadOnly => self.break_ext4(),
            Fault::Writes => self.control.fail(all("write")),
            Fault::Flushes => self.control.fail(all("flush")),
            Fault::Sectors => {
                let root = self.mount()?.path().join("log/t-0");
                let sectors = sectors_of_first_segment(&root)?;
                let rule =
                    |sector| json!({ "event": "none", "iotype": "read", "errno": 5, "sector": sector });
                let rules = sectors.map(rule).collect::<Vec<_>>();
                fs::write("/proc/sys/vm/drop_caches", "1").map_err(|error| error.to_string())?;
                self.control.fail(Value::Array(rules))
            }
        }
    }

    /// Ends the fault, and the mount that may have given up.
    fn heal(&mut self, fault: Fault) -> Result<(), String> {
        if fault == Fault::Full {
            self.mount()?.cut(Journal::Dropped)?;
        }
        if fault == Fault::Slow {
            return self.control.limit_writes(0);
        }
        self.mounted.take().expect("mounted").unmount()?;
        // A node that fails cannot be taken out: that flushes it. The same bytes get another disk.
        self.daemon.take().expect("a disk").stop();
        let (daemon, control) = sound_disk(self.run)?;
        let mounted = Mounted::new(daemon.file(), &self.run.dir.join("mount"))?;
        (self.daemon, self.control) = (Some(daemon), control);
        let _ = fs::remove_file(mounted.path().join("ballast")); // where there is one
        self.mounted = Some(mounted);
        Ok(())
    }

    /// Leaves next to nothing, durably.
    fn fill(&self) -> Result<(), String> {
        let path = self.mount()?.path().join("ballast");
        let state = rustix::fs::statvfs(self.mount()?.path()).map_err(|error| error.to_string())?;
        let mib = ((state.f_bavail * state.f_frsize) >> 20).saturating_sub(1).max(1);
        let file = fs::File::create(&path).map_err(|error| say(&path, &error))?;
        // The engine takes space meanwhile: what can be had is enough.
        for mib in (1..=mib).rev() {
            let flags = rustix::fs::FallocateFlags::empty();
            if rustix::fs::fallocate(&file, flags, 0, mib << 20).is_ok() {
                break;
            }
        }
        Ok(())
    }

    fn break_ext4(&self) -> Result<(), String> {
        let at = text(self.mount()?.path()).to_owned();
        host::run(&["mount", "-o", "remount,errors=remount-ro", &at])?;
        let source = host::run(&["findmnt", "-n", "-o", "SOURCE", &at])?;
        let device = source.trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        fs::write(&trigger, "made by a test").map_err(|error| format!("{trigger}: {error}"))
    }
}

/// The image as a disk that obeys, and what commands it.
fn sound_disk(run: &Run) -> Result<(Daemon, Control), String> {
    let socket = run.dir.join("control");
    let _ = fs::remove_file(&socket); // of the disk before, where there was one
    let arguments = [
        "--object",
        "throttle-group,id=group",
        "--blockdev",
        "driver=throttle,node-name=top,throttle-group=group,file=disk",
        "--chardev",
        &format!("socket,id=control,server=on,wait=off,path={}", text(&socket)),
        "--monitor",
        "chardev=control",
    ];
    let daemon =
        Daemon::start(&run.dir.join("image"), &run.dir.join("disk"), "top", &arguments.map(str::to_owned))?;
    Ok((daemon, Control::connect(&socket)?))
}

/// What the first life has appended to partition 0 on [`BAD`].
fn offsets_on_bad_sectors() -> Range<i64> {
    let (mut position, mut offset, mut start) = (0, 0, None);
    for number in (FIRST..).step_by(PARTITIONS) {
        if position >= BAD.end {
            break;
        }
        position += sent(number).len() as u64;
        if position > BAD.start {
            start.get_or_insert(offset);
        }
        offset += records_of(number) as i64;
    }
    start.unwrap_or(offset)..offset
}

/// [`BAD`] of the oldest segment, as the disk counts sectors.
fn sectors_of_first_segment(partition: &Path) -> Result<Range<u64>, String> {
    let entries = fs::read_dir(partition).map_err(|error| say(partition, &error))?;
    let logs = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let first = logs.filter(|path| path.extension().is_some_and(|end| end == "log")).min();
    let first = first.ok_or("a partition without a segment")?;
    let listed = host::run(&["filefrag", "-v", "-b512", text(&first)])?;
    // `   0:        0..     127:      34816..     34943:    128: ...`: the first extent's physical blocks.
    let line = listed.lines().find(|line| line.trim_start().starts_with("0:")).ok_or(listed.clone())?;
    let physical = line.split(':').nth(2).and_then(|range| range.split("..").next());
    let start: u64 = physical.and_then(|start| start.trim().parse().ok()).ok_or(line.to_owned())?;
    Ok(start + BAD.start / SECTOR..start + BAD.end / SECTOR)
}
