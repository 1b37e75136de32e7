//! Hosts that forbid, lack or break something: how a test gets one, and how it says that it could not.
//!
//! Always holds: what a test changes about its process, its rights or the mounts it sees is changed in a
//! process or thread of its own and ends with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

const ROLE: &str = "ROHRPOST_TEST_ROLE";

/// Says on standard error that `test` was skipped, and why.
///
/// # Panics
/// If the environment has `CI=true`: there nothing is skipped.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{test} cannot be skipped here: {reason}");
    eprintln!("skipped {test}: {reason}");
}

/// Whether the environment says that this machine is slow (`ROHRPOST_TEST_SLOW`), as an emulated one is: tests that repeat
/// a story many times repeat it less often.
pub fn is_slow() -> bool {
    std::env::var_os("ROHRPOST_TEST_SLOW").is_some()
}

/// Whether this kernel counts rings as locked memory; if not, says that `test` was skipped. Linux 6.14 and later do, those
/// from 5.12 on before it did not.
///
/// # Panics
/// As [`skip`].
pub fn counts_rings(test: &str) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let counts = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 14);
    if !counts {
        skip(test, "this kernel does not count rings as locked memory");
    }
    counts
}

/// Runs the calling test in a process of its own. `true` in that process; `false` in the parent, after the
/// child has succeeded. `test` is the test's full name.
///
/// # Panics
/// If the child fails, or runs nothing.
pub fn in_child(test: &str) -> bool {
    is_child(test) || run_child(test, &[])
}

/// As [`in_child`], with mounts of its own: what the child mounts vanishes with it. `false` as well where
/// that is not allowed, after saying so.
///
/// # Panics
/// As [`in_child`].
pub fn in_mounts(test: &str) -> bool {
    if is_child(test) {
        return true;
    }
    let unshare: &[&str] = &["unshare", "--mount", "--propagation", "private"];
    match run(&[unshare, &["mount", "-t", "tmpfs", "none", "/mnt"]].concat()) {
        Ok(_) => run_child(test, unshare),
        Err(reason) => {
            skip(test, &format!("no mounts of its own ({reason}): run as root, with util-linux installed"));
            false
        }
    }
}

/// Whether this process is the one that [`in_child`] or [`in_mounts`] started for `test`.
pub fn is_child(test: &str) -> bool {
    std::env::var(ROLE).as_deref() == Ok(test)
}

/// The command that runs exactly one test of this binary, in the role of its child.
///
/// # Panics
/// If the test binary has no path.
pub fn child_command(test: &str, wrapper: &[&str]) -> Command {
    let program = std::env::current_exe().expect("a test binary knows its path");
    let mut command = match wrapper {
        [] => Command::new(&program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&program);
            command
        }
    };
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, test);
    command
}

fn run_child(test: &str, wrapper: &[&str]) -> bool {
    let output = child_command(test, wrapper).output().expect("the test binary starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test} in a child ({}):\n{text}\n{errors}", output.status);
    assert!(text.contains("1 passed"), "the child ran nothing:\n{text}");
    eprint!("{errors}");
    false
}

/// Runs a command; its standard output, or why it failed.
///
/// # Errors
/// What the command said, or that it is not there.
pub fn run(command: &[&str]) -> Result<String, String> {
    let output: Output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", command[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Mounts a file system at `at`, which is created. Only for children of [`in_mounts`].
///
/// # Errors
/// What `mount` said.
pub fn mount(kind: &str, options: &str, source: &str, at: &Path) -> Result<(), String> {
    std::fs::create_dir_all(at).map_err(|error| format!("{}: {error}", at.display()))?;
    run(&["mount", "-t", kind, "-o", options, source, text(at)]).map(drop)
}

/// Whether files below `at` can be opened around the page cache; a tmpfs has that from Linux 6.6 on.
pub fn takes_direct_io(at: &Path) -> bool {
    let path = at.join("direct");
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::DIRECT;
    let opened = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).is_ok();
    // A kernel that refuses has made the file all the same.
    let _ = std::fs::remove_file(&path);
    opened
}

/// A file that serves as a disk of `sector_len`-byte sectors, detached again when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    device: PathBuf,
}

impl LoopDisk {
    /// Makes `image`, `len` bytes of nothing, a disk with an empty ext4 of 4 KiB blocks.
    ///
    /// # Errors
    /// What `losetup` or `mkfs.ext4` said.
    pub fn ext4(image: &Path, len: u64, sector_len: u32, extra: &[&str]) -> Result<Self, String> {
        let file = std::fs::File::create(image).map_err(|error| format!("{}: {error}", image.display()))?;
        file.set_len(len).map_err(|error| format!("{}: {error}", image.display()))?;
        let sector = sector_len.to_string();
        let device = run(&["losetup", "--sector-size", &sector, "--show", "--find", text(image)])?;
        let disk = Self { device: device.into() };
        let mut mkfs = vec!["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0"];
        mkfs.extend(extra);
        mkfs.push(disk.path());
        run(&mkfs)?;
        Ok(disk)
    }

    /// Makes its ext4, which must be mounted, believe that it has met an error.
    ///
    /// # Errors
    /// When the kernel offers no such thing.
    pub fn break_file_system(&self) -> Result<(), String> {
        let device = self.device.file_name().expect("a device has a name");
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        std::fs::write(&trigger, "made by a test").map_err(|error| format!("{}: {error}", trigger.display()))
    }

    /// The block device.
    pub fn path(&self) -> &str {
        text(&self.device)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Still mounted: it goes with the last user. It is gone already: nothing to do.
        let _ = run(&["losetup", "--detach", text(&self.device)]);
    }
}

/// Lowers a limit of this process, for good. Only for children.
///
/// # Panics
/// If the kernel refuses, which it never does.
pub fn limit(resource: Resource, value: u64) {
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(resource, limit).expect("limits may be lowered");
}

/// A process without a free descriptor, until it is dropped. Only for children.
#[derive(Debug)]
pub struct NoDescriptors {
    before: Rlimit,
    _fillers: Vec<File>,
}

impl NoDescriptors {
    /// Takes every descriptor that a lowered limit leaves.
    ///
    /// # Panics
    /// If `/proc` is missing.
    pub fn take() -> Self {
        let before = getrlimit(Resource::Nofile);
        let entries = std::fs::read_dir("/proc/self/fd").expect("proc is mounted");
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
        let end = numbers.max().expect("a process has descriptors") + 1;
        setrlimit(Resource::Nofile, Rlimit { current: Some(end), ..before }).expect("limits may be lowered");
        let fillers = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        Self { before, _fillers: fillers }
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.before).expect("the limit may be raised to what it was");
    }
}

/// Gives up rights, for the calling thread and those it starts.
///
/// # Panics
/// If the kernel refuses, which it never does.
pub fn without(rights: CapabilitySet) {
    let mut sets = capabilities(None).expect("a thread may ask");
    sets.effective.remove(rights);
    sets.permitted.remove(rights);
    sets.inheritable.remove(rights);
    set_capabilities(None, sets).expect("rights may be given up");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have UTF-8 names")
}

/// Lets a system call of this thread, and of those it starts, fail: always, or if the argument with that
/// index is at least so much.
///
/// # Panics
/// If the kernel takes no filters.
pub fn fail_system_call(call: i64, if_at_least: Option<(u8, u64)>, errno: i32) {
    let rule = |(index, least)| {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Ge, least)
            .expect("an index of an argument");
        SeccompRule::new(vec![condition]).expect("a rule with a condition")
    };
    let rules = [(call, if_at_least.into_iter().map(rule).collect())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)
        .expect("two different actions");
    let program: BpfProgram = filter.try_into().expect("a short program");
    seccompiler::apply_filter(&program).expect("a kernel with filters");
}
