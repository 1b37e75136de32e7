//! Workloads: data files under `workloads/`, embedded in the binary and parsed into types that cannot be wrong.
//!
//! A workload says what load there is, never how it is served. Adding one is one file and one row below.

use serde::{Deserialize, Serialize};

use crate::error::{BenchError, Result};
use crate::wire::PIPELINE_COUNT_MAX;

/// Descriptors that a process has open whatever its load: sealed segments, rings, pipes, threads' own.
const DESCRIPTORS_BESIDE: u64 = 256;

/// Bytes a second that a producer without a rate is taken to write at most: more than two PCIe 3.0 lanes carry.
const UNBOUND_BYTES_PER_S: f64 = 2e9;
/// Bytes that a path may have reserved beyond what was appended: at the ends of all partitions together.
const RESERVED_LEN_MAX: u64 = 1 << 30;
/// No workload has more on disk at once.
const DISK_LEN_MAX: u64 = 8 << 30;

/// What kind of load a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Clients read an existing corpus.
    Fetch,
    /// A producer inside the server process appends.
    Append,
    /// A producer inside the server process appends, clients read at the tail.
    Tail,
}

/// Readers of the end of the log, in memory on every path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hot {
    /// Connections.
    pub connections: usize,
    /// Largest body of each fetch, bytes.
    pub max_bytes: u32,
    /// Closed loop: fetches outstanding per connection.
    #[serde(default)]
    pub outstanding: usize,
    /// Open loop: fetches per second and connection, sent whether or not earlier ones were answered.
    #[serde(default)]
    pub rate_per_s: Option<f64>,
    /// Fetches start at varied batches within this many last bytes of the log.
    pub region_len: u64,
    /// Every connection asks once, before the window, and then stays silent.
    #[serde(default)]
    pub once: bool,
    /// Every connection walks through a part of the region of its own, instead of all choosing anywhere in it.
    #[serde(default)]
    pub spread: bool,
}

/// Closed-loop readers of data that is in no memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cold {
    /// Connections, each starting at its own place.
    pub readers: usize,
    /// Largest body of each fetch, bytes.
    pub max_bytes: u32,
    /// They begin so long after the window did, seconds; without it, with the warm-up.
    #[serde(default)]
    pub from_seconds: Option<f64>,
    /// They ask no more so long after the window began.
    #[serde(default)]
    pub until_seconds: Option<f64>,
    /// All begin so many bytes before the log's end and read up to it; the window ends when the last has.
    #[serde(default)]
    pub behind_len: Option<u64>,
}

/// Connections that ask once for old data and read nothing of the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stalled {
    /// Connections, each asking at its own place.
    pub connections: usize,
    /// Largest body of the fetch, bytes; more than sockets hold.
    pub max_bytes: u32,
    /// Receive buffer of each connection, bytes.
    pub receive_len: usize,
}

/// The producer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// Largest batch, bytes; sizes vary below it so that positions are never page-aligned.
    pub batch_len: usize,
    /// Partitions, appended to in turn.
    pub partitions: usize,
    /// Batches not yet acknowledged, over all partitions.
    pub in_flight: usize,
    /// Segments roll at this size, bytes.
    pub segment_len: u64,
    /// The producer stays at most this many bytes ahead of the slowest reader (0: no limit).
    #[serde(default)]
    pub ahead_len_max: u64,
    /// Open loop: batches per second over all partitions, appended whether or not earlier ones are durable, up to
    /// `in_flight`; latency counts from the intended time. Without it the loop is closed.
    #[serde(default)]
    pub rate_per_s: Option<f64>,
    /// One more partition that is appended to as fast as it goes.
    #[serde(default)]
    pub flood: Option<Flood>,
    /// One more partition that is filled with so many bytes before the window, for cold readers.
    #[serde(default)]
    pub backlog_len: u64,
    /// Every partition gets one batch before the window, so that all have their files.
    #[serde(default)]
    pub touch_all: bool,
    /// The producer is a client: batches come over TCP and are acknowledged when they are durable.
    #[serde(default)]
    pub socket: bool,
}

impl Append {
    /// Partitions in all: those measured, then the one that is flooded or filled.
    pub fn partition_count(&self) -> usize {
        self.partitions + usize::from(self.flood.is_some() || self.backlog_len > 0)
    }
}

/// A closed-loop producer to a partition of its own, beside the measured one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flood {
    /// Largest batch, bytes.
    pub batch_len: usize,
    /// Batches not yet acknowledged.
    pub in_flight: usize,
}

/// Readers at the end of a growing log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Connections.
    pub readers: usize,
    /// Largest body of each fetch, bytes.
    pub max_bytes: u32,
    /// Readers stay so many bytes behind the producer, which has a fixed rate: so much is appended before the
    /// window, they begin at its start, and fetch at the producer's pace. 0: at the tail, as fast as they can.
    #[serde(default)]
    pub lag_len: u64,
}

/// One workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The file's name.
    #[serde(default)]
    pub name: String,
    /// What kind of load.
    pub kind: Kind,
    /// One line for `list`.
    pub about: String,
    /// Whether the main job runs it.
    pub main: bool,
    /// Paths that the main job leaves out here, to keep its time: they are compared elsewhere in it.
    #[serde(default)]
    pub main_without: Vec<String>,
    /// Length of a measured window.
    pub window_seconds: f64,
    /// Time under load before the window.
    pub warmup_seconds: f64,
    /// Memory of an engine path for the log, bytes; without it, its default.
    #[serde(default)]
    pub memory_len: Option<u64>,
    /// A baseline's server gets a memory cgroup of `memory_len`, page cache included.
    #[serde(default)]
    pub equal_memory: bool,
    /// Hot readers.
    #[serde(default)]
    pub hot: Option<Hot>,
    /// Cold readers.
    #[serde(default)]
    pub cold: Option<Cold>,
    /// Connections that never read.
    #[serde(default)]
    pub stalled: Option<Stalled>,
    /// The producer.
    #[serde(default)]
    pub append: Option<Append>,
    /// Tail readers.
    #[serde(default)]
    pub tail: Option<Tail>,
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../workloads/", $name, ".toml")))),*]
    };
}

/// Every workload, in the order of `run --all`.
static EMBEDDED: &[(&str, &str)] = embedded![
    "backfill-0",
    "backfill-1",
    "backfill-4",
    "backfill-step",
    "restart-catchup",
    "stalled-64",
    "stalled-2000",
    "fanout-1k",
    "fanout-4k",
    "fanout-16k",
    "fanout-64k",
    "fanout-64k-512",
    "spread-64k",
    "idle-1000",
    "fanout-1m",
    "stream-1m",
    "append-16k",
    "append-1m",
    "partitions-10k",
    "tail-1",
    "tail-4",
    "tail-16",
    "tail-4-socket",
    "tail-1-rate",
    "tail-4-rate",
    "lag-64m",
    "lag-1g",
    "lag-64m-small",
    "lag-1g-small",
    "flood-0",
    "flood",
    "backfill-append-0",
    "backfill-append-1",
    "backfill-append-4",
];

impl Workload {
    /// All workloads.
    ///
    /// # Panics
    /// If an embedded file is wrong, which the test below would have shown.
    pub fn all() -> Vec<Workload> {
        EMBEDDED
            .iter()
            .map(|(name, text)| parse(name, text).expect("embedded workloads are tested"))
            .collect()
    }

    /// The workloads named, in the order named; the error lists the names there are.
    pub fn select(names: &[String]) -> Result<Vec<Workload>> {
        let all = Self::all();
        names
            .iter()
            .map(|name| {
                all.iter().find(|workload| workload.name == *name).cloned().ok_or_else(|| {
                    let known: Vec<_> = all.iter().map(|workload| workload.name.as_str()).collect();
                    BenchError::Usage(format!(
                        "unknown workload `{name}`; the workloads are: {}",
                        known.join(", ")
                    ))
                })
            })
            .collect()
    }

    /// Whether the producer does more than append as fast as it can.
    pub fn has_schedule(&self) -> bool {
        self.append.as_ref().is_some_and(|append| {
            let fills = append.backlog_len > 0 || append.touch_all;
            append.rate_per_s.is_some() || append.flood.is_some() || fills || append.socket
        })
    }

    /// Whether nothing is asked for within the window.
    pub fn is_idle(&self) -> bool {
        self.hot.as_ref().is_some_and(|hot| hot.once)
    }

    /// Files and sockets that a process of this workload has open, if it keeps them all.
    pub fn descriptors_needed(&self) -> u64 {
        let connections = self.hot.as_ref().map_or(0, |hot| hot.connections)
            + self.stalled.as_ref().map_or(0, |stalled| stalled.connections);
        (connections + self.append.as_ref().map_or(0, Append::partition_count)) as u64 + DESCRIPTORS_BESIDE
    }

    /// Bytes on disk, at most, that the producer fills in a window of `window_seconds` and before it.
    pub fn disk_len_max(&self, window_seconds: f64) -> u64 {
        let Some(append) = &self.append else { return 0 };
        let rate = append.rate_per_s.filter(|_| append.flood.is_none());
        let rate = rate.map_or(UNBOUND_BYTES_PER_S, |rate| rate * append.batch_len as f64);
        let appended = (rate * (window_seconds + self.warmup_seconds)) as u64;
        let before = append.backlog_len.max(self.tail.as_ref().map_or(0, |tail| tail.lag_len));
        let reserved = (append.partition_count() as u64 * append.segment_len).min(RESERVED_LEN_MAX);
        (before + self.memory_len.unwrap_or(0) + appended + reserved).min(DISK_LEN_MAX)
    }

    /// Whether readers stay behind the producer.
    pub fn is_lagging(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.lag_len > 0)
    }

    /// Whether the workload reads data that must first leave the page cache.
    pub fn is_cold(&self) -> bool {
        self.cold.is_some() || self.stalled.is_some()
    }

    /// How far behind the readers are that shall catch up, if this is what the workload is about.
    pub fn catch_up_len(&self) -> Option<u64> {
        self.cold.as_ref()?.behind_len
    }
}

fn parse(name: &str, text: &str) -> Result<Workload, String> {
    let mut workload: Workload = toml::from_str(text).map_err(|error| format!("{name}: {error}"))?;
    workload.name = name.to_string();
    let parts = (workload.hot.is_some(), workload.append.is_some(), workload.tail.is_some());
    let fits = match workload.kind {
        Kind::Fetch => parts == (true, false, false),
        Kind::Append => parts == (false, true, false),
        Kind::Tail => parts == (false, true, true),
    };
    if !fits {
        return Err(format!("{name}: its tables do not fit its kind"));
    }
    if let Some(hot) = &workload.hot
        && (hot.outstanding == 0) == hot.rate_per_s.is_none()
    {
        return Err(format!("{name}: hot readers are either closed loop (outstanding) or open (rate_per_s)"));
    }
    check_producer(&workload).map(|()| workload)
}

fn check_producer(workload: &Workload) -> Result<(), String> {
    let Some(append) = &workload.append else { return Ok(()) };
    let refuse = |wrong: bool, why: &str| {
        if wrong { Err(format!("{}: {why}", workload.name)) } else { Ok(()) }
    };
    let is_rated = append.rate_per_s.is_some();
    refuse(append.partitions == 0 || append.in_flight == 0, "a producer needs partitions and in_flight")?;
    refuse(workload.is_lagging() && !is_rated, "readers that stay behind need a producer with a rate")?;
    let beside = [append.flood.is_some(), append.backlog_len > 0, append.touch_all];
    let beside = beside.into_iter().filter(|is_set| *is_set).count();
    refuse(beside > 1, "flood, backlog_len and touch_all exclude each other")?;
    refuse(workload.is_cold() && append.backlog_len == 0, "cold readers beside appends need backlog_len")?;
    refuse(workload.equal_memory && workload.memory_len.is_none(), "equal_memory needs memory_len")?;
    refuse(append.socket && workload.kind != Kind::Tail, "a producer over TCP belongs to tail readers")?;
    refuse(append.socket && is_rated, "a producer over TCP has a closed loop")?;
    refuse(
        append.socket && append.in_flight > PIPELINE_COUNT_MAX,
        "in_flight exceeds a connection's pipeline",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every embedded file parses, and the main job has exactly its six.
    #[test]
    fn embedded_workloads_are_right() {
        for (name, text) in EMBEDDED {
            parse(name, text).unwrap_or_else(|error| panic!("{error}"));
        }
        for workload in Workload::all() {
            let known = workload.main_without.iter().all(|path| crate::paths::find(path).is_ok());
            assert!(known && (workload.main || workload.main_without.is_empty()), "{}", workload.name);
        }
        let main: Vec<_> = Workload::all().into_iter().filter(|w| w.main).map(|w| w.name).collect();
        assert_eq!(main, ["backfill-0", "backfill-1", "fanout-4k", "fanout-64k", "append-16k", "tail-4"]);
    }

    /// A short window asks for little disk, a backlog for its own length, a fetch for none.
    #[test]
    fn disk_is_asked_for_as_needed() {
        let len_of = |name: &str| Workload::select(&[name.to_owned()]).unwrap()[0].disk_len_max(0.2);
        assert!(len_of("append-16k") < 3 << 30 && len_of("backfill-append-4") > 4 << 30);
        assert_eq!(len_of("fanout-4k"), 0);
    }

    /// An unknown name is answered with the known ones.
    #[test]
    fn an_unknown_name_lists_the_known() {
        let error = Workload::select(&["fanout-5k".to_string()]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("fanout-4k"));
    }

    /// A table that does not belong to the kind, or both loops at once, is refused.
    #[test]
    fn contradictions_are_refused() {
        let base = "kind='fetch'\nabout=''\nmain=false\nwindow_seconds=1.0\nwarmup_seconds=0.1\n";
        assert!(parse("x", base).is_err());
        let both =
            format!("{base}[hot]\nconnections=1\nmax_bytes=1\noutstanding=1\nrate_per_s=1.0\nregion_len=1\n");
        assert!(parse("x", &both).unwrap_err().contains("closed loop"));
    }
}
