//! A memory cgroup for one server process: what a baseline may use, its page cache included, where a workload
//! compares at equal memory. Version 1 and 2 of the interface; without the right to use either, the reason.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{BenchError, Result};

/// Where the two versions keep the limit of a group.
const ROOTS: &[(&str, &str)] =
    &[("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];

/// A group with a limit; removed when dropped, which must happen after its processes have ended.
pub(super) struct MemoryGroup {
    dir: PathBuf,
}

impl MemoryGroup {
    /// A new group that may use `limit` bytes.
    pub(super) fn new(limit: u64) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("rohrpost-bench-{}-{number}", std::process::id());
        let mut refused = None;
        for (root, file) in ROOTS {
            match Self::make(Path::new(root).join(&name), file, limit) {
                Ok(group) => return Ok(group),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let why = refused.map_or_else(String::new, |error| format!(": {error}"));
        Err(BenchError::Process {
            who: "server",
            why: format!("equal memory needs a memory cgroup of {} MiB{why}", limit >> 20),
        })
    }

    fn make(dir: PathBuf, file: &str, limit: u64) -> io::Result<Self> {
        fs::create_dir(&dir)?;
        let group = Self { dir };
        // Not created: a directory without that file has no memory controller.
        let mut options = fs::OpenOptions::new();
        let mut limit_file = options.write(true).open(group.dir.join(file))?;
        io::Write::write_all(&mut limit_file, limit.to_string().as_bytes())?;
        Ok(group)
    }

    /// Moves a process in, before it has used memory worth the name.
    pub(super) fn join(&self, pid: u32) -> Result<()> {
        let path = self.dir.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(BenchError::file("write", &path))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The page cache that was charged to it moves to its parent.
        let _ = fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where groups can be made, a process is in it and its limit holds; where not, the reason says what is needed.
    #[test]
    fn a_group_holds_a_process_or_says_why_not() {
        match MemoryGroup::new(256 << 20) {
            Ok(group) => {
                let dir = group.dir.clone();
                let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
                group.join(child.id()).unwrap();
                let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
                assert_eq!(procs.trim(), child.id().to_string());
                let limit = ROOTS.iter().find_map(|(_, file)| fs::read_to_string(dir.join(file)).ok());
                assert_eq!(limit.unwrap().trim(), (256u64 << 20).to_string());
                child.kill().unwrap();
                child.wait().unwrap();
                drop(group);
                assert!(!dir.exists());
            }
            Err(error) => assert!(error.to_string().contains("memory cgroup of 256 MiB"), "{error}"),
        }
    }
}
