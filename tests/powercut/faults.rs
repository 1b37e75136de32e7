//! Disks that fail while the engine writes, and come back: full, slow, suddenly read-only, errors on every write, on every
//! flush, on sectors of one segment.
//!
//! One rule for all: as long as the fault lasts, the engine may refuse by name, and what it does acknowledge or serve is
//! true; once it is over and the log was opened again, nothing is missing and appends go on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rohrpost_tests::host;
use serde_json::{Value, json};

use crate::ledger::{End, Ledger};
use crate::life::{Life, Load};
use crate::report::Line;
use crate::tally::{Run, Tally};
use rohrpost_tests::disk::{Daemon, FileSystem, Journal, Mounted, say, text};

const IMAGE_MIB: u64 = 128;
/// Acknowledgements before a fault begins, and after it.
const ACKS: usize = 150;
/// Acknowledgements under a fault that refuses nothing.
const ACKS_SLOW: usize = 30;
/// Writes a second of the slow disk.
const SLOW_WRITES: u64 = 40;

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

    /// Whether what is on its way must fail; on a full disk it waits for space.
    fn is_refused(self) -> bool {
        matches!(self, Fault::ReadOnly | Fault::Writes | Fault::Flushes)
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
        self.expect_acks(&mut life, ACKS)?;
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
            first: self.ledger.sent_end().next_multiple_of(4) + 1_000,
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

    /// Waits for the engine to say what is wrong.
    fn suffer(&self, life: &mut Life, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Slow => return self.expect_acks(life, ACKS_SLOW),
            Fault::Full => life.until_quiet(),
            Fault::Sectors => drop(life.until(|line| matches!(line, Line::Failed { .. } | Line::Ready))?),
            _ => drop(life.until(|line| matches!(line, Line::Failed { .. } | Line::Refused { .. }))?),
        }
        if life.said.iter().any(|line| matches!(line, Line::Garbage { .. })) {
            return Err("what was never sent is served".to_owned());
        }
        match life.complaint() {
            None if fault.is_refused() => Err(format!("{fault:?} was not noticed")),
            None => Ok(()),
            Some(why) => {
                println!("  {fault:?}: {why}");
                Ok(())
            }
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

/// Sectors in the middle of the oldest segment, as the disk counts them.
fn sectors_of_first_segment(partition: &Path) -> Result<std::ops::Range<u64>, String> {
    let entries = fs::read_dir(partition).map_err(|error| say(partition, &error))?;
    let logs = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let first = logs.filter(|path| path.extension().is_some_and(|end| end == "log")).min();
    let first = first.ok_or("a partition without a segment")?;
    let listed = host::run(&["filefrag", "-v", "-b512", text(&first)])?;
    // `   0:        0..     127:      34816..     34943:    128: ...`: the first extent's physical blocks.
    let line = listed.lines().find(|line| line.trim_start().starts_with("0:")).ok_or(listed.clone())?;
    let physical = line.split(':').nth(2).and_then(|range| range.split("..").next());
    let start: u64 = physical.and_then(|start| start.trim().parse().ok()).ok_or(line.to_owned())?;
    Ok(start + 64..start + 72)
}

/// The daemon's control socket: one JSON object a line.
#[derive(Debug)]
struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| say(socket, &error))?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(|error| error.to_string())?;
        let mut control = Self { stream: BufReader::new(stream) };
        control.read()?;
        control.ask("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|error| format!("the control socket: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))
    }

    fn ask(&mut self, what: &str, arguments: Value) -> Result<(), String> {
        let request = json!({ "execute": what, "arguments": arguments }).to_string();
        writeln!(self.stream.get_mut(), "{request}").map_err(|error| error.to_string())?;
        loop {
            let answer = self.read()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{request}: {error}"));
            }
        }
    }

    fn limit_writes(&mut self, a_second: u64) -> Result<(), String> {
        let limits = json!({ "iops-write": a_second });
        self.ask("qom-set", json!({ "path": "/objects/group", "property": "limits", "value": limits }))
    }

    /// Puts a node that fails as told under the top one, for good.
    fn fail(&mut self, rules: Value) -> Result<(), String> {
        let node =
            json!({ "driver": "blkdebug", "node-name": "bad", "image": "disk", "inject-error": rules });
        self.ask("blockdev-add", node)?;
        let top =
            json!({ "driver": "throttle", "node-name": "top", "throttle-group": "group", "file": "bad" });
        self.ask("blockdev-reopen", json!({ "options": [top] }))
    }
}
