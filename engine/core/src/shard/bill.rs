//! What a shard takes from its host, apart from its driver.

use crate::bill::{ARENA, Item, Memory, table_len};
use crate::cache::ReadCache;
use crate::fetch::memo::Memo;
use crate::fetch::transfer::{FetchId, Fetches};
use crate::limits::ShardLimits;
use crate::log::partition::{AckOutcome, Partition};
use crate::message::PartitionId;
use crate::ops::ConnId;
use crate::platform::{Platform, SLAB_LEN};
use crate::service::Service;
use crate::shard::conn::Conn;
use crate::shard::letters::{Peers, SPARE_FRAMES_LEN_MAX};
use crate::shard::parked::ParkTimer;
use crate::shard::reads::Reads;
use crate::shard::{OUTCOMES_CAPACITY, READY_CAPACITY, SCRATCH_CAPACITY, Shard};
use crate::types::ByteCount;

impl<P: Platform, S: Service> Shard<P, S> {
    /// What one of `count` shards takes with these limits, the memory of its service excepted.
    pub fn bill(limits: &ShardLimits, count: u16) -> Vec<Item> {
        let (fetches, conns) = (limits.fetches_max as usize, limits.connections_max as usize);
        let arena = limits.slabs_max() * SLAB_LEN.as_usize();
        let fetches_len = Fetches::<P>::memory_len(fetches)
            + Reads::memory_len(fetches)
            + table_len::<ParkTimer>(fetches)
            + 2 * table_len::<FetchId>(fetches);
        let queues_len = Memo::memory_len()
            + table_len::<PartitionId>(READY_CAPACITY)
            + table_len::<AckOutcome>(OUTCOMES_CAPACITY)
            + SCRATCH_CAPACITY;
        let slot_len = size_of::<Option<Box<Conn<P, S::Connection>>>>() + size_of::<ConnId>();
        let requests_len = conns.saturating_mul(limits.request_len_max.as_usize());
        let mut items = vec![
            Item::in_use(ARENA, arena).of(Memory::PagesLockedIfAllowed),
            Item::at_start(
                "index of the read cache",
                ReadCache::<P::Lease>::memory_len(ByteCount::of_usize(arena)),
            ),
            Item::at_start("fetches under way", fetches_len),
            Item::at_start("queues of a turn", queues_len),
            Item::at_start("calls of other shards", Peers::<P>::memory_len(count, limits.fetches_max)),
            Item::at_start("table of connections", conns * slot_len),
            Item::in_use("open connections", table_len::<Conn<P, S::Connection>>(conns))
                .with_descriptors(u64::from(limits.connections_max)),
            Item::in_use("requests received in part, one a connection", requests_len),
            Item::in_use(
                "partitions, but for their indexes",
                table_len::<Partition<P>>(limits.partitions_max as usize),
            )
            .with_descriptors(u64::from(limits.open_files_max)),
        ];
        if count > 1 {
            items.push(Item::in_use("frames on their way to other shards", SPARE_FRAMES_LEN_MAX));
        }
        items
    }
}
