//! What programs do to the simulated disk: the blocking calls and the two halves of each data-path operation.

use std::path::Path;

use rohrpost_engine_core::disk::{Caching, DirEntry, Errno, Lock, OpenMode};
use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;
use rohrpost_engine_core::types::Timestamp;

use super::{Description, Fate, Harm, InFlight, Inode, Lie, OpKind, Pending, Planes, SECTOR_LEN, Storage};
use super::{is_io_lock, overlay, sectors};

impl Storage {
    pub(crate) fn list(&mut self, path: &Path) -> Result<Vec<DirEntry>, Errno> {
        self.run(OpKind::Lookup, |disk| {
            let inode = disk.resolve(path)?;
            let entries = disk.names.list(inode).ok_or(Errno::NOENT)?;
            let entry = |(name, inode): (&String, &Inode)| DirEntry {
                name: name.clone(),
                is_dir: disk.names.is_directory(*inode),
            };
            Ok(entries.iter().map(entry).collect())
        })
    }

    pub(crate) fn open(
        &mut self,
        path: &Path,
        mode: OpenMode,
        caching: Caching,
    ) -> Result<Description, Errno> {
        let kind = if mode == OpenMode::CreateNew { OpKind::Entry } else { OpKind::Lookup };
        self.run(kind, |disk| {
            let (parent, name) = disk.resolve_parent(path)?;
            let inode = match (disk.names.lookup(parent, name), mode) {
                (Some(_), OpenMode::CreateNew) => return Err(Errno::EXIST),
                (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(Errno::NOENT),
                (Some(inode), _) if disk.names.is_directory(inode) => return Err(Errno::INVAL),
                (Some(inode), _) => inode,
                (None, OpenMode::CreateNew) => disk.create_file(parent, name)?,
            };
            let id = disk.description_next;
            disk.description_next += 1;
            disk.open.insert(id, inode);
            let (direct, writable) = (caching == Caching::Direct, mode != OpenMode::Read);
            Ok(Description { id, inode, life: disk.life, direct, writable })
        })
    }

    fn create_file(&mut self, parent: Inode, name: &str) -> Result<Inode, Errno> {
        if self.used() + DIRECT_IO_ALIGN > self.capacity {
            return Err(Errno::NOSPC);
        }
        let inode = self.inode_new();
        self.files.insert(inode, Planes::new(self.wall));
        self.names.change(&mut self.seq, vec![(parent, name.to_owned(), Some(inode))]);
        Ok(inode)
    }

    /// The last clone of a description is gone.
    pub(crate) fn close(&mut self, of: Description) {
        if of.life == self.life {
            self.open.remove(&of.id);
            self.locks.retain(|_, holder| *holder != of.id);
        }
    }

    pub(crate) fn lock(&mut self, of: Description, lock: Lock) -> Result<(), Errno> {
        self.run(OpKind::Lookup, |disk| {
            let holder = *disk.locks.entry((of.inode, is_io_lock(lock))).or_insert(of.id);
            if holder != of.id {
                return Err(Errno::AGAIN);
            }
            if is_io_lock(lock) {
                disk.drain_orphans(of.inode);
            }
            Ok(())
        })
    }

    pub(crate) fn len(&mut self, of: Description) -> Result<u64, Errno> {
        self.run(OpKind::Lookup, |disk| Ok(disk.file(of).len()))
    }

    /// Fills `buf` as far as the file reaches.
    pub(crate) fn read(&mut self, of: Description, position: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        self.run(OpKind::Read, |disk| Ok(disk.read_now(of, position, buf)))
    }

    /// As [`Storage::read`], for the data path: aligned, and possibly short.
    pub(crate) fn read_direct(
        &mut self,
        of: Description,
        position: u64,
        buf: &mut [u8],
    ) -> Result<usize, Errno> {
        assert_aligned("direct read", position, buf.len());
        self.run(OpKind::ReadAsync, |disk| {
            let astray = disk.lie == Some(Lie::MisdirectedRead) && disk.prng.one_in(16);
            let position = if astray { position + DIRECT_IO_ALIGN } else { position };
            let count = disk.read_now(of, position, buf);
            if count > SECTOR_LEN && disk.falls_short(disk.faults.read_short) {
                disk.suffer(Harm::ReadShort);
                return Ok(SECTOR_LEN * disk.prng.range(1, (count / SECTOR_LEN) as u64) as usize);
            }
            Ok(count)
        })
    }

    fn read_now(&mut self, of: Description, position: u64, buf: &mut [u8]) -> usize {
        let count = self.file(of).read(position, buf, of.direct);
        // Of a write in flight, each sector is seen or not.
        for write in self.in_flight.values() {
            if write.inode != of.inode || !write.touches(position, count as u64) {
                continue;
            }
            for (at, part) in write.bytes.chunks(SECTOR_LEN).enumerate() {
                if self.prng.one_in(2) {
                    overlay(buf, position, count, write.position + (at * SECTOR_LEN) as u64, part);
                }
            }
        }
        count
    }

    /// Bytes on their way from the page cache to a socket, or past it into a pipe; possibly fewer than there are.
    pub(crate) fn read_for_socket(
        &mut self,
        inode: Inode,
        position: u64,
        len: usize,
        fits: usize,
    ) -> Result<Vec<u8>, Errno> {
        self.run(OpKind::ReadAsync, |disk| {
            if fits < len {
                disk.suffer(Harm::ReadShort);
            }
            disk.peek_inode(inode, position, fits).ok_or(Errno::IO)
        })
    }

    /// A blocking write of everything.
    pub(crate) fn write(&mut self, of: Description, position: u64, bytes: &[u8]) -> Result<(), Errno> {
        let write = self.write_of(of, position, bytes.to_vec(), false);
        match self.fate(OpKind::Write) {
            Fate::Runs => {
                self.reserve(of.inode, position + bytes.len() as u64)?;
                self.apply(&write, bytes.len());
                Ok(())
            }
            Fate::Fails(errno) => {
                self.land_partly(&write);
                Err(errno)
            }
            Fate::Last => {
                self.land_partly(&write);
                self.end_as_planned();
                Err(Errno::IO)
            }
            Fate::Dark => Err(Errno::IO),
        }
    }

    /// First half of a data-path write: it is in flight from now on.
    pub(crate) fn begin_write(
        &mut self,
        of: Description,
        position: u64,
        bytes: Vec<u8>,
        durable: bool,
    ) -> Pending {
        let pending = self.pending_new();
        if self.dark.is_some() {
            return pending;
        }
        let astray = self.lie == Some(Lie::MisdirectedWrite) && self.prng.one_in(16);
        let position = if astray { position + DIRECT_IO_ALIGN } else { position };
        let write = self.write_of(of, position, bytes, durable);
        self.in_flight.insert(pending, write);
        pending
    }

    /// Second half: how it ended.
    pub(crate) fn end_write(&mut self, pending: Pending) -> Result<usize, Errno> {
        let fate = self.fate(OpKind::WriteAsync);
        let Some(write) = self.in_flight.get(&pending) else { return Err(Errno::IO) };
        let write = match fate {
            Fate::Dark => return Err(Errno::IO),
            Fate::Last => {
                self.end_as_planned();
                return Err(Errno::IO);
            }
            Fate::Runs | Fate::Fails(_) => write.clone(),
        };
        self.in_flight.remove(&pending);
        if let Fate::Fails(errno) = fate {
            self.land_partly(&write);
            return Err(errno);
        }
        let end = write.position + write.bytes.len() as u64;
        let mut len = write.bytes.len();
        if let Err(errno) = self.reserve(write.inode, end) {
            // Whatever fits lands; nothing at all is an error.
            let fits = self.files[&write.inode].allocated.saturating_sub(write.position);
            len = len.min(fits as usize);
            if len == 0 {
                return Err(errno);
            }
        }
        if len > SECTOR_LEN && self.falls_short(self.faults.write_short) {
            self.suffer(Harm::WriteShort);
            len = SECTOR_LEN * self.prng.range(1, ((len - 1) / SECTOR_LEN) as u64) as usize;
        }
        self.apply(&write, len);
        Ok(len)
    }

    /// First half of a data-path sync: it covers what has been written by now.
    pub(crate) fn begin_sync(&mut self, of: Description) -> Pending {
        let pending = self.pending_new();
        if self.dark.is_none() {
            self.file(of);
            self.syncs.insert(pending, (of.inode, self.seq));
        }
        pending
    }

    /// Second half: whether it is durable.
    pub(crate) fn end_sync(&mut self, pending: Pending) -> Result<(), Errno> {
        let (inode, seq) = self.syncs.remove(&pending).ok_or(Errno::IO)?;
        self.sync_up_to(inode, seq, OpKind::SyncAsync)
    }

    /// A blocking sync.
    pub(crate) fn sync(&mut self, of: Description) -> Result<(), Errno> {
        if self.dark.is_none() {
            self.file(of);
        }
        self.sync_up_to(of.inode, self.seq, OpKind::Sync)
    }

    fn sync_up_to(&mut self, inode: Inode, seq: u64, kind: OpKind) -> Result<(), Errno> {
        match self.fate(kind) {
            Fate::Dark => return Err(Errno::IO),
            Fate::Last => {
                self.end_as_planned();
                return Err(Errno::IO);
            }
            Fate::Fails(errno) => {
                let file = self.files.get_mut(&inode).expect("an open file keeps its inode");
                file.fail_sync(seq, &mut self.prng);
                return Err(errno);
            }
            Fate::Runs if self.lie == Some(Lie::Sync) => return Ok(()),
            Fate::Runs => {}
        }
        self.files.get_mut(&inode).expect("an open file keeps its inode").sync(seq);
        Ok(())
    }

    pub(crate) fn set_len(&mut self, of: Description, len: u64) -> Result<(), Errno> {
        assert!(of.writable, "a file opened for reading is resized: {of:?}");
        self.run(OpKind::Resize, |disk| {
            disk.assert_not_in_flight(of.inode, len.min(disk.files[&of.inode].len()), u64::MAX / 2);
            let (seq, wall) = (&mut disk.seq, disk.wall);
            let file = disk.files.get_mut(&of.inode).expect("an open file keeps its inode");
            file.set_len(len, seq);
            file.allocated = file.allocated.min(len.next_multiple_of(DIRECT_IO_ALIGN));
            file.modified = wall;
            Ok(())
        })
    }

    pub(crate) fn preallocate(
        &mut self,
        of: Description,
        from: u64,
        to: u64,
        zero: bool,
    ) -> Result<(), Errno> {
        assert!(of.writable, "a file opened for reading is extended: {of:?}");
        self.run(OpKind::Resize, |disk| {
            disk.reserve(of.inode, to)?;
            if zero {
                disk.assert_not_in_flight(of.inode, from, to - from);
            }
            let seq = &mut disk.seq;
            let file = disk.files.get_mut(&of.inode).expect("an open file keeps its inode");
            if file.len() < to {
                file.set_len(to, seq);
            }
            if zero {
                file.write(from, &vec![0; (to - from) as usize], false, seq);
            }
            Ok(())
        })
    }

    pub(crate) fn modified(&mut self, path: &Path) -> Result<Timestamp, Errno> {
        self.run(OpKind::Lookup, |disk| {
            let inode = disk.resolve(path)?;
            disk.files.get(&inode).map(|file| file.modified).ok_or(Errno::NOENT)
        })
    }

    /// The page cache drops every clean page.
    pub fn drop_caches(&mut self) {
        self.trace.note("drop-caches", &[]);
        self.suffer(Harm::CachesDropped);
        for file in self.files.values_mut() {
            file.drop_cache();
        }
    }

    /// Checks a write before it starts.
    fn write_of(&mut self, of: Description, position: u64, bytes: Vec<u8>, durable: bool) -> InFlight {
        assert!(of.writable, "a file opened for reading is written: {of:?}");
        if of.direct {
            assert_aligned("direct write", position, bytes.len());
        }
        if self.dark.is_none() {
            self.file(of);
            self.assert_not_in_flight(of.inode, position, bytes.len() as u64);
        }
        InFlight { inode: of.inode, position, bytes, durable, direct: of.direct }
    }

    /// The first `len` bytes of a write are done.
    fn apply(&mut self, write: &InFlight, len: usize) {
        let wall = self.wall;
        let file = self.files.get_mut(&write.inode).expect("an open file keeps its inode");
        file.write(write.position, &write.bytes[..len], !write.direct, &mut self.seq);
        file.modified = wall;
        if write.durable && self.lie != Some(Lie::DurableWrite) {
            file.harden(write.position, len as u64);
        }
    }

    fn assert_not_in_flight(&self, inode: Inode, position: u64, len: u64) {
        let (mine, end) = (sectors(position, position + len), position + len);
        let other =
            self.in_flight.values().find(|write| write.inode == inode && write.touches(position, len));
        assert!(other.is_none(), "sectors {mine:?} (to byte {end}) of {inode:?} are written twice at a time");
    }

    fn pending_new(&mut self) -> Pending {
        self.pending_next += 1;
        Pending(self.pending_next)
    }
}

fn assert_aligned(what: &str, position: u64, len: usize) {
    assert!(position.is_multiple_of(DIRECT_IO_ALIGN), "{what} at {position}");
    assert!((len as u64).is_multiple_of(DIRECT_IO_ALIGN), "{what} of {len} bytes");
}
