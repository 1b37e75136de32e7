//! The connections of one driver: slots of a fixed number, each with a generation.
//!
//! Always holds: a slot in `free` has no connection; its generation rises when it gets there, so an identifier
//! names one connection for good.

use std::os::fd::OwnedFd;

use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::ops::{ConnId, Send, SendFile};

use super::PollPlatform;
use crate::pipe::Loaded;

/// A transfer that waits for room in the socket.
pub(super) enum Transfer {
    Send(Send<PollPlatform>),
    File(SendFile<PollPlatform>),
    /// At most so many bytes of the connection's pipe.
    Drain(usize),
    /// Nothing, after a recall.
    Room,
}

/// An open connection.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// Whether the core wants what arrives.
    pub(super) receiving: bool,
    /// Whether there may be something to receive: raised by the kernel's edge, lowered by `EAGAIN` or by
    /// a receive that did not fill its buffer.
    pub(super) readable: bool,
    /// Whether the peer has closed its side; then only an empty receive ends `readable`.
    pub(super) ended: bool,
    /// Whether it is in the driver's list of connections to receive from.
    pub(super) listed: bool,
    pub(super) transfer: Option<Transfer>,
    /// Its pipe, while there is something in it.
    pub(super) pipe: Option<Loaded>,
}

struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// All connections.
pub(super) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Connections {
    pub(super) fn new(connections_max: u32) -> Self {
        let slots = (0..connections_max).map(|_| Slot { generation: 0, connection: None }).collect();
        Self { slots, free: (0..connections_max).rev().collect() }
    }

    /// Bytes of memory that a table of that size takes.
    pub(super) const fn memory_len(connections_max: u32) -> usize {
        table_len::<Slot>(connections_max as usize) + table_len::<u32>(connections_max as usize)
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Slots that are taken.
    pub(super) fn open_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Gives the socket a slot; `None`, and the socket closes, when there is none.
    pub(super) fn insert(&mut self, socket: OwnedFd) -> Option<ConnId> {
        let slot = self.free.pop()?;
        let entry = &mut self.slots[slot as usize];
        entry.connection = Some(Connection {
            socket,
            receiving: false,
            readable: false,
            ended: false,
            listed: false,
            transfer: None,
            pipe: None,
        });
        Some(ConnId { slot, generation: entry.generation })
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.connection.as_mut() } else { None }
    }

    /// Takes the connection out. Its slot is not used again before [`Self::free`].
    pub(super) fn remove(&mut self, id: ConnId) -> Option<Connection> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation { None } else { slot.connection.take() }
    }

    /// Lets the slot of a removed connection be used again.
    pub(super) fn free(&mut self, id: ConnId) {
        let slot = &mut self.slots[id.slot as usize];
        debug_assert!(slot.generation == id.generation && slot.connection.is_none(), "{id:?} is open");
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
    }
}

/// An identifier as the number that epoll carries.
pub(super) fn to_data(id: ConnId) -> u64 {
    u64::from(id.slot) | u64::from(id.generation) << 32
}

/// The identifier that [`to_data`] encoded.
pub(super) fn from_data(data: u64) -> ConnId {
    ConnId { slot: data as u32, generation: (data >> 32) as u32 }
}
