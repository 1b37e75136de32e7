//! A [`Disk`] in memory, for tests: everything it is told is at once on the "device".
//!
//! Owns a tree of files, the locks on them, a trace of every call that changes something, and the faults a test
//! asks for. It does not model what a power cut loses; the simulator's disk does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Caching, DirEntry, Disk, DiskError, Errno, Lock, OpenMode};
use crate::platform::{DIRECT_IO_ALIGN, OpenFile};
use crate::types::{ByteCount, Position, Timestamp};

const NOT_EMPTY: Errno = Errno(39);

/// The disk. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<PathBuf, Node>,
    files: Vec<Vec<u8>>,
    /// (file, kind) -> handle that holds it.
    locks: BTreeMap<(usize, u8), u64>,
    handles: u64,
    trace: Vec<String>,
    /// Changes that still succeed; afterwards the process counts as dead and every call fails.
    changes_left: Option<u64>,
    /// Calls of this action on a path that contains this text fail so; the first alone, if it ends then.
    fault: Option<(&'static str, String, Errno)>,
    fault_ends: bool,
    /// What the page cache shows of a file, whatever the device has.
    cached: Option<(PathBuf, Vec<u8>)>,
    no_direct: bool,
}

#[derive(Clone, Copy)]
enum Node {
    Dir,
    File(usize),
}

/// An open file of a [`MemoryDisk`].
#[derive(Clone)]
pub(crate) struct MemoryFile {
    handle: Arc<Handle>,
}

struct Handle {
    disk: MemoryDisk,
    number: u64,
    file: usize,
    path: PathBuf,
    writable: bool,
    direct: bool,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFile({})", self.handle.path.display())
    }
}

impl OpenFile for MemoryFile {
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.handle) > 1
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.state().locks.retain(|_, holder| *holder != self.number);
    }
}

impl MemoryDisk {
    /// A disk with an empty directory `/`.
    pub(crate) fn new() -> Self {
        let disk = Self::default();
        disk.state().nodes.insert(PathBuf::from("/"), Node::Dir);
        disk
    }

    /// Everything a test has put there or the engine has written: paths of files with their content.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let files = state.nodes.iter().filter_map(|(path, node)| match node {
            Node::Dir => None,
            Node::File(file) => Some((path.clone(), state.files[*file].clone())),
        });
        files.collect()
    }

    /// Content of a file, if it exists.
    pub(crate) fn get(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.state();
        let Some(Node::File(file)) = state.nodes.get(path.as_ref()) else { return None };
        Some(state.files[*file].clone())
    }

    /// Puts a file there, with its directories.
    pub(crate) fn put(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let mut state = self.state();
        for dir in path.as_ref().ancestors().skip(1) {
            state.nodes.insert(dir.to_owned(), Node::Dir);
        }
        state.files.push(bytes.to_vec());
        let file = Node::File(state.files.len() - 1);
        state.nodes.insert(path.as_ref().to_owned(), file);
    }

    /// Changes a file that must be there, past all locks: what a crash, another program or the medium does.
    pub(crate) fn edit(&self, path: impl AsRef<Path>, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let Some(Node::File(file)) = state.nodes.get(path.as_ref()).copied() else {
            panic!("a test changes a file that is there: {}", path.as_ref().display())
        };
        change(&mut state.files[file]);
    }

    /// Removes a file or an empty directory that must be there.
    pub(crate) fn remove(&self, path: impl AsRef<Path>) {
        self.state().nodes.remove(path.as_ref()).expect("a test removes what it has put there");
    }

    /// An independent copy of the tree, without handles, locks or faults: the disk after the process was killed.
    pub(crate) fn fork(&self) -> Self {
        let state = self.state();
        let copy = State { nodes: state.nodes.clone(), files: state.files.clone(), ..State::default() };
        Self { state: Arc::new(Mutex::new(copy)) }
    }

    /// The calls so far that changed something, as "verb path"; forgets them.
    pub(crate) fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trace)
    }

    /// Lets so many changes succeed and fails everything afterwards.
    pub(crate) fn kill_after(&self, changes: u64) {
        self.state().changes_left = Some(changes);
    }

    /// Whether the kill came.
    pub(crate) fn is_killed(&self) -> bool {
        self.state().changes_left == Some(0)
    }

    /// Fails every `action` on a path that contains `text`.
    pub(crate) fn fail(&self, action: &'static str, text: &str, errno: Errno) {
        self.state().fault = Some((action, text.to_owned(), errno));
    }

    /// As [`MemoryDisk::fail`], for the next such call alone.
    pub(crate) fn fail_once(&self, action: &'static str, text: &str, errno: Errno) {
        self.fail(action, text, errno);
        self.state().fault_ends = true;
    }

    /// From now on the page cache shows this of a file, as after a failed write-back.
    pub(crate) fn show_cached(&self, path: PathBuf, bytes: &[u8]) {
        self.state().cached = Some((path, bytes.to_vec()));
    }

    /// Ends [`MemoryDisk::fail`].
    pub(crate) fn heal(&self) {
        self.state().fault = None;
    }

    /// Refuses direct I/O from now on, as tmpfs does.
    pub(crate) fn refuse_direct(&self) {
        self.state().no_direct = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // a failed test may have poisoned it
    }

    /// The state, for a call that changes something.
    fn change(&self, action: &'static str, path: &Path) -> Result<MutexGuard<'_, State>, DiskError> {
        let mut state = self.look(action, path)?;
        if let Some(left) = &mut state.changes_left {
            *left -= 1;
        }
        state.trace.push(format!("{action} {}", path.display()));
        Ok(state)
    }

    /// The state, for a call that only reads.
    fn look(&self, action: &'static str, path: &Path) -> Result<MutexGuard<'_, State>, DiskError> {
        let mut state = self.state();
        if state.changes_left == Some(0) {
            return Err(error(action, path, Errno::IO));
        }
        let Some((at, text, errno)) = &state.fault else { return Ok(state) };
        if *at != action || !path.to_string_lossy().contains(text) {
            return Ok(state);
        }
        let error = error(action, path, *errno);
        if std::mem::take(&mut state.fault_ends) {
            state.fault = None;
        }
        Err(error)
    }
}

fn error(action: &'static str, path: &Path, errno: Errno) -> DiskError {
    DiskError { action, path: path.to_owned(), errno }
}

impl State {
    fn parent_exists(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| matches!(self.nodes.get(parent), Some(Node::Dir)))
    }

    fn has_children(&self, path: &Path) -> bool {
        self.nodes.keys().any(|other| other.parent() == Some(path))
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn create_dir(&self, path: &Path) -> Result<(), DiskError> {
        let mut state = self.change("create directory", path)?;
        if state.nodes.contains_key(path) {
            return Err(error("create directory", path, Errno::EXIST));
        }
        if !state.parent_exists(path) {
            return Err(error("create directory", path, Errno::NOENT));
        }
        state.nodes.insert(path.to_owned(), Node::Dir);
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, DiskError> {
        let state = self.look("list", path)?;
        match state.nodes.get(path) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(error("list", path, Errno(20))),
            None => return Err(error("list", path, Errno::NOENT)),
        }
        let children = state.nodes.iter().filter(|(child, _)| child.parent() == Some(path));
        let entry = |(child, node): (&PathBuf, &Node)| DirEntry {
            name: child.file_name().expect("a child has a name").to_string_lossy().into_owned(),
            is_dir: matches!(node, Node::Dir),
        };
        let mut entries: Vec<DirEntry> = children.map(entry).collect();
        entries.sort();
        Ok(entries)
    }

    fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> Result<MemoryFile, DiskError> {
        let create = mode == OpenMode::CreateNew;
        let mut state = if create { self.change("create", path)? } else { self.look("open", path)? };
        if state.no_direct && caching == Caching::Direct {
            return Err(error("open", path, Errno::INVAL));
        }
        let file = match state.nodes.get(path) {
            Some(_) if create => return Err(error("create", path, Errno::EXIST)),
            Some(Node::Dir) => return Err(error("open", path, Errno(21))),
            Some(Node::File(file)) => *file,
            None if create && state.parent_exists(path) => {
                state.files.push(Vec::new());
                let file = state.files.len() - 1;
                state.nodes.insert(path.to_owned(), Node::File(file));
                file
            }
            None => return Err(error("open", path, Errno::NOENT)),
        };
        state.handles += 1;
        let handle = Handle {
            disk: self.clone(),
            number: state.handles,
            file,
            path: path.to_owned(),
            writable: mode != OpenMode::Read,
            direct: caching == Caching::Direct,
        };
        Ok(MemoryFile { handle: Arc::new(handle) })
    }

    fn lock(&self, file: &MemoryFile, lock: Lock, _patience_ms: u64) -> Result<(), DiskError> {
        let mut state = self.look("lock", &file.handle.path)?;
        let number = file.handle.number;
        let holder = *state.locks.entry((file.handle.file, lock as u8)).or_insert(number);
        if holder == number { Ok(()) } else { Err(error("lock", &file.handle.path, Errno::AGAIN)) }
    }

    fn len(&self, file: &MemoryFile) -> Result<ByteCount, DiskError> {
        let state = self.look("stat", &file.handle.path)?;
        Ok(ByteCount::of_usize(state.files[file.handle.file].len()))
    }

    fn read_at(&self, file: &MemoryFile, position: Position, buf: &mut [u8]) -> Result<usize, DiskError> {
        let state = self.look("read", &file.handle.path)?;
        let handle = &file.handle;
        let cached = state.cached.as_ref().filter(|(path, _)| !handle.direct && *path == handle.path);
        let held = cached.map_or(&state.files[handle.file], |(_, bytes)| bytes);
        let rest = held.get(position.get() as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, file: &MemoryFile, position: Position, buf: &[u8]) -> Result<(), DiskError> {
        let mut state = self.change("write", &file.handle.path)?;
        assert!(file.handle.writable, "write to {file:?}, which is open for reading");
        let (start, end) = (position.get() as usize, position.get() as usize + buf.len());
        if file.handle.direct {
            assert_eq!(start as u64 % DIRECT_IO_ALIGN, 0, "direct write to {file:?}");
            assert_eq!(end as u64 % DIRECT_IO_ALIGN, 0, "direct write to {file:?}");
        }
        let bytes = &mut state.files[file.handle.file];
        bytes.resize(bytes.len().max(end), 0);
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, file: &MemoryFile, len: ByteCount) -> Result<(), DiskError> {
        let mut state = self.change("truncate", &file.handle.path)?;
        assert!(file.handle.writable, "truncate of {file:?}, which is open for reading");
        state.files[file.handle.file].resize(len.as_usize(), 0);
        Ok(())
    }

    fn preallocate(
        &self,
        file: &MemoryFile,
        from: Position,
        to: Position,
        _zero: bool,
    ) -> Result<(), DiskError> {
        let mut state = self.change("preallocate", &file.handle.path)?;
        assert!(from <= to, "preallocate from {from:?} to {to:?}");
        let bytes = &mut state.files[file.handle.file];
        bytes.resize(bytes.len().max(to.get() as usize), 0);
        Ok(())
    }

    fn sync(&self, file: &MemoryFile) -> Result<(), DiskError> {
        self.change("sync", &file.handle.path).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let state = self.change("sync directory", path)?;
        assert!(matches!(state.nodes.get(path), Some(Node::Dir)), "sync of {}", path.display());
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let mut state = self.change("rename", from)?;
        let node = state.nodes.remove(from).ok_or_else(|| error("rename", from, Errno::NOENT))?;
        let children: Vec<PathBuf> =
            state.nodes.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for child in children {
            let node = state.nodes.remove(&child).expect("listed above");
            let rest = child.strip_prefix(from).expect("filtered above");
            state.nodes.insert(to.join(rest), node);
        }
        state.nodes.insert(to.to_owned(), node);
        Ok(())
    }

    fn exchange(&self, one: &Path, other: &Path) -> Result<(), DiskError> {
        let mut state = self.change("exchange", one)?;
        let both = state.nodes.get(one).copied().zip(state.nodes.get(other).copied());
        let (first, second) = both.ok_or_else(|| error("exchange", one, Errno::NOENT))?;
        state.nodes.extend([(one.to_owned(), second), (other.to_owned(), first)]);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), DiskError> {
        match self.look("unlink", path)?.nodes.get(path) {
            Some(Node::File(_)) => {}
            Some(Node::Dir) => return Err(error("unlink", path, Errno(21))),
            None => return Err(error("unlink", path, Errno::NOENT)),
        }
        self.change("unlink", path)?.nodes.remove(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> Result<(), DiskError> {
        let mut state = self.change("remove directory", path)?;
        if state.has_children(path) {
            return Err(error("remove directory", path, NOT_EMPTY));
        }
        let removed = state.nodes.remove(path);
        removed.map(drop).ok_or_else(|| error("remove directory", path, Errno::NOENT))
    }

    fn modified(&self, path: &Path) -> Result<Timestamp, DiskError> {
        let state = self.look("stat", path)?;
        let node = state.nodes.get(path);
        node.map(|_| Timestamp::new(1_700_000_000_000)).ok_or_else(|| error("stat", path, Errno::NOENT))
    }
}
