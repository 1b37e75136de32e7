//! What the rules let pass, each with its reason. The numbers only ever go down.

/// Lines of a source file.
pub(super) const FILE_LINES_MAX: usize = 400;

/// Lines of a function, from `fn` to its closing brace.
pub(super) const FUNCTION_LINES_MAX: usize = 70;

/// Files that may be longer: path, lines at most, reason.
pub(super) const LONG_FILES: &[(&str, usize, &str)] = &[
    ("bench-harness/src/server/epoll.rs", 450, "one event loop that the baselines share"),
    ("engine/core/src/format/names.rs", 425, "one table of names"),
    ("engine/sim/src/oracle.rs", 500, "one model of a partition"),
];

/// Functions that may be longer: path, name, lines at most, reason.
pub(super) const LONG_FUNCTIONS: &[(&str, &str, usize, &str)] = &[];

/// Folder whose code may be unsafe.
pub(super) const UNSAFE_HOME: &str = "engine/linux/";

/// Files outside of it that may be, too: path, reason.
pub(super) const UNSAFE_ELSEWHERE: &[(&str, &str)] =
    &[("tests/no_alloc/counting.rs", "a global allocator, in a test binary of its own")];

/// The one file of the core that may look at the world: which bug is planted in a process, in no shipped build.
pub(super) const PLANTED_BUGS: &str = "engine/core/src/planted.rs";

/// Where something may be printed: folders and files whose job it is to talk to a terminal, and tests.
pub(super) const PRINTERS: &[&str] = &[
    "tests/",
    "engine/examples/",
    "engine/tests/",
    "engine/sim/src/bin/",
    "bench-harness/",
    "engine/linux/tests/",
    "engine/linux/src/testing/",
];

/// Hosts that a text may name.
pub(super) const HOSTS: &[&str] = &[
    "github.com",
    "keepachangelog.com",
    "semver.org",
    "rustup.rs",
    "maven.apache.org",
    "www.apache.org",
    "kafka.apache.org",
    "issues.apache.org",
    "www.w3.org",
    "lwn.net",
    "kernel.org",
    "man7.org",
];
