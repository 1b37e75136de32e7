//! A real Apache Kafka broker and its tools, through the script `kafka/kafka` of this crate.
//!
//! Always holds: a broker that a test started is gone when its [`Broker`] is dropped.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Attempts at a start: somebody may take the port between the look and the start.
const START_ATTEMPTS_MAX: u32 = 3;
/// Ports below the range from which the kernel serves outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Whether a broker can be run here: a JDK, and its jars or Maven to fetch them. If not, says on stderr that `test` was
/// skipped and why.
///
/// # Panics
/// If it cannot, and the environment has `CI=true`: there nothing is skipped.
pub fn is_available(test: &str) -> bool {
    let fetched = script(&["fetch"]).and_then(|_| {
        let java = Command::new("java").arg("--version").output();
        java.map_err(|e| format!("java cannot be run ({e}): install a JDK of version 17 or later"))
    });
    let Err(reason) = fetched else { return true };
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{test} needs Apache Kafka: {reason}");
    // Past the test harness's capture, so that it can be seen.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {}", reason.trim_end());
    false
}

/// Makes the golden directories anew in `folder`.
///
/// # Panics
/// If it fails.
pub fn make_golden(folder: &Path) {
    let make = crate::golden::crate_dir().join("golden/make");
    let output = Command::new(make).arg(folder).output().expect("golden/make can be run");
    assert!(output.status.success(), "golden/make: {}", text(&output));
}

/// What DumpLogSegments prints for `files` (relative to `dir`), each under `== NAME`. Its exit code says nothing: look
/// for [`complaints`].
///
/// # Panics
/// If it cannot be run.
pub fn dump(dir: &Path, files: &[String]) -> String {
    let output = command(&["tool", "dump-log", "--files", &files.join(",")]).current_dir(dir).output();
    let output = output.expect("the script kafka can be run");
    text(&output).replace("Dumping ", "== ")
}

/// The lines in which DumpLogSegments says that something is wrong.
pub fn complaints(dump: &str) -> Vec<&str> {
    const SIGNS: [&str; 6] =
        ["isvalid: false", "mismatch", "invalid bytes", "Exception", "out of order", "Non-consecutive"];
    dump.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))).collect()
}

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    dir: PathBuf,
    port: u16,
}

impl Broker {
    /// Starts a broker that keeps everything in `dir`, formatted on first use, with `settings` (`key=value`) in its
    /// properties.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(dir: &Path, settings: &[&str]) -> Self {
        let mut reason = String::new();
        for _ in 0..START_ATTEMPTS_MAX {
            let port = free_port_pair();
            let (path, number) = (path_text(dir), port.to_string());
            let mut args = vec!["start", path, &number];
            args.extend(settings);
            match script(&args) {
                Ok(_) => return Self { dir: dir.to_owned(), port },
                Err(error) => reason = error,
            }
        }
        panic!("no broker in {START_ATTEMPTS_MAX} attempts: {reason}");
    }

    /// Its log directory.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stops it in good order.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(self) {
        script(&["stop", path_text(&self.dir)]).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Creates a topic with one partition.
    ///
    /// # Panics
    /// If it cannot.
    pub fn create_topic(&self, topic: &str, configs: &[&str]) {
        let mut args = vec!["--create", "--topic", topic, "--partitions", "1"];
        args.extend(configs.iter().flat_map(|config| ["--config", config]));
        self.tool("topics", &args, "");
    }

    /// Appends records (`key<TAB>value`) to partition 0 of a topic.
    ///
    /// # Panics
    /// If it cannot.
    pub fn produce(&self, topic: &str, records: &[String]) {
        let args = ["--topic", topic, "--reader-property", "parse.key=true"];
        self.tool("producer", &args, &(records.join("\n") + "\n"));
    }

    /// Reads `count` records of partition 0 from `offset` on: `offset<TAB>key<TAB>value` each.
    ///
    /// # Panics
    /// If there are not as many within a minute.
    pub fn consume(&self, topic: &str, offset: i64, count: usize) -> Vec<String> {
        let (offset, count_text) = (offset.to_string(), count.to_string());
        let mut args = vec!["--topic", topic, "--partition", "0", "--offset", &offset];
        args.extend(["--max-messages", &count_text, "--timeout-ms", "60000"]);
        for property in ["print.offset=true", "print.key=true"] {
            args.extend(["--formatter-property", property]);
        }
        let out = self.tool("consumer", &args, "");
        let lines = out.lines().filter_map(|line| line.strip_prefix("Offset:")).map(str::to_owned);
        let records: Vec<String> = lines.collect();
        assert_eq!(records.len(), count, "records read from {topic}: {out}");
        records
    }

    /// Deletes the records of partition 0 of a topic below `before`, and whole segments with them.
    ///
    /// # Panics
    /// If it cannot.
    pub fn delete_records(&self, topic: &str, before: i64) {
        let path = self.dir.join("delete-records.json");
        let text = format!(
            r#"{{"version":1,"partitions":[{{"topic":"{topic}","partition":0,"offset":{before}}}]}}"#
        );
        std::fs::write(&path, text).expect("the broker's folder can be written");
        let args = ["--offset-json-file", path_text(&path)];
        self.tool("org.apache.kafka.tools.DeleteRecordsCommand", &args, "");
    }

    fn tool(&self, name: &str, args: &[&str], input: &str) -> String {
        let address = self.address();
        let mut command = command(&["tool", name, "--bootstrap-server", &address]);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the script kafka can be run");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A tool that ends early closes the pipe; its exit code says so below.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("a child's output can be read");
        assert!(output.status.success(), "kafka tool {name} {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Broker {
    /// Kills it, unless it was stopped: then there is no process id any more.
    fn drop(&mut self) {
        let _ = script(&["stop", path_text(&self.dir), "KILL"]);
    }
}

/// Runs the script; its output, or why it failed.
fn script(args: &[&str]) -> Result<String, String> {
    let output = command(args).output().map_err(|e| format!("the script kafka cannot be run: {e}"))?;
    if output.status.success() { Ok(text(&output)) } else { Err(text(&output)) }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(crate::golden::crate_dir().join("kafka/kafka"));
    command.args(args).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have UTF-8 names")
}

/// A port that is free together with the next one, a different pair at each call.
fn free_port_pair() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let pairs = PORTS.len() as u32 / 2;
    let start = std::process::id() % pairs;
    for _ in 0..pairs {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + ((start + step) % pairs) as u16 * 2;
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        if bind(port).is_ok() && bind(port + 1).is_ok() {
            return port;
        }
    }
    panic!("no two neighbouring ports of {PORTS:?} are free");
}
