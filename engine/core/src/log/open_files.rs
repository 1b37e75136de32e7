//! How many segment files a shard holds open. Descriptors are few where partitions are many: files of partitions with
//! nothing under way are closed when the limit is reached, and opened again when they are needed.
//!
//! Always holds: the count is that of the slots there are. A file that is being opened has one already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The count of one shard; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct OpenFiles {
    count: Arc<AtomicU32>,
    max: u32,
}

/// One open file's place in the count.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicU32>);

impl OpenFiles {
    /// None open, `max` allowed.
    pub(crate) fn new(max: u32) -> Self {
        Self { count: Arc::default(), max }
    }

    /// Counts a file, whether there is room or not.
    pub(crate) fn take(&self) -> Slot {
        self.count.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(&self.count))
    }

    /// Whether one more is within the limit.
    pub(crate) fn has_room(&self) -> bool {
        self.count.load(Ordering::Relaxed) < self.max
    }

    /// How many are open beyond the limit.
    pub(crate) fn beyond(&self) -> u32 {
        self.count.load(Ordering::Relaxed).saturating_sub(self.max)
    }

    /// Whether so many are closed that there is room for some time.
    pub(crate) fn has_ample_room(&self) -> bool {
        self.count.load(Ordering::Relaxed) < self.max - self.max / 8
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room ends with the last slot and comes back with its end; ample room takes some more.
    #[test]
    fn slots_are_counted_while_they_live() {
        let files = OpenFiles::new(8);
        let mut slots: Vec<_> = (0..8).map(|_| files.take()).collect();
        assert!(!files.has_room());
        assert_eq!(files.beyond(), 0);
        slots.push(files.take());
        assert_eq!(files.beyond(), 1);
        slots.truncate(7);
        assert!(files.has_room() && !files.clone().has_ample_room());
        slots.pop();
        assert!(files.has_ample_room());
        let none = OpenFiles::new(0);
        assert!(!none.has_room() && !none.has_ample_room());
    }
}
