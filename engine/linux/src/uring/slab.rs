//! A table of operations in flight.
//!
//! Owns one value per operation from its submission to its final completion, at an address that does
//! not move, because the kernel reads from it. Always holds: a released slot's old key finds nothing,
//! since every reuse raises the slot's generation. Grows to the largest number ever in flight and
//! does not allocate after that.

use rohrpost_engine_core::bill::table_len;

/// What a completion's `user_data` says: whose it is, and which one.
///
/// Kind in the top 8 bits, generation in the next 24, index in the low 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Which kind of operation.
    pub(crate) kind: Kind,
    /// Raised at every reuse of the index; 24 bits.
    pub(crate) generation: u32,
    /// Index into the kind's table.
    pub(crate) index: u32,
}

/// Kinds of requests in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A write; index into the write table.
    Write,
    /// A read; index into the read table.
    Read,
    /// A sync; index into the sync table.
    Sync,
    /// A fill of a pipe; index into the fill table.
    Fill,
    /// A send; index into the connection table.
    Send,
    /// A send without a copy, and the later word that the kernel has done reading; index into the table of such.
    ZeroCopy,
    /// Waits until the socket takes more; index into the connection table.
    WritablePoll,
    /// A receive, single or multishot; index into the connection table.
    Recv,
    /// Waits until the socket has bytes; index into the connection table.
    RecvPoll,
    /// A cancellation of a connection's requests; index into the connection table.
    ConnCancel,
    /// An accept, single or multishot.
    Accept,
    /// A cancellation of something that has no connection.
    Cancel,
    /// The inbox's eventfd became readable.
    Wake,
}

const KINDS: [Kind; 13] = [
    Kind::Write,
    Kind::Read,
    Kind::Sync,
    Kind::Fill,
    Kind::Send,
    Kind::ZeroCopy,
    Kind::WritablePoll,
    Kind::Recv,
    Kind::RecvPoll,
    Kind::ConnCancel,
    Kind::Accept,
    Kind::Cancel,
    Kind::Wake,
];

pub(crate) const GENERATION_MASK: u32 = (1 << 24) - 1;

impl Key {
    /// A key outside any table.
    pub(crate) const fn lone(kind: Kind) -> Self {
        Self { kind, generation: 0, index: 0 }
    }

    /// Whether this is a write, a read, a sync or a fill.
    pub(crate) const fn is_disk(self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Read | Kind::Sync | Kind::Fill)
    }

    /// As the ring carries it.
    pub(crate) const fn encode(self) -> u64 {
        let generation = self.generation & GENERATION_MASK;
        (self.kind as u64) << 56 | (generation as u64) << 32 | self.index as u64
    }

    /// From the ring; `None` for what [`Self::encode`] never made.
    pub(crate) fn decode(user_data: u64) -> Option<Self> {
        let kind = *KINDS.get((user_data >> 56) as usize)?;
        let generation = (user_data >> 32) as u32 & GENERATION_MASK;
        Some(Self { kind, generation, index: user_data as u32 })
    }
}

struct Slot<T> {
    value: Box<T>,
    generation: u32,
    live: bool,
}

/// See the module.
pub(crate) struct Slab<T> {
    kind: Kind,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    /// A table with `capacity` slots made at once; more are made when needed.
    pub(crate) fn with_capacity(kind: Kind, capacity: usize) -> Self {
        let mut slab = Self { kind, slots: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) };
        for _ in 0..capacity {
            slab.add_slot();
        }
        slab.free.reverse();
        slab
    }

    /// Bytes of memory that a table with `capacity` slots takes.
    pub(crate) const fn memory_len(capacity: usize) -> usize {
        table_len::<T>(capacity) + table_len::<Slot<T>>(capacity) + table_len::<u32>(capacity)
    }

    fn add_slot(&mut self) {
        let index = self.slots.len() as u32;
        self.slots.push(Slot { value: Box::default(), generation: 0, live: false });
        self.free.push(index);
    }

    /// Takes a slot. Its value is whatever the last user left there.
    pub(crate) fn take(&mut self) -> (Key, &mut T) {
        if self.free.is_empty() {
            self.add_slot();
        }
        let index = self.free.pop().expect("a slot was added if none was free");
        let slot = &mut self.slots[index as usize];
        debug_assert!(!slot.live, "slot {index} is taken twice");
        slot.live = true;
        (Key { kind: self.kind, generation: slot.generation, index }, &mut slot.value)
    }

    /// The value of an operation in flight.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.live && slot.generation == key.generation).then_some(&mut *slot.value)
    }

    /// Gives the slot back and lends its value once more, to take out what it holds. `None` for a key
    /// that names no operation in flight.
    pub(crate) fn release(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if !slot.live || slot.generation != key.generation {
            return None;
        }
        slot.live = false;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(key.index);
        Some(&mut slot.value)
    }

    /// Operations in flight.
    pub(crate) fn live_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key survives the trip through the ring; the value reserved for timeouts is no key.
    #[test]
    fn keys_survive_the_ring() {
        for kind in KINDS {
            for (generation, index) in [(0, 0), (GENERATION_MASK, u32::MAX), (5, 7)] {
                let key = Key { kind, generation, index };
                assert_eq!(Key::decode(key.encode()), Some(key));
            }
        }
        assert_eq!(Key::decode(u64::MAX), None);
    }

    /// A completion that comes after its operation ended finds nothing, even when the slot is in use
    /// again; addresses never move while the table grows.
    #[test]
    fn late_completions_find_nothing() {
        let mut slab: Slab<u64> = Slab::with_capacity(Kind::Write, 1);
        let (first, value) = slab.take();
        *value = 1;
        let address = std::ptr::from_ref(value);
        let (second, value) = slab.take();
        *value = 2;
        assert_ne!(first.index, second.index);
        assert_eq!(slab.live_count(), 2);
        let released = slab.release(first).expect("in flight");
        assert!(std::ptr::eq(released, address));
        assert!(slab.release(first).is_none());
        let (third, _) = slab.take();
        assert_eq!(third.index, first.index);
        assert!(slab.release(first).is_none());
        assert_eq!(slab.live_count(), 2);
    }
}
