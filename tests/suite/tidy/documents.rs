//! Rules for documents, and for what sources cite from them.

use std::collections::BTreeSet;

use super::exceptions::HOSTS;
use super::{File, Finding, Repository, citations};

/// Where figures come from.
const RESULTS: &str = "bench-harness/results/";

/// Where invariants are written down.
const INVARIANTS: &str = "engine/docs/INVARIANTS.md";

/// Text that only makes sense on somebody's machine.
pub(super) fn machine_paths(repository: &Repository) -> Vec<Finding> {
    // In two halves, so that this file is no violation.
    let homes = [("/ho", "me/"), ("/Use", "rs/"), ("/ro", "ot/"), ("/wo", "rk/"), ("/mn", "t/data")];
    let homes = homes.map(|(a, b)| format!("{a}{b}"));
    let mut findings = Vec::new();
    for file in &repository.files {
        for (number, line) in file.lines() {
            for home in homes.iter().filter(|home| names_folder(line, home)) {
                findings.push(file.finding(number, format!("`{home}` is a folder of one machine")));
            }
            for host in hosts(line).filter(|host| !is_known(host)) {
                findings
                    .push(file.finding(number, format!("`{host}` is not among the hosts in exceptions.rs")));
            }
        }
    }
    findings
}

/// Whether an absolute path begins with `folder`; `src/work/x` does not.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"_-.}/*".contains(c))
    })
}

fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").filter_map(move |(at, _)| {
        let scheme = line[..at].ends_with("http") || line[..at].ends_with("https");
        let rest = &line[at + 3..];
        let end =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-').unwrap_or(rest.len());
        (scheme && end > 0).then(|| &rest[..end])
    })
}

fn is_known(host: &str) -> bool {
    HOSTS.contains(&host) || host == "localhost" || host.starts_with("127.")
}

/// Numbers defined by headings (`## I4 ...`) or table rows (`| U4 | ...`).
fn defined(file: Option<&File>, letter: char) -> BTreeSet<u32> {
    let lines = file.into_iter().flat_map(|file| file.text.lines());
    let heads = lines.filter_map(|line| {
        let head = line
            .strip_prefix("## ")
            .or_else(|| line.strip_prefix("### "))
            .or_else(|| line.strip_prefix("| "))?;
        head.split([' ', ':', '.', '|']).next()
    });
    heads.flat_map(|head| citations(head, letter)).collect()
}

/// I1 and on.
pub(super) fn invariants(repository: &Repository) -> Vec<Finding> {
    let mut findings = numbers(repository, 'I', INVARIANTS);
    findings.extend(tests_named(repository));
    findings
}

/// U1 and on.
pub(super) fn unsafe_reasons(repository: &Repository) -> Vec<Finding> {
    numbers(repository, 'U', "engine/linux/UNSAFE.md")
}

/// What is cited is written down, what is written down is cited, and the numbers have no holes.
fn numbers(repository: &Repository, letter: char, document: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let defined = defined(repository.file(document), letter);
    let mut cited = BTreeSet::new();
    for file in repository.rust().filter(|file| !file.path.starts_with("tests/suite/tidy")) {
        for (number, line) in file.lines() {
            let Some(text) = citing(line, letter) else { continue };
            for invariant in citations(text, letter) {
                cited.insert(invariant);
                if !defined.contains(&invariant) {
                    let what = format!("{letter}{invariant} is not in {document}");
                    findings.push(file.finding(number, what));
                }
            }
        }
    }
    let document = |what| Finding { path: document.to_owned(), line: 0, what };
    let spare = defined.iter().filter(|number| !cited.contains(number));
    findings.extend(spare.map(|number| document(format!("no source cites {letter}{number}"))));
    let last = defined.last().copied().unwrap_or(0);
    let holes = (1..=last).filter(|number| letter == 'I' && !defined.contains(number));
    findings.extend(holes.map(|number| document(format!("{letter}{number} is missing between the others"))));
    findings
}

/// Tests that INVARIANTS.md names exist: whatever stands in back quotes behind `- Tests:`, up to the next blank line.
fn tests_named(repository: &Repository) -> Vec<Finding> {
    let Some(file) = repository.file(INVARIANTS) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut inside = false;
    for (number, line) in file.lines() {
        inside = line.starts_with("- Tests:") || (inside && line.starts_with(' '));
        for name in line.split('`').skip(1).step_by(2).filter(|_| inside) {
            let head = format!("fn {name}(");
            if !repository.rust().any(|source| source.text.contains(&head)) {
                findings.push(file.finding(number, format!("there is no test `{name}`")));
            }
        }
    }
    findings
}

/// The part of a line that may cite: a comment, or a string.
fn citing(line: &str, letter: char) -> Option<&str> {
    let comment = line.find("//").map(|at| &line[at..]);
    let string = line.find('"').map(|at| &line[at..]);
    let text = comment.or(string)?;
    text.contains(letter).then_some(text)
}

/// Links and paths in documents lead to files of the repository.
pub(super) fn links(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in repository.markdown() {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (number, line) in file.lines() {
            for target in targets(line) {
                let path = target.split('#').next().unwrap_or(target);
                if path.is_empty() || path.contains("://") || repository.contains(&resolve(folder, path)) {
                    continue;
                }
                findings.push(file.finding(number, format!("`{path}` does not exist")));
            }
            let is_there =
                |path: &&str| repository.contains(path) || repository.contains(&resolve(folder, path));
            for path in quoted_paths(line).filter(|path| !is_there(path)) {
                findings.push(file.finding(number, format!("`{path}` does not exist")));
            }
        }
    }
    findings
}

fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(move |(at, _)| line[at + 2..].split(')').next())
}

/// Paths from the root of the repository in back quotes; patterns and placeholders are left alone.
fn quoted_paths(line: &str) -> impl Iterator<Item = &str> {
    const TOP: [&str; 7] =
        ["engine/", "bench-harness/", "tests/", "broker/", "flamegraphs/", ".ci/", ".cargo/"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let quoted = line.split('`').skip(1).step_by(2);
    quoted
        .filter(move |path| TOP.iter().any(|top| path.starts_with(top)) && path.chars().all(plain))
        .filter(|path| !path.starts_with(RESULTS))
}

fn resolve(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A table with figures in the README follows a line that names the result file they come from.
pub(super) fn figures(repository: &Repository) -> Vec<Finding> {
    let Some(file) = repository.file("README.md") else {
        return vec![Finding { path: "README.md".to_owned(), line: 0, what: "it is missing".to_owned() }];
    };
    let mut findings = Vec::new();
    let mut source = None;
    for (number, line) in file.lines() {
        if line.starts_with('#') {
            source = None;
        }
        if let Some(at) = line.find(RESULTS) {
            let path = &line[at..];
            let end = path.find(|c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c));
            source = Some(path[..end.unwrap_or(path.len())].trim_end_matches('.'));
        }
        if !line.starts_with('|') || !line.split('|').any(is_figure) {
            continue;
        }
        match source {
            Some(path) if repository.contains(path) => {}
            Some(path) => findings.push(file.finding(number, format!("`{path}` does not exist"))),
            None => {
                findings.push(file.finding(number, format!("name the file in {RESULTS} this comes from")))
            }
        }
    }
    findings
}

fn is_figure(cell: &str) -> bool {
    cell.trim().trim_start_matches(['<', '~', '*']).starts_with(|c: char| c.is_ascii_digit())
}

/// What is to be read at one sitting.
pub(super) fn lengths(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, max) in [("engine/docs/ARCHITECTURE.md", 300), ("README.md", 250), ("CONTRIBUTING.md", 120)] {
        match repository.file(path) {
            Some(file) if file.text.lines().count() < max => {}
            Some(file) => findings.push(file.finding(0, format!("{max} lines or more"))),
            None => {
                findings.push(Finding { path: path.to_owned(), line: 0, what: "it is missing".to_owned() })
            }
        }
    }
    findings
}
