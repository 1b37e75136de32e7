//! Rules for sources in Rust.

use super::exceptions::{
    FILE_LINES_MAX, FUNCTION_LINES_MAX, LONG_FILES, LONG_FUNCTIONS, PLANTED_BUGS, PRINTERS, UNSAFE_ELSEWHERE,
    UNSAFE_HOME,
};
use super::{File, Finding, Repository, has_word};

/// Files that have to name what they forbid.
const THIS: &str = "tests/suite/tidy";

pub(super) fn ascii(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in repository.rust() {
        for (number, line) in file.lines() {
            if let Some(c) = line.chars().find(|c| !c.is_ascii()) {
                findings.push(file.finding(number, format!("{:?} is not ASCII; write an escape", c)));
            }
        }
    }
    findings
}

pub(super) fn headers(repository: &Repository) -> Vec<Finding> {
    let bare = |text: &str| !text.starts_with("//!") && !text.starts_with("#![");
    repository
        .rust()
        .filter(|file| bare(&file.text))
        .map(|file| file.finding(1, "begin with `//!`: what this is, what it owns, what always holds"))
        .collect()
}

pub(super) fn file_lengths(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in repository.rust() {
        let lines = file.text.lines().count();
        let exception = LONG_FILES.iter().find(|(path, ..)| *path == file.path);
        let max = exception.map_or(FILE_LINES_MAX, |(_, max, _)| *max);
        if lines > max {
            findings.push(file.finding(0, format!("{lines} lines, at most {max}; split it")));
        } else if exception.is_some() && lines <= FILE_LINES_MAX {
            findings.push(file.finding(0, "short enough: remove it from LONG_FILES"));
        }
    }
    let gone = LONG_FILES.iter().filter(|(path, ..)| repository.file(path).is_none());
    findings.extend(gone.map(|(path, ..)| stale(path)));
    findings
}

pub(super) fn function_lengths(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut needed = vec![false; LONG_FUNCTIONS.len()];
    for file in repository.rust() {
        for Function { name, line, lines } in functions(&file.text) {
            let exception = LONG_FUNCTIONS.iter().position(|(path, n, ..)| *path == file.path && *n == name);
            let max = exception.map_or(FUNCTION_LINES_MAX, |index| LONG_FUNCTIONS[index].2);
            if lines > FUNCTION_LINES_MAX
                && let Some(index) = exception
            {
                needed[index] = true;
            }
            if lines > max {
                findings.push(file.finding(line, format!("`{name}` has {lines} lines, at most {max}")));
            }
        }
    }
    let spare = LONG_FUNCTIONS.iter().zip(needed).filter(|(_, needed)| !needed);
    findings.extend(spare.map(|((path, ..), _)| stale(path)));
    findings
}

fn stale(path: &str) -> Finding {
    Finding { path: path.to_owned(), line: 0, what: "an exception for it is not needed any more".to_owned() }
}

/// A function with a body of its own lines.
pub(super) struct Function {
    pub(super) name: String,
    /// Its `fn`, from 1.
    pub(super) line: usize,
    pub(super) lines: usize,
}

/// Functions of a file that rustfmt has laid out: one ends at the first brace that stands as far left as its `fn`.
pub(super) fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let ends = |line: &&str| [';', '{', '}'].iter().any(|c| line.trim_end().ends_with(*c));
        let Some(head) = lines[index..].iter().find(|line| ends(line)) else { continue };
        if !head.trim_end().ends_with('{') {
            continue; // a declaration, or a body on the same line
        }
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(len) = lines[index..].iter().position(|line| *line == close) {
            found.push(Function { name: name.to_owned(), line: index + 1, lines: len + 1 });
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if rest.starts_with("//") {
        return None;
    }
    if let Some(after) = rest.strip_prefix("pub") {
        rest = match after.strip_prefix('(') {
            Some(scope) => scope.split_once(") ")?.1,
            None => after.strip_prefix(' ')?,
        };
    }
    for qualifier in ["const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(qualifier).unwrap_or(rest);
    }
    let name = rest.strip_prefix("fn ")?;
    name.split(['(', '<']).next()
}

pub(super) fn unsafe_code(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut needed = vec![false; UNSAFE_ELSEWHERE.len()];
    for file in repository.rust() {
        if file.path.starts_with(UNSAFE_HOME) || file.path.starts_with(THIS) {
            continue;
        }
        for (number, line) in file.lines() {
            let code = line.split("//").next().unwrap_or(line);
            if !["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|u| code.contains(u)) {
                continue;
            }
            match UNSAFE_ELSEWHERE.iter().position(|(path, _)| *path == file.path) {
                Some(index) => needed[index] = true,
                None => findings.push(file.finding(number, format!("unsafe code belongs to {UNSAFE_HOME}"))),
            }
        }
    }
    let spare = UNSAFE_ELSEWHERE.iter().zip(needed).filter(|(_, needed)| !needed);
    findings.extend(spare.map(|((path, _), _)| stale(path)));
    findings
}

pub(super) fn banned_words(repository: &Repository) -> Vec<Finding> {
    const NEVER: [&str; 7] = ["todo!", "unimplemented!", "dbg!", "TODO", "FIXME", "fixme", "XXX"];
    const PRINT: [&str; 4] = ["println!", "eprintln!", "print!", "eprint!"];
    let mut findings = Vec::new();
    for file in repository.rust().filter(|file| !file.path.starts_with(THIS)) {
        let may_print = is_test(&file.path) || PRINTERS.iter().any(|printer| file.path.starts_with(printer));
        for (number, line) in file.lines() {
            let is_doc = line.trim_start().starts_with("//");
            let words = NEVER.iter().chain(PRINT.iter().filter(|_| !may_print && !is_doc));
            for word in words.filter(|word| has_word(line, word)) {
                findings.push(file.finding(number, format!("`{word}` does not belong here")));
            }
        }
    }
    findings
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

pub(super) fn core_does_no_io(repository: &Repository) -> Vec<Finding> {
    const WORLD: [&str; 9] = [
        "std::fs",
        "std::net",
        "std::thread",
        "std::os",
        "std::env",
        "std::process",
        "Instant::now",
        "SystemTime::now",
        "RandomState",
    ];
    let mut findings = Vec::new();
    let is_core = |file: &&File| {
        let path = &file.path;
        path.starts_with("engine/core/src/") && !is_test(path) && path != PLANTED_BUGS
    };
    for file in repository.rust().filter(is_core) {
        for (number, line) in file.lines() {
            let code = line.split("//").next().unwrap_or(line);
            for word in WORLD.iter().filter(|word| has_word(code, word)) {
                findings.push(file.finding(number, format!("`{word}`: the core is told, it does not look")));
            }
        }
    }
    findings
}
