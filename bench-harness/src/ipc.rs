//! Messages between our own processes: one JSON value per line on the child's stdin and stdout.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BenchError, Result};
use crate::interrupt;

/// A child process of ours: the same binary with a hidden subcommand.
pub(crate) struct Peer {
    who: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Peer {
    /// Starts `rohrpost-bench <command>` and sends it `config`.
    pub(crate) fn spawn<C: Serialize>(who: &'static str, config: &C) -> Result<Self> {
        Self::spawn_with(who, config, |_| Ok(()))
    }

    /// As [`Peer::spawn`], with something to be done with the process id before the process begins its work.
    pub(crate) fn spawn_with<C: Serialize>(
        who: &'static str,
        config: &C,
        prepare: impl FnOnce(u32) -> Result<()>,
    ) -> Result<Self> {
        let exe = std::env::current_exe().map_err(BenchError::system("find this binary"))?;
        let mut child = Command::new(exe)
            .arg(who)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::system("start a process"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| process_error(who, "has no stdout"))?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || forward_lines(stdout, &sender));
        let mut peer = Self { who, child, stdin, lines };
        prepare(peer.pid())?;
        peer.send(config)?;
        Ok(peer)
    }

    /// The child's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one message.
    pub(crate) fn send<M: Serialize>(&mut self, message: &M) -> Result<()> {
        let mut line = serde_json::to_string(message).map_err(|e| process_error(self.who, e))?;
        line.push('\n');
        let stdin = self.stdin.as_mut().ok_or_else(|| process_error(self.who, "stdin is closed"))?;
        stdin.write_all(line.as_bytes()).map_err(|e| process_error(self.who, e))
    }

    /// Waits for one message.
    pub(crate) fn receive<M: DeserializeOwned>(&mut self, timeout: Duration) -> Result<M> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return self.parse(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map(|s| s.to_string()).unwrap_or_default();
                    interrupt::check()?;
                    return Err(process_error(self.who, format!("ended early ({status})")));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    interrupt::check()?;
                    if Instant::now() > deadline {
                        return Err(process_error(self.who, format!("silent for {timeout:?}")));
                    }
                }
            }
        }
    }

    fn parse<M: DeserializeOwned>(&self, line: &str) -> Result<M> {
        if let Ok(Failure { failure }) = serde_json::from_str::<Failure>(line) {
            return Err(process_error(self.who, failure));
        }
        serde_json::from_str(line).map_err(|e| process_error(self.who, format!("{e} in {line:?}")))
    }

    /// Closes the child's stdin, which asks it to end, and waits; kills it after `timeout`.
    pub(crate) fn finish(&mut self, timeout: Duration) -> Result<()> {
        drop(self.stdin.take());
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(process_error(self.who, status)),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return Err(process_error(self.who, format!("did not end within {timeout:?}")));
                }
                Err(error) => return Err(process_error(self.who, error)),
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a child says instead of its next message when it cannot go on.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    failure: String,
}

fn process_error(who: &'static str, why: impl ToString) -> BenchError {
    BenchError::Process { who, why: why.to_string() }
}

fn forward_lines(stdout: ChildStdout, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// The child's side: dies with its parent and reads its configuration.
pub(crate) fn child_start<C: DeserializeOwned>() -> Result<C> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(BenchError::system("tie this process to its parent"))?;
    child_receive()?.ok_or(BenchError::Interrupted)
}

/// The child's side: the next message, `None` when the parent has closed the channel.
pub(crate) fn child_receive<M: DeserializeOwned>() -> Result<Option<M>> {
    let mut line = String::new();
    let n = std::io::stdin().lock().read_line(&mut line).map_err(BenchError::system("read a message"))?;
    if n == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(|e| process_error("parent", e))
}

/// The child's side: sends one message.
pub(crate) fn child_send<M: Serialize>(message: &M) -> Result<()> {
    let mut line = serde_json::to_string(message).map_err(|e| process_error("parent", e))?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes()).map_err(BenchError::system("send a message"))?;
    stdout.flush().map_err(BenchError::system("send a message"))
}

/// The child's side: tells the parent why it ends.
pub(crate) fn child_fail(error: &BenchError) {
    let _ = child_send(&Failure { failure: error.to_string() });
}
