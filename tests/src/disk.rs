//! Disks to be cut: a file with a file system, mounted; on demand behind a block layer that logs every write.
//!
//! Owns its mounts and processes: what it has made vanishes with it, and with the mount name space at the latest.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::host;
use clap::ValueEnum;

/// How long a mount may stay busy, or a service may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);

/// A journalled file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileSystem {
    /// ext4 with its journal, `data=ordered`.
    Ext4,
    /// XFS.
    Xfs,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FileSystem {
    /// All of them.
    pub const ALL: [FileSystem; 2] = [FileSystem::Ext4, FileSystem::Xfs];

    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    /// Makes a file of `mib` mebibytes with an empty file system; XFS takes at least 300.
    ///
    /// # Errors
    /// What the file system or the program that makes it said; so for all functions here.
    pub fn make(self, image: &Path, mib: u64) -> Result<(), String> {
        let mib = if self == FileSystem::Xfs { mib.max(310) } else { mib };
        let file = File::create(image).map_err(|error| say(image, &error))?;
        file.set_len(mib << 20).map_err(|error| say(image, &error))?;
        match self {
            FileSystem::Ext4 => {
                host::run(&["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=8", text(image)])
            }
            FileSystem::Xfs => host::run(&["mkfs.xfs", "-q", "-f", text(image)]),
        }
        .map(drop)
    }
}

/// How the journal fares in a live cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// What was in memory of it is lost, as in a power cut.
    Dropped,
    /// It reaches the disk first.
    Kept,
}

/// A mounted image.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts `image` at `at`, through a loop device that goes with the mount. The journal is replayed here.
    pub fn new(image: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|error| say(at, &error))?;
        host::run(&["mount", "-o", "loop", text(image), text(at)])?;
        Ok(Self { at: at.to_owned() })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Cuts it: nothing more reaches the disk, everybody gets errors.
    pub fn cut(&self, journal: Journal) -> Result<(), String> {
        let how = if journal == Journal::Kept { "shutdown -f" } else { "shutdown" };
        host::run(&["xfs_io", "-x", "-c", how, text(&self.at)]).map(drop)
    }

    /// Unmounts; waits for what a killed process still has in flight.
    pub fn unmount(self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match host::run(&["umount", text(&self.at)]) {
                Ok(_) => {
                    std::mem::forget(self);
                    return Ok(());
                }
                Err(why) if start.elapsed() > PATIENCE => return Err(why),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Only after a failure: the lab is about to end, and the mount name space with it.
        let _ = host::run(&["umount", "--lazy", text(&self.at)]);
    }
}

/// A block device in user space: QEMU's storage daemon shows a chain of block filters as a file, through FUSE.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    file: PathBuf,
}

impl Daemon {
    /// Exports the last of `nodes`, whose name is `top`, as the file `at`, as long as `image`.
    pub fn start(image: &Path, at: &Path, top: &str, extra: &[String]) -> Result<Self, String> {
        File::create(at).map_err(|error| say(at, &error))?;
        let export = format!("type=fuse,id=export,node-name={top},mountpoint={},writable=on", text(at));
        let mut command = Command::new("qemu-storage-daemon");
        let disk = format!("driver=file,node-name=disk,filename={}", text(image));
        command.args(["--blockdev", &disk]).args(extra).args(["--export", &export]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.map_err(|error| format!("qemu-storage-daemon cannot be run: {error}"))?;
        let mut daemon = Self { child, file: at.to_owned() };
        let len = fs::metadata(image).map_err(|error| say(image, &error))?.len();
        let start = Instant::now();
        while fs::metadata(at).map_or(0, |data| data.len()) != len {
            let ended = daemon.child.try_wait().map_err(|error| error.to_string())?.is_some();
            if ended || start.elapsed() > PATIENCE {
                return Err(format!("qemu-storage-daemon shows no file: {}", daemon.stop()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// The file that is the disk.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends it, after everything it has been given is on the image; what it has said.
    pub fn stop(mut self) -> String {
        let _ = host::run(&["umount", "--lazy", text(&self.file)]);
        self.end()
    }

    fn end(&mut self) -> String {
        let mut said = String::new();
        // Ended already, or ending: either is what is wanted.
        let _ = host::run(&["kill", &self.child.id().to_string()]);
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut errors, &mut said);
        }
        let _ = self.child.wait();
        said.trim().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.stderr.is_some() {
            let _ = host::run(&["umount", "--lazy", text(&self.file)]);
            self.end();
        }
    }
}

/// Whether this machine has what it takes.
///
/// # Errors
/// What is missing.
pub fn missing(programs: &[&str]) -> Result<(), String> {
    for program in [&["mount", "umount", "losetup", "mkfs.ext4"], programs].concat() {
        if let Err(error) = Command::new(program).arg("--version").stdin(Stdio::null()).output() {
            return Err(format!("{program} cannot be run: {error}"));
        }
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("this kernel has no loop devices".to_owned());
    }
    if programs.contains(&"qemu-storage-daemon") {
        let help = host::run(&["qemu-storage-daemon", "--help"])?;
        if !help.contains("type=]fuse") {
            return Err("this qemu-storage-daemon exports nothing over FUSE".to_owned());
        }
        if !Path::new("/dev/fuse").exists() {
            return Err("this kernel has no FUSE".to_owned());
        }
    }
    Ok(())
}

/// A path as an argument.
///
/// # Panics
/// If it is not UTF-8; those of temporary folders are.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have UTF-8 names")
}

/// An error, and what it was met at.
pub fn say(path: &Path, error: &dyn fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
