//! The write log of a disk, in the format of dm-log-writes as QEMU's `blklogwrites` filter makes it: every write with its
//! bytes, every flush, in the order in which they reached the disk.
//!
//! What was written before a flush is on the device; what was written since may be there, in part, or not.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Bytes of a sector, of the log and of the disk.
pub(crate) const SECTOR_LEN: u64 = 512;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One entry. Its data stay in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where it is written to, bytes.
    position: u64,
    /// Bytes; of zeros, if it is a discard.
    len: u64,
    /// Where its bytes are in the log.
    data: u64,
    flags: u64,
    /// Length of the log with it.
    pub(crate) end: u64,
}

impl Entry {
    /// Whether everything before it is on the device.
    pub(crate) fn is_flush(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }

    fn writes(&self) -> bool {
        self.len > 0
    }
}

/// The log and how far it has been applied to a disk.
#[derive(Debug)]
pub(crate) struct WriteLog {
    file: File,
    pub(crate) entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads all entries of a log that is not written any more.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let word = |at: u64| -> io::Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        if word(0)? != MAGIC {
            return Err(io::Error::other("no write log"));
        }
        let (mut entries, mut at) = (Vec::new(), SECTOR_LEN);
        while at + SECTOR_LEN <= len {
            let (sector, sectors, flags) = (word(at)?, word(at + 8)?, word(at + 16)?);
            let data = at + SECTOR_LEN;
            let len_in_log = if flags & DISCARD == 0 { sectors * SECTOR_LEN } else { 0 };
            at = data + len_in_log;
            if at > len || (sectors == 0 && flags == 0) {
                break;
            }
            let (position, len) = (sector * SECTOR_LEN, sectors * SECTOR_LEN);
            entries.push(Entry { position, len, data, flags, end: at });
        }
        Ok(Self { file, entries })
    }

    /// Writes the first `len` bytes of an entry to the disk it was meant for.
    fn apply(&self, entry: &Entry, len: u64, disk: &File) -> io::Result<()> {
        let mut bytes = vec![0; len as usize];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data)?;
        }
        disk.write_all_at(&bytes, entry.position)
    }
}

/// Which of the unsynced writes have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survivors {
    /// All.
    Prefix,
    /// Each of them, or its first sectors, or nothing of it, as this seed says.
    Subset(u64),
}

/// A disk that goes forward through a log: what is synced is on it, what is not yet waits.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    log: &'a WriteLog,
    disk: &'a File,
    unsynced: VecDeque<usize>,
    next: usize,
}

impl<'a> Replay<'a> {
    /// `disk` as it was when the log began.
    pub(crate) fn new(log: &'a WriteLog, disk: &'a File) -> Self {
        Self { log, disk, unsynced: VecDeque::new(), next: 0 }
    }

    /// Goes on until `count` entries have happened.
    pub(crate) fn advance(&mut self, count: usize) -> io::Result<()> {
        while self.next < count {
            let entry = &self.log.entries[self.next];
            if entry.is_flush() {
                for index in std::mem::take(&mut self.unsynced) {
                    let entry = &self.log.entries[index];
                    self.log.apply(entry, entry.len, self.disk)?;
                }
                // A write with FUA is durable itself.
                self.log.apply(entry, entry.len, self.disk)?;
            } else if entry.writes() {
                self.unsynced.push_back(self.next);
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Puts what has survived of the unsynced writes on `copy`, which is a copy of the disk.
    pub(crate) fn cut(&self, copy: &File, survivors: Survivors) -> io::Result<()> {
        let mut random = match survivors {
            Survivors::Prefix => None,
            Survivors::Subset(seed) => Some(fastrand::Rng::with_seed(seed)),
        };
        for index in &self.unsynced {
            let entry = &self.log.entries[*index];
            let len = match random.as_mut() {
                None => entry.len,
                Some(random) => match random.u8(..3) {
                    0 => continue,
                    1 => random.u64(..=entry.len / SECTOR_LEN) * SECTOR_LEN,
                    _ => entry.len,
                },
            };
            self.log.apply(entry, len, copy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sector: u64, sectors: u64, flags: u64, fill: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        [sector, sectors, flags, 0].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.resize(SECTOR_LEN as usize, 0);
        if flags & DISCARD == 0 {
            bytes.resize(bytes.len() + (sectors * SECTOR_LEN) as usize, fill);
        }
        bytes
    }

    /// Two writes, a flush, a write, a discard, and a last one that is cut off in the log: at each point the disk
    /// holds what is synced, and a cut adds the rest or some of it.
    #[test]
    fn a_log_is_replayed_to_any_point() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.resize(SECTOR_LEN as usize, 0);
        let steps =
            [(0, 2, 0, 1), (2, 1, 0, 2), (0, 0, FLUSH, 0), (1, 1, 0, 3), (0, 1, DISCARD, 0), (3, 2, 0, 9)];
        for (sector, sectors, flags, fill) in steps {
            bytes.extend(entry(sector, sectors, flags, fill));
        }
        bytes.truncate(bytes.len() - 1);
        let path = dir.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        let log = WriteLog::read(&path).unwrap();
        assert_eq!(log.entries.len(), 5);
        let disk = tempfile::tempfile().unwrap();
        let copy = tempfile::tempfile().unwrap();
        [&disk, &copy].iter().for_each(|file| file.set_len(4 * SECTOR_LEN).unwrap());
        let fills = |file: &File| -> Vec<u8> {
            let byte = |sector| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, sector * SECTOR_LEN).unwrap();
                byte[0]
            };
            (0..4).map(byte).collect()
        };
        let mut replay = Replay::new(&log, &disk);
        replay.advance(2).unwrap();
        assert_eq!(fills(&disk), [0, 0, 0, 0]);
        replay.cut(&copy, Survivors::Prefix).unwrap();
        assert_eq!(fills(&copy), [1, 1, 2, 0]);
        replay.advance(3).unwrap();
        assert_eq!(fills(&disk), [1, 1, 2, 0]);
        replay.advance(5).unwrap();
        replay.cut(&copy, Survivors::Prefix).unwrap();
        assert_eq!(fills(&copy), [0, 3, 2, 0]);
        assert_eq!(fills(&disk), [1, 1, 2, 0], "what is unsynced is not on the disk");
    }
}
