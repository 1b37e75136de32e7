//! The rules themselves: each finds a planted violation, and nothing beside it.

use super::{File, Finding, Repository, citations, documents, has_word, manifests, sources};

fn repository(files: &[(&str, &str)]) -> Repository {
    let file = |&(path, text): &(&str, &str)| File { path: path.to_owned(), text: text.to_owned() };
    let paths = files.iter().map(|(path, _)| (*path).to_owned()).collect();
    Repository { files: files.iter().map(file).collect(), paths }
}

/// Lines at which `rule` finds something in a file; findings about exceptions elsewhere left out.
#[track_caller]
fn lines(rule: fn(&Repository) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    let findings = rule(&repository(&[(path, text)]));
    findings.iter().filter(|finding| finding.path == path).map(|finding| finding.line).collect()
}

#[test]
fn words_stand_by_themselves() {
    assert!(has_word("let x = dbg!(y);", "dbg!"));
    assert!(!has_word("eprintln!()", "println!"));
    assert_eq!(citations("I2 and (I12), not AI3, I4x or I", 'I'), [2, 12]);
}

#[test]
fn machine_paths_are_found() {
    let home = format!("cd {}someone\n", "/ho".to_owned() + "me/");
    assert_eq!(lines(documents::machine_paths, "a.md", &home), [1]);
    let relative = format!("see src{}x\n", "/wo".to_owned() + "rk/");
    assert_eq!(lines(documents::machine_paths, "a.md", &relative), [0; 0]);
    let unknown = format!("\nfrom https:{}crates\n", "//mirror.example/");
    assert_eq!(lines(documents::machine_paths, "a.md", &unknown), [2]);
    assert_eq!(
        lines(documents::machine_paths, "a.md", "http://127.0.0.1:9092 https://github.com/x\n"),
        [0; 0]
    );
}

#[test]
fn non_ascii_and_bare_sources_are_found() {
    assert_eq!(lines(sources::ascii, "a.rs", "//! x\n// \u{fc}ber\n"), [2]);
    assert_eq!(lines(sources::headers, "a.rs", "use x;\n"), [1]);
    assert_eq!(lines(sources::headers, "a.rs", "//! What.\n"), [0; 0]);
}

#[test]
fn long_files_are_found_at_the_first_line_too_many() {
    assert_eq!(lines(sources::file_lengths, "a.rs", &"x\n".repeat(400)), [0; 0]);
    assert_eq!(lines(sources::file_lengths, "a.rs", &"x\n".repeat(401)), [0]);
}

#[test]
fn long_functions_are_found_at_the_first_line_too_many() {
    let function = |body: usize| {
        format!(
            "    pub(crate) fn f(\n        x: u8,\n    ) -> u8 {{\n{}    }}\n",
            "        x;\n".repeat(body)
        )
    };
    assert_eq!(lines(sources::function_lengths, "a.rs", &function(66)), [0; 0], "70 lines");
    assert_eq!(lines(sources::function_lengths, "a.rs", &function(67)), [1], "71 lines");
    let declared = format!("trait T {{\n    fn f(\n        x: u8,\n    );\n{}}}\n", "    //\n".repeat(80));
    assert_eq!(lines(sources::function_lengths, "a.rs", &declared), [0; 0], "no body");
    let short = format!("const fn f() {{ g() }}\n{}}}\n", "x\n".repeat(80));
    assert_eq!(lines(sources::function_lengths, "a.rs", &short), [0; 0], "a body on the same line");
}

#[test]
fn unsafe_code_outside_its_home_is_found() {
    let text = "//! x\nunsafe { f() }\n// unsafe { }\n#![forbid(unsafe_code)]\nunsafe impl Send for X {}\n";
    assert_eq!(lines(sources::unsafe_code, "engine/core/src/a.rs", text), [2, 5]);
    assert_eq!(lines(sources::unsafe_code, "engine/linux/src/a.rs", text), [0; 0]);
}

#[test]
fn banned_words_are_found_where_they_are_banned() {
    let text = "todo!()\nprintln!()\n// FIXME later\n";
    assert_eq!(lines(sources::banned_words, "engine/core/src/a.rs", text), [1, 2, 3]);
    assert_eq!(lines(sources::banned_words, "bench-harness/src/main.rs", text), [1, 3]);
}

#[test]
fn io_in_the_core_is_found() {
    let text = "use std::fs;\nlet t = Instant::now();\n// no std::thread here\nuse std::fmt;\n";
    assert_eq!(lines(sources::core_does_no_io, "engine/core/src/a.rs", text), [1, 2]);
    assert_eq!(lines(sources::core_does_no_io, "engine/linux/src/a.rs", text), [0; 0]);
}

#[test]
fn unknown_spare_and_missing_invariants_are_found() {
    let document = "# Invariants\n## I1 one\n## I3 three, see I9\n";
    let source = "// I1 holds\nassert!(x, \"I2\");\nlet I7 = 1;\n";
    let files = repository(&[("engine/docs/INVARIANTS.md", document), ("a.rs", source)]);
    let found: Vec<_> = documents::invariants(&files).into_iter().map(|f| (f.path, f.line, f.what)).collect();
    let document = |what: &str| ("engine/docs/INVARIANTS.md".to_owned(), 0, what.to_owned());
    let expected = [
        ("a.rs".to_owned(), 2, "I2 is not in engine/docs/INVARIANTS.md".to_owned()),
        document("no source cites I3"),
        document("I2 is missing between the others"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn tests_that_do_not_exist_are_found() {
    let document = "## I1 one\n- Enforced: `nobody_looks`\n- Tests: `here`,\n  `gone`\n\n`nobody_looks`\n";
    let files = repository(&[("engine/docs/INVARIANTS.md", document), ("a.rs", "// I1\nfn here() {}\n")]);
    let found: Vec<_> = documents::invariants(&files).into_iter().map(|finding| finding.line).collect();
    assert_eq!(found, [4]);
}

#[test]
fn dependencies_without_a_reason_are_found() {
    let text = "[workspace.dependencies]\nours = { path = \"x\" }\na = \"1\" # for this\nb = \"2\"\n\n[profile.x]\nc = 1\n";
    assert_eq!(lines(manifests::reasons, "Cargo.toml", text), [4]);
    let member = "[dependencies]\na.workspace = true\nb = \"2\"\n";
    assert_eq!(lines(manifests::reasons, "x/Cargo.toml", member), [3]);
}

#[test]
fn dependencies_against_the_direction_are_found() {
    let text = "[dependencies]\nbytes.workspace = true\nrohrpost-engine-linux.workspace = true\n";
    assert_eq!(lines(manifests::direction, "engine/core/Cargo.toml", text), [3]);
    assert_eq!(lines(manifests::direction, "engine/Cargo.toml", text), [0; 0]);
}

#[test]
fn dead_links_are_found() {
    let text = "[a](../x.md#part)\n[b](gone.md) [c](https://github.com/x)\n`engine/gone.rs` `tests/<NAME>`\n";
    let files = repository(&[("docs/a.md", text), ("x.md", "")]);
    let found: Vec<_> = documents::links(&files).into_iter().map(|finding| finding.line).collect();
    assert_eq!(found, [2, 3]);
}

#[test]
fn figures_without_a_source_are_found() {
    let table = "| path | p50 |\n|---|---|\n| engine | 12 us |\n";
    let sourced = format!("From `bench-harness/results/main.jsonl`.\n\n{table}");
    assert_eq!(lines(documents::figures, "README.md", table), [3]);
    assert_eq!(lines(documents::figures, "README.md", &sourced), [5], "the file does not exist");
    let files = repository(&[("README.md", &sourced), ("bench-harness/results/main.jsonl", "")]);
    assert_eq!(documents::figures(&files), []);
}

#[test]
fn long_documents_are_found() {
    assert_eq!(lines(documents::lengths, "engine/docs/ARCHITECTURE.md", &"x\n".repeat(299)), [0; 0]);
    assert_eq!(lines(documents::lengths, "engine/docs/ARCHITECTURE.md", &"x\n".repeat(300)), [0]);
}
