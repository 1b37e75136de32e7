//! `rohrpost-bench flame` end to end: pictures with their records, with perf where it may be used, and without.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn flame(dir: &Path, with_perf: bool, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rohrpost-bench"));
    command.args(["flame", "--workload", "append-16k", "--rounds", "1", "--seconds", "0.5"]);
    command.arg("--out").arg(dir.join("out")).arg("--data-dir").arg(dir).args(args);
    if !with_perf {
        command.env("PATH", "");
    }
    command.output().expect("the binary runs")
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

fn record(dir: &Path, name: &str) -> (String, Value) {
    let svg = fs::read_to_string(dir.join("out").join(format!("{name}.svg"))).expect("a picture");
    let lines = fs::read_to_string(dir.join("out").join(format!("{name}.jsonl"))).expect("a record");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["host", "flame", "round"]);
    (svg, lines[1].clone())
}

/// Without perf: the cause and the remedy on standard error, and a picture that names how it was made.
#[test]
fn without_perf_a_picture_of_user_frames_is_drawn_and_says_so() {
    let dir = scratch();
    let output = flame(dir.path(), false, &["--path", "write_group_fdatasync"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    for word in ["no perf", "linux-perf", "user frames only"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
    let (svg, record) = record(dir.path(), "append-16k-write_group_fdatasync");
    assert_eq!(record["sampler"], "timer signal, user frames only");
    assert!(record["samples"].as_u64().unwrap() > 0, "{record}");
    assert!(record["unknown_share"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{record}");
    assert!(!record["command"].as_str().unwrap().contains('/'), "{record}");
    assert!(svg.contains("user frames only") && svg.contains("write_group_fdatasync"));
}

/// Two paths: a picture each, and one of the difference. Samples are gone afterwards.
#[test]
fn a_difference_is_drawn_with_whatever_may_be_used() {
    let dir = scratch();
    let args = ["--path", "write_group_fdatasync", "--diff", "write_fdatasync"];
    let output = flame(dir.path(), true, &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["write_group_fdatasync", "write_fdatasync"] {
        let (svg, record) = record(dir.path(), &format!("append-16k-{name}"));
        assert!(record["samples"].as_u64().unwrap() > 0, "{record}");
        // With kernel frames, what both paths do is there by its name.
        if record["sampler"] == "perf, kernel frames" {
            assert!(svg.contains("fdatasync"), "{name}");
        }
    }
    let difference = "append-16k-write_group_fdatasync-against-write_fdatasync.svg";
    assert!(fs::read_to_string(dir.path().join("out").join(difference)).unwrap().contains("<svg"));
    let left = fs::read_dir(dir.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.starts_with("samples")), "{left:?}");
}

/// A path that cannot run the workload is an error of the caller, by name, and nothing is drawn.
#[test]
fn a_path_that_does_not_fit_is_refused() {
    let dir = scratch();
    let output = flame(dir.path(), true, &["--path", "sendfile_epoll"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sendfile_epoll cannot run append-16k"));
    assert!(!dir.path().join("out/append-16k-sendfile_epoll.svg").exists());
}
