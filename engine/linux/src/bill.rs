//! What every driver takes from its host, whichever it is: the arena's tables, pipes, the inbox.

use rohrpost_engine_core::bill::{Item, Memory};
use rohrpost_engine_core::limits::ShardLimits;

use crate::arena::LinuxArena;
use crate::pipe::{PIPE_LENS, PIPES_MAX};
use crate::reference;

/// The ends of a pipe.
const PIPE_ENDS: u64 = 2;

/// An eventfd wakes the shard.
const INBOX_DESCRIPTORS: u64 = 1;

/// What is not wanted of a pipe goes to a null device of its pool.
const SINK_DESCRIPTORS: u64 = 1;

/// See the module.
pub(crate) fn of_every_driver(limits: &ShardLimits) -> [Item; 3] {
    [
        Item::at_start("the arena's and the inbox's own", LinuxArena::table_len(limits.slabs_max()))
            .with_descriptors(INBOX_DESCRIPTORS),
        Item::at_start("pipe for sends by reference", reference::PIPE_LEN)
            .of(Memory::Kernel)
            .with_descriptors(PIPE_ENDS + SINK_DESCRIPTORS),
        Item::in_use("pipes of cold reads by splice", PIPES_MAX * PIPE_LENS[0])
            .of(Memory::Kernel)
            .with_descriptors(PIPES_MAX as u64 * PIPE_ENDS + SINK_DESCRIPTORS),
    ]
}
