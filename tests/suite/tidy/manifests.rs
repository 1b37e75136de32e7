//! Rules for Cargo manifests.

use super::{File, Finding, Repository};

/// Which of our crates each may depend on; anything else is a defect. Test crates may use all.
const DIRECTION: &[(&str, &[&str])] = &[
    ("engine/core", &[]),
    ("engine/linux", &["rohrpost-engine-core"]),
    ("engine/history", &[]),
    ("engine/sim", &["rohrpost-engine-core", "rohrpost-history"]),
    ("engine", &["rohrpost-engine-core", "rohrpost-engine-linux"]),
    ("bench-harness", &["rohrpost-engine", "rohrpost-engine-core", "rohrpost-engine-linux"]),
    ("broker", &["rohrpost-engine"]),
];

/// Lines of one section of a manifest, with their numbers.
fn section<'a>(file: &'a File, name: &str) -> Vec<(usize, &'a str)> {
    let header = format!("[{name}]");
    file.lines()
        .skip_while(|(_, line)| line.trim() != header)
        .skip(1)
        .take_while(|(_, line)| !line.starts_with('['))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect()
}

/// Every third-party crate is pinned in the workspace with a reason; members only refer to it. What stands outside of the
/// workspace, by a `[workspace]` of its own, pins and gives its reasons itself.
pub(super) fn reasons(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    let manifests = repository.files.iter().filter(|file| file.path.ends_with("Cargo.toml"));
    for file in manifests {
        pinned_with_reasons(file, "workspace.dependencies", &mut findings);
        let apart = file.path != "Cargo.toml" && file.lines().any(|(_, line)| line.trim() == "[workspace]");
        for name in ["dependencies", "dev-dependencies", "build-dependencies"] {
            if apart {
                pinned_with_reasons(file, name, &mut findings);
                continue;
            }
            for (number, line) in section(file, name) {
                if !line.starts_with('#') && !line.contains("workspace = true") {
                    findings
                        .push(file.finding(number, "pin it in the workspace, and write `.workspace = true`"));
                }
            }
        }
    }
    findings
}

fn pinned_with_reasons(file: &File, name: &str, findings: &mut Vec<Finding>) {
    let mut commented = false;
    for (number, line) in section(file, name) {
        let (entry, comment) = line.split_once('#').unwrap_or((line, ""));
        let ours = entry.contains("path =");
        // A comment alone on its line heads a group: it does not count for what follows.
        if !entry.trim().is_empty() && !ours && comment.trim().is_empty() && !commented {
            findings.push(file.finding(number, "say behind `#` why this crate is here"));
        }
        commented = entry.trim().is_empty() && comment.trim_start().starts_with("for:");
    }
}

pub(super) fn direction(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, allowed) in DIRECTION {
        let Some(file) = repository.file(&format!("{folder}/Cargo.toml")) else { continue };
        for (number, line) in section(file, "dependencies") {
            let name = line.split(['.', ' ', '=']).next().unwrap_or(line);
            if name.starts_with("rohrpost") && !allowed.contains(&name) {
                findings.push(file.finding(number, format!("{folder} must not depend on {name}")));
            }
        }
    }
    findings
}
