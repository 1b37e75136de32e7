//! Tidy: what the conventions ask for and a compiler does not check. `cargo tidy` runs these alone.
//!
//! Every rule is a function from the repository's text files to findings, so that its own test can plant a violation
//! in a repository of two files. Exceptions stand in [`exceptions`], each with its reason; one that is no longer
//! needed is a finding too.

mod documents;
mod exceptions;
mod manifests;
mod planted;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

/// One violation.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

/// A text file of the repository.
struct File {
    /// Relative to the root, with forward slashes.
    path: String,
    text: String,
}

/// Every text file, and the paths of all files.
struct Repository {
    files: Vec<File>,
    paths: Vec<String>,
}

impl Repository {
    fn read() -> Self {
        let root = root();
        let paths = tracked(&root).unwrap_or_else(|| {
            let mut paths = Vec::new();
            walk(&root, &root, &mut paths);
            paths
        });
        let read = |path: &String| {
            let bytes = std::fs::read(root.join(path)).ok()?;
            Some(File { path: path.clone(), text: String::from_utf8(bytes).ok()? })
        };
        let golden = |path: &&String| path.starts_with("tests/golden/") && path.contains("/log/");
        let files = paths.iter().filter(|path| !golden(path)).filter_map(read).collect();
        Self { files, paths }
    }

    fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Sources in Rust.
    fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// Documents.
    fn markdown(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".md"))
    }

    /// Whether a file or folder of that path is part of the repository.
    fn contains(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.paths.iter().any(|known| known == path || known.starts_with(&folder))
    }
}

impl File {
    fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }

    /// Lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

fn root() -> PathBuf {
    let tests = rohrpost_tests::golden::crate_dir();
    tests.parent().expect("the test crate lies in the repository").to_owned()
}

/// What git knows of, new files included; `None` outside of a clone.
fn tracked(root: &Path) -> Option<Vec<String>> {
    let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
    let paths = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<_> =
        paths.split('\0').filter(|path| root.join(path).is_file()).map(str::to_owned).collect();
    (output.status.success() && !paths.is_empty()).then_some(paths)
}

fn walk(root: &Path, dir: &Path, paths: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("the repository can be read").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "target" && name != ".git" {
                walk(root, &path, paths);
            }
        } else if let Ok(relative) = path.strip_prefix(root) {
            paths.push(relative.to_string_lossy().into_owned());
        }
    }
}

/// Whether `word` stands in `line` by itself, not inside a longer identifier.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_part);
        let after = line[at + word.len()..].chars().next().is_some_and(is_part);
        !before && !after
    })
}

/// Numbers cited with a letter, `I7` or `U12`.
fn citations(line: &str, letter: char) -> Vec<u32> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in line.match_indices(letter) {
        if line[..at].chars().next_back().is_some_and(is_part) {
            continue;
        }
        let rest = &line[at + 1..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let ends = rest[digits..].chars().next().is_none_or(|c| !is_part(c));
        if let (true, Ok(number)) = (ends, rest[..digits].parse()) {
            found.push(number);
        }
    }
    found
}

#[track_caller]
fn check(rule: fn(&Repository) -> Vec<Finding>) {
    let findings = rule(&Repository::read());
    let lines: Vec<_> = findings.iter().map(|f| format!("{}:{}: {}", f.path, f.line, f.what)).collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), lines.join("\n"));
}

/// Nothing in the repository depends on where somebody has put it.
#[test]
fn no_machine_paths_and_no_unknown_hosts() {
    check(documents::machine_paths);
}

#[test]
fn sources_are_ascii() {
    check(sources::ascii);
}

#[test]
fn every_source_says_what_it_is() {
    check(sources::headers);
}

#[test]
fn files_are_short() {
    check(sources::file_lengths);
}

#[test]
fn functions_are_short() {
    check(sources::function_lengths);
}

#[test]
fn unsafe_code_has_one_home() {
    check(sources::unsafe_code);
}

#[test]
fn nothing_is_left_for_later_or_for_debugging() {
    check(sources::banned_words);
}

/// The core is a state machine: what it knows of the world, it is told.
#[test]
fn the_core_does_no_io() {
    check(sources::core_does_no_io);
}

#[test]
fn every_cited_invariant_exists() {
    check(documents::invariants);
}

#[test]
fn every_cited_reason_for_unsafe_code_exists() {
    check(documents::unsafe_reasons);
}

#[test]
fn every_dependency_has_a_reason() {
    check(manifests::reasons);
}

#[test]
fn dependencies_point_in_one_direction() {
    check(manifests::direction);
}

#[test]
fn every_path_in_a_document_resolves() {
    check(documents::links);
}

/// A figure that names no result file cannot be checked.
#[test]
fn every_table_of_figures_names_its_result_file() {
    check(documents::figures);
}

#[test]
fn documents_keep_their_length() {
    check(documents::lengths);
}
