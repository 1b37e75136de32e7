//! What the host offers, apart from io_uring (see [`crate::uring`]): facts for `doctor`, for results and
//! for sizing, each with what to do where it is in the way. Facts that cannot be had are absent, not
//! guessed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rohrpost_engine_core::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;
use rohrpost_engine_core::types::{ByteCount, Position};
use rustix::process::{Resource, getrlimit};

use crate::disk::LinuxDisk;
use crate::file::errno_of;
use crate::memory::AlignedBuffer;

/// Open files below which a few thousand partitions and connections do not fit.
const NOFILE_ADVISED: u64 = 20_000;

const CAP_IPC_LOCK: u32 = 14;

/// A process limit; `None` is "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
}

/// Facts about machine and process.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Memory of the machine.
    pub memory_len: ByteCount,
    /// Memory limit of the control group, where there is one below the machine's memory.
    pub cgroup_memory_len: Option<ByteCount>,
    /// Memory the process may lock, bytes; rings and registered buffers count on it.
    pub memlock: Limit,
    /// Whether `CAP_IPC_LOCK` lifts `memlock`.
    pub ipc_lock: bool,
    /// Open files.
    pub nofile: Limit,
    /// Setting of transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// Default TCP congestion control.
    pub congestion: Option<String>,
}

impl HostFacts {
    /// Looks.
    pub fn gather() -> Self {
        let memory_len = meminfo_total().unwrap_or_default();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_len,
            cgroup_memory_len: cgroup_memory_len().filter(|limit| *limit < memory_len),
            memlock: limit(Resource::Memlock),
            ipc_lock: has_capability(CAP_IPC_LOCK),
            nofile: limit(Resource::Nofile),
            huge_pages: selected("/sys/kernel/mm/transparent_hugepage/enabled"),
            congestion: line("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }

    /// Memory this process can use: the machine's, or less.
    pub fn memory_limit(&self) -> ByteCount {
        self.cgroup_memory_len.unwrap_or(self.memory_len)
    }

    /// What stands in the way of speed or size, with its remedy; one sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.huge_pages.as_deref() == Some("never") {
            remarks.push(
                "transparent huge pages are off: direct reads cost three times the CPU; \
                 echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
                    .to_owned(),
            );
        }
        if self.nofile.soft.is_some_and(|soft| soft < NOFILE_ADVISED) {
            remarks.push(format!(
                "only {} files may be open: raise it (ulimit -n {NOFILE_ADVISED}) for many partitions",
                display(self.nofile.soft)
            ));
        }
        if !self.ipc_lock && self.memlock.soft.is_some_and(|soft| soft < self.memory_limit().get() / 4) {
            remarks.push(format!(
                "{} may be locked: larger arenas are used unregistered, which costs CPU; raise memlock \
                 (ulimit -l, LimitMEMLOCK=) or grant CAP_IPC_LOCK",
                ByteLen(self.memlock.soft)
            ));
        }
        remarks
    }
}

impl fmt::Display for HostFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = || "unknown".to_owned();
        writeln!(f, "kernel           {}", self.kernel)?;
        writeln!(f, "cores            {}", self.cores)?;
        writeln!(f, "memory           {}", ByteLen(Some(self.memory_len.get())))?;
        if let Some(limit) = self.cgroup_memory_len {
            writeln!(f, "cgroup memory    {}", ByteLen(Some(limit.get())))?;
        }
        let lifted = if self.ipc_lock { " (lifted by CAP_IPC_LOCK)" } else { "" };
        writeln!(f, "memlock          {}{lifted}", ByteLen(self.memlock.soft))?;
        writeln!(f, "open files       {} (up to {})", display(self.nofile.soft), display(self.nofile.hard))?;
        writeln!(f, "huge pages       {}", self.huge_pages.clone().unwrap_or_else(unknown))?;
        writeln!(f, "congestion       {}", self.congestion.clone().unwrap_or_else(unknown))?;
        self.remarks().iter().try_for_each(|remark| writeln!(f, "note: {remark}"))
    }
}

/// Facts about a directory and the file system below it.
#[derive(Clone, Debug)]
pub struct DirFacts {
    /// The directory.
    pub path: PathBuf,
    /// File system type, as in `/proc/self/mountinfo`.
    pub filesystem: Option<String>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Bytes an unprivileged process can still write.
    pub free_len: ByteCount,
    /// Whether a new file took a direct write of 4096 bytes; the error says why not.
    pub direct: Result<(), DiskError>,
    /// Read-ahead of the device, bytes.
    pub read_ahead_len: Option<ByteCount>,
}

impl DirFacts {
    /// Looks, and writes one block to a file that it removes again.
    ///
    /// # Errors
    /// When the directory cannot be examined.
    pub fn gather(path: &Path) -> Result<Self, DiskError> {
        let failed = |errno| DiskError { action: "examine", path: path.to_owned(), errno };
        let real = fs::canonicalize(path).map_err(|error| failed(crate::file::errno_of_io(&error)))?;
        let stat = rustix::fs::statvfs(&real).map_err(|errno| failed(errno_of(errno)))?;
        let device = rustix::fs::stat(&real).map_err(|errno| failed(errno_of(errno)))?.st_dev;
        Ok(Self {
            filesystem: filesystem_of(&real),
            read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            free_len: ByteCount::new(stat.f_bavail * stat.f_frsize),
            direct: try_direct(&real),
            read_ahead_len: read_ahead_len(device),
            path: real,
        })
    }
}

impl fmt::Display for DirFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filesystem = self.filesystem.as_deref().unwrap_or("unknown");
        let access = if self.read_only { ", read-only" } else { "" };
        writeln!(f, "directory        {} ({filesystem}{access})", self.path.display())?;
        writeln!(f, "free space       {}", ByteLen(Some(self.free_len.get())))?;
        if let Some(len) = self.read_ahead_len {
            writeln!(f, "read-ahead       {}", ByteLen(Some(len.get())))?;
        }
        match &self.direct {
            Ok(()) => writeln!(f, "direct I/O       works in blocks of {DIRECT_IO_ALIGN}"),
            Err(error) => writeln!(
                f,
                "direct I/O       {error}; where only direct I/O is missing, write_mode = buffered works"
            ),
        }
    }
}

/// A direct write, by doing it.
fn try_direct(dir: &Path) -> Result<(), DiskError> {
    let path = dir.join(format!(".rohrpost-probe-{}", std::process::id()));
    let file = LinuxDisk.open(&path, OpenMode::CreateNew, Caching::Direct)?;
    let written = match AlignedBuffer::new(DIRECT_IO_ALIGN as usize) {
        Ok(block) => LinuxDisk.write_at(&file, Position::ZERO, &block),
        Err(_) => Err(DiskError { action: "get memory for", path: path.clone(), errno: Errno::NOMEM }),
    };
    LinuxDisk.unlink(&path).and(written)
}

/// The type of the innermost mount that contains `path`.
fn filesystem_of(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // "id parent major:minor root mountpoint options .. - type source options"; later mounts hide earlier.
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = PathBuf::from(left.split(' ').nth(4)?.replace("\\040", " "));
        let kind = right.split(' ').next()?.to_owned();
        path.starts_with(&point).then(|| (point.components().count(), kind))
    };
    let deepest = mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth);
    deepest.map(|(_, kind)| kind)
}

fn read_ahead_len(device: u64) -> Option<ByteCount> {
    let dir = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's queue is its disk's.
    let kib = ["queue", "../queue"].iter().find_map(|queue| line(&format!("{dir}/{queue}/read_ahead_kb")));
    Some(ByteCount::kib(kib?.parse().ok()?))
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The choice in brackets of a file such as "always \[madvise\] never".
fn selected(path: &str) -> Option<String> {
    let text = line(path)?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn limit(resource: Resource) -> Limit {
    let limit = getrlimit(resource);
    Limit { soft: limit.current, hard: limit.maximum }
}

fn meminfo_total() -> Option<ByteCount> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(ByteCount::kib(total.trim().strip_suffix(" kB")?.parse().ok()?))
}

fn has_capability(bit: u32) -> bool {
    let effective = fs::read_to_string("/proc/self/status").ok().and_then(|text| {
        let hex = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim().to_owned();
        u64::from_str_radix(&hex, 16).ok()
    });
    effective.is_some_and(|set| set >> bit & 1 == 1)
}

/// The smallest memory limit on the way from this process's control group to the root.
fn cgroup_memory_len() -> Option<ByteCount> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let unified = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = Path::new("/sys/fs/cgroup").join(unified.unwrap_or_default());
    let limits = own.ancestors().take_while(|dir| dir.starts_with("/sys/fs/cgroup"));
    let v2 = limits.filter_map(|dir| line(dir.join("memory.max").to_str()?)?.parse().ok());
    let v1 = line("/sys/fs/cgroup/memory/memory.limit_in_bytes").and_then(|text| text.parse().ok());
    v2.chain(v1).min().map(ByteCount::new)
}

fn display(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

/// A length for people; `None` is "unlimited".
#[derive(Clone, Copy, Debug)]
pub struct ByteLen(pub Option<u64>);

impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(len) if len >= 10 << 30 => write!(f, "{} GiB", len >> 30),
            Some(len) if len >= 10 << 20 => write!(f, "{} MiB", len >> 20),
            Some(len) => write!(f, "{} KiB", len >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_facts() {
        let facts = HostFacts::gather();
        assert!(facts.kernel.contains('.'), "{}", facts.kernel);
        assert!(facts.cores >= 1);
        assert!(facts.memory_len > ByteCount::mib(64));
        assert!(facts.memory_limit() <= facts.memory_len);
        let text = facts.to_string();
        assert!(text.contains("memlock"), "{text}");
        assert_eq!(text.matches("note: ").count(), facts.remarks().len());
    }

    #[test]
    fn remarks_name_cause_and_remedy() {
        let mut facts = HostFacts::gather();
        facts.huge_pages = Some("madvise".to_owned());
        facts.nofile = Limit { soft: Some(NOFILE_ADVISED), hard: None };
        facts.memlock = Limit { soft: None, hard: None };
        assert_eq!(facts.remarks(), Vec::<String>::new());
        facts.huge_pages = Some("never".to_owned());
        facts.nofile.soft = Some(NOFILE_ADVISED - 1);
        facts.memlock.soft = Some(8 << 20);
        facts.ipc_lock = false;
        facts.cgroup_memory_len = Some(ByteCount::mib(64));
        let remarks = facts.remarks();
        assert_eq!(remarks.len(), 3, "{remarks:?}");
        assert!(remarks[1].contains("ulimit -n"));
        assert!(remarks[2].contains("8192 KiB"), "{}", remarks[2]);
        facts.ipc_lock = true;
        assert_eq!(facts.remarks().len(), 2);
    }

    /// The probe leaves the directory as it was, and says what is wrong with others.
    #[test]
    fn directories_are_probed_and_left_clean() {
        let dir = tempfile::tempdir().unwrap();
        let facts = DirFacts::gather(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(facts.free_len > ByteCount::ZERO);
        assert!(facts.filesystem.is_some());
        assert!(!facts.read_only);
        assert!(facts.direct.is_ok(), "{:?}", facts.direct);
        let missing = DirFacts::gather(&dir.path().join("missing")).unwrap_err();
        assert_eq!(missing.errno, Errno::NOENT);
        let proc = DirFacts::gather(Path::new("/proc/self")).unwrap();
        assert_eq!(proc.filesystem.as_deref(), Some("proc"));
        assert!(proc.direct.is_err());
    }
}
