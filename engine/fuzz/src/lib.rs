//! Fuzz targets of the engine, and the mutations that a plain test drives them with.
//!
//! A target takes any bytes. It never panics, allocates no more than a limit that does not depend on what the bytes claim,
//! and does a bounded number of operations; where there is an oracle (what was refused is unchanged, what is served was
//! accepted) it holds. `tests/fixed_seed.rs` runs every target over the committed corpus and a fixed number of seeded
//! mutations of it; `cargo fuzz run TARGET corpus/TARGET` runs the same functions under libFuzzer, for as long as wanted.

pub mod corpus;
pub mod mutate;
mod parse;
mod recovery;
mod session;

/// One target.
pub struct Target {
    /// Its name: that of its corpus' folder, and of libFuzzer's binary.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target { name: "batch", run: parse::batch },
    Target { name: "files", run: parse::files },
    Target { name: "recovery", run: recovery::recovery },
    Target { name: "session", run: session::session },
];

/// Runs a target once.
///
/// # Panics
/// When the target has found something, or there is none of that name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target has this name");
    (target.run)(data);
}
