//! One life of the load generator, seen from the process that survives it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rohrpost_tests::host;

use crate::ledger::Ledger;
use crate::load::Plant;
use crate::report::Line;

/// A hang is a violation, not a run without end: so many seconds of silence, of those in which both processes could run.
const PATIENCE_SECONDS: u32 = 60;
const SECOND: Duration = Duration::from_secs(1);

/// How a load generator is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) root: PathBuf,
    pub(crate) poll: bool,
    pub(crate) first: u64,
    pub(crate) batches: Option<u64>,
    pub(crate) write_log: Option<PathBuf>,
    pub(crate) endure: bool,
    pub(crate) plant: Option<Plant>,
}

/// A running load generator. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Life {
    child: Child,
    lines: Receiver<Line>,
    /// Everything it has said so far.
    pub(crate) said: Vec<Line>,
    /// What it said from here on, a machine without power would not have said.
    cut_at: Option<usize>,
}

impl Life {
    pub(crate) fn start(load: &Load) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg("load").arg("--root").arg(&load.root).args(["--first", &load.first.to_string()]);
        if load.poll {
            command.arg("--poll");
        }
        if load.endure {
            command.arg("--endure");
        }
        if let Some(batches) = load.batches {
            command.args(["--batches", &batches.to_string()]);
        }
        if let Some(log) = &load.write_log {
            command.arg("--write-log").arg(log);
        }
        if let Some(plant) = load.plant {
            let value = clap::ValueEnum::to_possible_value(&plant).expect("no plant is hidden");
            command.args(["--plant", value.get_name()]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("the load generator: {error}"))?;
        let out = BufReader::new(child.stdout.take().expect("a pipe was asked for"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.split(b'\n').map_while(Result::ok) {
                let Ok(line) = String::from_utf8_lossy(&line).parse() else { continue };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, said: Vec::new(), cut_at: None })
    }

    /// Takes lines until one satisfies `wanted`, or the life ends: then `false`.
    pub(crate) fn until(&mut self, mut wanted: impl FnMut(&Line) -> bool) -> Result<bool, String> {
        let mut silent = 0;
        while silent < PATIENCE_SECONDS {
            let start = Instant::now();
            match self.lines.recv_timeout(SECOND) {
                Ok(line) => {
                    let found = wanted(&line);
                    self.said.push(line);
                    silent = 0;
                    if found {
                        return Ok(true);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                // Somebody may have stopped this process or that one for a while.
                Err(RecvTimeoutError::Timeout) => {
                    let could_run = start.elapsed() < 2 * SECOND && self.state() != "T";
                    silent += u32::from(could_run);
                }
            }
        }
        let (last, threads) = (self.said.last(), self.threads());
        Err(format!("silent for {PATIENCE_SECONDS} s after {last:?}; its threads:\n{threads}"))
    }

    /// What each of its threads does, as far as this process may know it: name, state, system call, stack in the kernel;
    /// stacks in user space where there is a debugger.
    fn threads(&self) -> String {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let mut all = String::new();
        for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
            all.push_str(&format!("thread {}\n", task.file_name().to_string_lossy()));
            for file in ["comm", "stat", "syscall", "stack"] {
                let text = std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
                all.push_str(&format!("  {file}: {}\n", text.trim().replace('\n', "\n    ")));
            }
        }
        let id = self.child.id().to_string();
        let stacks = host::run(&["gdb", "-p", &id, "-batch", "-ex", "thread apply all backtrace"]);
        all + &stacks.unwrap_or_else(|why| format!("no stacks in user space: {why}"))
    }

    /// The letter that the kernel has for what its process does.
    fn state(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The program's name, in brackets, comes before it.
        stat.rsplit(") ").next().and_then(|rest| rest.get(..1)).unwrap_or("?").to_owned()
    }

    /// The power fails now: what it has not said yet, it has not said.
    pub(crate) fn mark_cut(&mut self) {
        self.said.extend(self.lines.try_iter());
        self.cut_at = Some(self.said.len());
    }

    /// As [`Life::until`] its end, after which there are no more lines.
    pub(crate) fn kill(&mut self) -> Result<(), String> {
        self.child.kill().map_err(|error| error.to_string())?;
        self.child.wait().map_err(|error| error.to_string())?;
        self.until(|_| false).map(drop)
    }

    /// Whether everything in the log had been reported.
    pub(crate) fn was_ready(&self) -> bool {
        self.said.contains(&Line::Ready)
    }

    /// What it complained of first, if it did.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.said.iter().find_map(|line| match line {
            Line::Failed { why } => Some(why.clone()),
            Line::Refused { partition, why, .. } => Some(format!("append to partition {partition}: {why}")),
            _ => None,
        })
    }

    /// Tells the ledger everything, in order; the lines of its start make a look that is to be settled between.
    pub(crate) fn tell(
        &self,
        ledger: &mut Ledger,
        settle: impl FnOnce(&mut Ledger) -> Result<(), String>,
    ) -> Result<(), String> {
        let ready = self.said.iter().position(|line| *line == Line::Ready);
        let Some(ready) = ready else { return Ok(()) };
        self.said[..ready].iter().for_each(|line| ledger.push(line));
        settle(ledger)?;
        let promised = |line: &&Line| !matches!(line, Line::Ack { .. } | Line::Trimmed { .. });
        let cut = self.cut_at.unwrap_or(self.said.len()).max(ready);
        self.said[ready..cut].iter().for_each(|line| ledger.push(line));
        // A sync that meets the shutdown may succeed in vain (SAFETY.md). What was sent may be there all the same.
        self.said[cut..].iter().filter(promised).for_each(|line| ledger.push(line));
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // After a failure; else it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
