//! Workloads: data files under `workloads/`, embedded in the binary and parsed into types that cannot be wrong.
//!
//! A workload says what load there is, never how it is served. Adding one is one file and one row below.

use serde::{Deserialize, Serialize};

use crate::error::{BenchError, Result};

/// What kind of load a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Closed-loop readers of data that is in no memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cold {
    /// Connections, each starting at its own place.
    pub readers: usize,
    /// Largest body of each fetch, bytes.
    pub max_bytes: u32,
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
}

/// Readers at the end of a growing log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Connections.
    pub readers: usize,
    /// Largest body of each fetch, bytes.
    pub max_bytes: u32,
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
    /// Length of a measured window.
    pub window_seconds: f64,
    /// Time under load before the window.
    pub warmup_seconds: f64,
    /// Memory of an engine path for the log, bytes; without it, its default.
    #[serde(default)]
    pub memory_len: Option<u64>,
    /// Hot readers.
    #[serde(default)]
    pub hot: Option<Hot>,
    /// Cold readers.
    #[serde(default)]
    pub cold: Option<Cold>,
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
    "fanout-1k",
    "fanout-4k",
    "fanout-16k",
    "fanout-64k",
    "fanout-1m",
    "stream-1m",
    "append-16k",
    "append-1m",
    "tail-1",
    "tail-4",
    "tail-16",
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

    /// The workloads named, in the order named.
    ///
    /// # Errors
    /// `Usage`, listing the names there are.
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

    /// Whether the workload reads data that must first leave the page cache.
    pub fn is_cold(&self) -> bool {
        self.cold.is_some()
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
    Ok(workload)
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
        let main: Vec<_> = Workload::all().into_iter().filter(|w| w.main).map(|w| w.name).collect();
        assert_eq!(main, ["backfill-0", "backfill-1", "fanout-4k", "fanout-64k", "append-16k", "tail-4"]);
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
