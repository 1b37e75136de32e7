//! The binary end to end: quick runs on a small corpus, what it says when asked for nonsense, and that a directory
//! given with `--segments` is only read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use rohrpost_bench::corpus::generate::{Shape, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SMALL: Shape = Shape { cold_segments: 2, segment_len: 4 << 20, hot_len: 20 << 20 };

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rohrpost-bench")).args(args).output().expect("the binary runs")
}

/// A directory on a real filesystem: direct I/O does not work on tmpfs.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

fn run(dir: &Path, args: &[&str]) -> (Output, Vec<Value>) {
    let json = dir.join("out.jsonl");
    let mut all = vec!["run", "--rounds", "1"];
    if !args.contains(&"--seconds") {
        all.extend(["--seconds", "0.3"]);
    }
    let (dir, json_arg) = (dir.to_str().unwrap(), json.to_str().unwrap());
    all.extend(["--data-dir", dir, "--json", json_arg]);
    if args.contains(&"--seconds") {
        all.drain(3..5);
    }
    all.extend(args);
    let output = bench(&all);
    let text = fs::read_to_string(&json).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
    (output, lines)
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_ran(output: &Output) {
    assert!(output.status.success(), "{}\n{}", stdout(output), stderr(output));
}

/// Fetch: every path passes its verification, delivers something, and is summed up with its ratios.
#[test]
fn a_quick_fetch_run_measures_every_path() {
    let dir = scratch();
    let segments = ensure(dir.path(), SMALL, |_, _| {}).unwrap();
    let paths = "null,read_write,sendfile_epoll,send_epoll,sendfile_epoll_directpool,skeleton,engine_poll";
    let args = ["--workload", "fanout-4k,fanout-64k", "--paths", paths, "--segments"];
    let (output, lines) = run(dir.path(), &[&args[..], &[segments.to_str().unwrap()]].concat());
    assert_ran(&output);
    assert_eq!(of_kind(&lines, "host").len(), 1);
    assert!(of_kind(&lines, "skipped").is_empty(), "{:?}", of_kind(&lines, "skipped"));
    for kind in ["round", "series", "summary"] {
        assert_eq!(of_kind(&lines, kind).len(), 14, "{kind}");
    }
    for round in of_kind(&lines, "round") {
        assert!(round["gb_per_s"].as_f64().unwrap() > 0.0, "{round}");
        assert!(round["samples"].as_u64().unwrap() > 0, "{round}");
        assert!(round["p50_us"].as_f64().unwrap() > 0.0, "{round}");
        assert_eq!(round["cold_gb_per_s"], Value::Null);
    }
    for summary in of_kind(&lines, "summary") {
        let ratio = summary["ratio"].as_object().unwrap();
        assert!(ratio.keys().all(|name| name != "null" && *name != summary["path"]));
        assert_eq!(ratio.is_empty(), summary["path"] == "null", "{summary}");
        let hgrm = format!("{}.{}.hgrm", summary["workload"], summary["path"]).replace('"', "");
        assert!(dir.path().join("out.hgrm").join(&hgrm).is_file(), "{hgrm}");
    }
    assert!(stdout(&output).contains("~ no difference shown"));
}

/// Many connections, and connections at places of their own.
#[test]
fn many_and_spread_readers_are_served() {
    let dir = scratch();
    let segments = ensure(dir.path(), SMALL, |_, _| {}).unwrap();
    let args =
        ["--workload", "fanout-64k-512,spread-64k", "--paths", "sendfile_epoll,engine_poll", "--segments"];
    let (output, lines) = run(dir.path(), &[&args[..], &[segments.to_str().unwrap()]].concat());
    assert_ran(&output);
    let rounds = of_kind(&lines, "round");
    assert_eq!(rounds.len(), 4);
    assert!(rounds.iter().all(|round| round["samples"].as_u64().unwrap() > 0), "{rounds:?}");
}

/// Readers that catch up, that come and go, and connections that never read; fio if there is one.
#[test]
fn old_data_is_caught_up_with_and_asked_for_in_vain() {
    let dir = scratch();
    let (paths, corpus) = ("sendfile_epoll,engine_poll,fio_direct", ["--corpus-segments", "4"]);
    let args = ["--workload", "restart-catchup", "--paths", paths, "--seconds", "60"];
    let (output, lines) = run(dir.path(), &[&args[..], &corpus].concat());
    assert_ran(&output);
    let rounds = of_kind(&lines, "round");
    assert_eq!(rounds.len() + of_kind(&lines, "skipped").len(), 3);
    for round in rounds {
        assert!(round["catch_up_gb_per_s"].as_f64().unwrap() > 0.0, "{round}");
        let behind = (1u64 << 30) as f64 / 1e9;
        let delivered = round["cold_gb_per_s"].as_f64().unwrap() * round["seconds"].as_f64().unwrap();
        let readers = if round["path"] == "fio_direct" { 1.0 } else { 4.0 };
        assert!(delivered > readers * behind * 0.9, "{round}");
    }
    let args = ["--workload", "backfill-step,stalled-64", "--paths", "sendfile_epoll,engine_poll"];
    let (output, lines) = run(dir.path(), &[&args[..], &corpus, &["--seconds", "1.0"]].concat());
    assert_ran(&output);
    assert_eq!(of_kind(&lines, "round").len(), 4);
    for (round, series) in of_kind(&lines, "round").iter().zip(of_kind(&lines, "series")) {
        assert!(round["samples"].as_u64().unwrap() > 0, "{round}");
        if round["workload"] == "stalled-64" {
            assert!(round["server_memory_growth_bytes"].is_number(), "{round}");
            continue;
        }
        assert!(
            round["step_p50_us_before"].is_number() && round["step_p50_us_during"].is_number(),
            "{round}"
        );
        let cold = |point: &&Value| point["cold_bytes"].as_u64().unwrap() > 0;
        let points = series["points"].as_array().unwrap();
        let first = points.iter().find(cold).expect("a cold byte")["t_ms"].as_u64().unwrap();
        assert!(first > 500, "cold readers began before their time: {series}");
    }
}

/// Append and tail: what is acknowledged was found in the files before anything was timed.
#[test]
fn a_quick_append_run_measures_every_path() {
    let dir = scratch();
    let paths = "write_fdatasync,write_fdatasync_8,write_group_fdatasync,engine_poll";
    let (output, lines) = run(dir.path(), &["--workload", "append-16k,tail-4", "--paths", paths]);
    assert_ran(&output);
    let rounds = of_kind(&lines, "round");
    assert_eq!(rounds.len(), 6);
    for round in rounds {
        assert!(round["mb_per_s"].as_f64().unwrap() > 0.0, "{round}");
        assert!(round["acks_per_s"].as_f64().unwrap() > 0.0, "{round}");
        let delivers = round["gb_per_s"].as_f64().is_some_and(|rate| rate > 0.0);
        assert_eq!(delivers, round["workload"] == "tail-4", "{round}");
    }
    // The two paths without tail readers, by name and with the reason.
    assert_eq!(of_kind(&lines, "skipped").len(), 2);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("scratch")), "{left:?}");
}

/// Producers with a schedule: at a rate, beside a flood, with readers behind it and with cold readers beside it. Each
/// field that a workload is there for has a value, on a baseline and on the engine.
#[test]
fn a_quick_scheduled_run_measures_every_path() {
    let dir = scratch();
    let workloads = "tail-1-rate,tail-4-socket,flood,lag-64m-small,backfill-append-0,backfill-append-1";
    let paths = "write_fdatasync,write_group_fdatasync,engine_poll";
    let args = ["--workload", workloads, "--paths", paths, "--seconds", "0.1"];
    let (output, lines) = run(dir.path(), &args);
    assert_ran(&output);
    let fields = [
        ("tail-1-rate", &["e2e_p50_us", "gb_per_s", "served_per_s"][..]),
        ("tail-4-socket", &["gb_per_s"]),
        ("flood", &["flood_mb_per_s", "offered_per_s"]),
        ("lag-64m-small", &["lag_p50_us", "gb_per_s"]),
        ("backfill-append-0", &["served_per_s"]),
        // The CPU of a cold MB is a difference of two windows, and of windows this short it may have any sign.
        ("backfill-append-1", &["cold_gb_per_s"]),
    ];
    for (workload, fields) in fields {
        let of = |line: &&&Value| line["workload"] == workload;
        let rounds = of_kind(&lines, "round");
        let ran: Vec<_> = rounds.iter().filter(of).collect();
        // Where memory cgroups are forbidden, the baseline of a comparison at equal memory is skipped.
        let skipped = of_kind(&lines, "skipped");
        let skipped: Vec<_> = skipped.iter().filter(of).collect();
        assert_eq!((ran.len() + skipped.len(), !ran.is_empty()), (3, true), "{workload}: {skipped:?}");
        for round in ran {
            for field in fields.iter().chain(&["mb_per_s", "acks_per_s", "p50_us"]) {
                assert!(round[*field].as_f64().is_some_and(|value| value > 0.0), "{field} of {round}");
            }
        }
    }
}

/// Bytes and times of change of everything below a directory, itself included.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, (i64, i64, i64, i64, Vec<u8>)> {
    let mut state = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = fs::metadata(&path).unwrap();
        let bytes = if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), bytes);
        state.insert(path, times);
    }
    state
}

/// `--segments` reads: no lock file, no side file, no truncation of the torn tail that a crash left, no byte and no
/// time of change different, nothing new beside it.
#[test]
fn a_given_partition_is_left_untouched() {
    let dir = scratch();
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let made = ensure(dir.path(), SMALL, |_, _| {}).unwrap();
    let partition = theirs.join("orders-3");
    fs::rename(made, &partition).unwrap();
    // A torn tail: a reader stops before it, a recovery would cut it.
    let last = fs::read_dir(&partition)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max()
        .unwrap();
    let mut bytes = fs::read(&last).unwrap();
    bytes.extend_from_within(0..100);
    fs::write(&last, bytes).unwrap();
    let before = state_of(&theirs);
    let paths = "sendfile_epoll,sendfile_epoll_directpool,engine_poll,engine";
    let args = ["--workload", "fanout-64k", "--paths", paths, "--segments", partition.to_str().unwrap()];
    let (output, lines) = run(dir.path(), &args);
    assert_ran(&output);
    let ran = of_kind(&lines, "round").len();
    // Where io_uring is forbidden, `engine` is skipped with the reason.
    assert_eq!(ran + of_kind(&lines, "skipped").len(), 4);
    assert!(ran >= 3, "{:?}", of_kind(&lines, "skipped"));
    let after = state_of(&theirs);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (path, state) in &before {
        assert!(after[path] == *state, "{} was changed", path.display());
    }
}

/// A log too small for cold readers is skipped with the reason, and the run goes on.
#[test]
fn a_workload_too_large_for_the_log_is_skipped() {
    let dir = scratch();
    let segments = ensure(dir.path(), SMALL, |_, _| {}).unwrap();
    let args = ["--workload", "backfill-1,fanout-1k", "--paths", "sendfile_epoll", "--segments"];
    let (output, lines) = run(dir.path(), &[&args[..], &[segments.to_str().unwrap()]].concat());
    assert_ran(&output);
    let skipped = of_kind(&lines, "skipped");
    assert_eq!((skipped.len(), &skipped[0]["workload"]), (1, &Value::from("backfill-1")));
    assert!(skipped[0]["reason"].as_str().unwrap().contains("256 MiB"));
    assert_eq!(of_kind(&lines, "round").len(), 1);
    assert!(stdout(&output).contains("skipped backfill-1"));
}

/// Asked for what does not exist, it says what there is, and exits with 2.
#[test]
fn nonsense_is_answered_with_cause_and_remedy() {
    let dir = scratch();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let (file, nowhere) = (file.to_str().unwrap().to_string(), dir.path().join("nowhere"));
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--workload", "fanout-5k"], 2, "fanout-4k"),
        (&["--paths", "warp"], 2, "sendfile_epoll"),
        (&["--server-core", "4095"], 2, "--server-core"),
        (&["--client-core", "4095"], 2, "--client-core"),
        (&["--segments", nowhere.to_str().unwrap()], 2, "no such directory"),
        (&["--mask-features", "warp"], 2, "single_issuer"),
        (&["--rounds", "0"], 2, "--rounds"),
        (&["--pool-chunk-kib", "3"], 2, "multiple of 4"),
        (&["--segments", dir.path().to_str().unwrap()], 1, "partition directory"),
        (&["--data-dir", &file, "--json", "/dev/null"], 1, "cannot create"),
    ];
    for (args, code, says) in cases {
        let mut all = vec!["run"];
        if !args.contains(&"--data-dir") {
            all.extend(["--data-dir", dir.path().to_str().unwrap()]);
        }
        if !args.contains(&"--workload") {
            all.extend(["--workload", "fanout-64k"]);
        }
        all.extend(*args);
        let output = bench(&all);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(bench(&["--no-such-flag"]).status.code(), Some(2));
}

/// `list` names what `run` takes.
#[test]
fn list_names_workloads_and_paths() {
    let text = stdout(&bench(&["list"]));
    for name in ["backfill-1", "tail-16", "sendfile_epoll_directpool", "engine_poll", "write_group_fdatasync"]
    {
        assert!(text.contains(name), "{name} in\n{text}");
    }
}

/// `doctor` prints the bill of both profiles.
#[test]
fn doctor_prints_bills() {
    let output = bench(&["doctor"]);
    assert_ran(&output);
    let text = stdout(&output);
    for words in ["with default limits", "with small limits", "arena: appends and read cache"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

/// A run of `append-16k` that is under way, and its scratch directory.
fn begin_run(dir: &Path) -> (Child, PathBuf) {
    let json = dir.join("out.jsonl");
    let mut child = Command::new(env!("CARGO_BIN_EXE_rohrpost-bench"))
        .args(["run", "--workload", "append-16k", "--paths", "write_fdatasync", "--seconds", "30"])
        .args(["--data-dir", dir.to_str().unwrap(), "--json", json.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let scratch_dir = dir.join(format!("scratch-{}", child.id()));
    let segments = scratch_dir.join("append-16k-write_fdatasync");
    let started = || segments.exists() && fs::metadata(&json).is_ok_and(|meta| meta.len() > 0);
    while !started() {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, scratch_dir)
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A signal amid a run, once or twice as `timeout` sends it: exit code 130, children gone, scratch files gone, the lines
/// so far kept.
#[test]
fn an_interrupted_run_cleans_up() {
    for signals in [&[Signal::INT][..], &[Signal::TERM, Signal::TERM]] {
        let dir = scratch();
        let (mut child, scratch_dir) = begin_run(dir.path());
        for signal in signals {
            kill(&child, *signal);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signals:?}");
        assert!(!scratch_dir.exists(), "{signals:?}");
        let text = fs::read_to_string(dir.path().join("out.jsonl")).unwrap();
        assert!(text.lines().next().is_some_and(|line| line.contains("\"host\"")));
    }
}

/// A run that was killed leaves its scratch directory behind, and the next one removes it; not that of a run that lives.
#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let dir = scratch();
    let (mut child, left) = begin_run(dir.path());
    kill(&child, Signal::KILL);
    child.wait().unwrap();
    let alive = dir.path().join("scratch-1");
    fs::create_dir_all(alive.join("tail-1")).unwrap();
    let lock = fs::File::open(&alive).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert!(left.exists(), "a killed process cleans nothing up");
    let args = ["--workload", "append-16k", "--paths", "write_fdatasync"];
    assert_ran(&run(dir.path(), &args).0);
    assert!(!left.exists() && alive.join("tail-1").exists());
    drop(lock);
    assert_ran(&run(dir.path(), &args).0);
    assert!(!alive.exists(), "nobody holds it any more");
}
