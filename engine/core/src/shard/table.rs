//! The partitions of a shard by their ids.
//!
//! Owns them. Ids are small and dense over the process, sparse in a shard: pages of slots, so that looking a
//! partition up, and lending it out for the length of a call, costs two loads and no hash. A page is made when the
//! first partition of its range opens and is kept. Always holds: `count` is the number of occupied slots; a
//! partition that is taken stands nowhere until it is put back. Names are claimed by those who open a partition, and
//! released when it is gone.

use std::collections::HashSet;

use crate::format::names::TopicPartition;
use crate::log::partition::Partition;
use crate::message::PartitionId;
use crate::platform::Platform;

/// Slots of a page: 4 KiB of pointers.
const PAGE_SLOTS: usize = 512;

type Page<P> = [Option<Box<Partition<P>>>; PAGE_SLOTS];

/// See the module documentation.
pub(super) struct PartitionTable<P: Platform> {
    pages: Vec<Option<Box<Page<P>>>>,
    count: usize,
    names: HashSet<TopicPartition>,
}

const fn place(id: PartitionId) -> (usize, usize) {
    let index = id.0 as usize;
    (index / PAGE_SLOTS, index % PAGE_SLOTS)
}

impl<P: Platform> PartitionTable<P> {
    pub(super) fn new() -> Self {
        Self { pages: Vec::new(), count: 0, names: HashSet::new() }
    }

    /// Claims a name; `false` if somebody has it.
    pub(super) fn claim(&mut self, name: &TopicPartition) -> bool {
        self.names.insert(name.clone())
    }

    /// The partition of this name is gone.
    pub(super) fn release(&mut self, name: &TopicPartition) {
        self.names.remove(name);
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn get(&self, id: PartitionId) -> Option<&Partition<P>> {
        let (page, slot) = place(id);
        self.pages.get(page)?.as_deref()?[slot].as_deref()
    }

    pub(super) fn get_mut(&mut self, id: PartitionId) -> Option<&mut Partition<P>> {
        let (page, slot) = place(id);
        self.pages.get_mut(page)?.as_deref_mut()?[slot].as_deref_mut()
    }

    /// Takes a partition out, for as long as something works on it beside the rest of the shard.
    pub(super) fn take(&mut self, id: PartitionId) -> Option<Box<Partition<P>>> {
        let (page, slot) = place(id);
        let taken = self.pages.get_mut(page)?.as_deref_mut()?[slot].take();
        self.count -= usize::from(taken.is_some());
        taken
    }

    /// Puts a partition in its place: a new one, or one that was taken. Allocates only for a new one.
    ///
    /// # Panics
    /// When its place is occupied.
    pub(super) fn put(&mut self, partition: Box<Partition<P>>) {
        let (page, slot) = place(partition.id);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let slots = self.pages[page].get_or_insert_with(|| Box::new([const { None }; PAGE_SLOTS]));
        assert!(slots[slot].is_none(), "two partitions of one id");
        slots[slot] = Some(partition);
        self.count += 1;
    }

    /// All of them, in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Partition<P>> {
        self.pages.iter().flatten().flat_map(|page| page.iter()).filter_map(|slot| slot.as_deref())
    }
}
