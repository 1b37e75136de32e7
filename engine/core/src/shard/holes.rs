//! What readers get of a log whose device fails here and there: everything that lies on sound blocks.
//!
//! A read that has failed goes on in pieces, in its chunk and on its share of the budget. An answer ends before the first
//! block that cannot be read; only one whose first batch lies there is an error, which names the block. What a connection
//! has been promised already ends with it; the next answer is planned around the hole.

use crate::cache::Piece;
use crate::fetch::plan::{Glance, unreadable};
use crate::fetch::transfer::{FetchId, FetchState, Stream};
use crate::log::partition::Partition;
use crate::ops::{DiskOp, Ops, Read};
use crate::platform::{DIRECT_IO_ALIGN, Platform};
use crate::shard::Core;
use crate::shard::fetches::Progress;
use crate::token::Purpose;
use crate::types::{ByteCount, Position};

impl<P: Platform, C> Core<P, C> {
    /// Reads a piece of a chunk around which the device has failed; gives the chunk back if its file is not to be had.
    pub(super) fn read_on(
        &mut self,
        entry: u32,
        generation: u32,
        (position, len): Piece,
        chunk: P::Chunk,
        ops: &mut Ops<P>,
    ) -> Result<(), P::Chunk> {
        let (uid, start, _) = self.memory.cache.loading_range(entry);
        let found = self.find_segment(uid).map(|(partition, index)| (partition.id, index));
        let file = found.and_then(|(id, index)| {
            let partition = self.partitions.get_mut(id)?;
            partition.check_file(index).ok()?;
            partition.segment_file(index, ops)
        });
        let Some(file) = file else { return Err(chunk) };
        self.stats.cold_reads += 1;
        let token = Purpose::ColdRead(entry, generation).token();
        let (from, len) =
            (position.since(start).as_usize(), len.as_usize().next_multiple_of(DIRECT_IO_ALIGN as usize));
        ops.disk.push(DiskOp::Read(Read { token, file, position, chunk, from, len, cached: false }));
        Ok(())
    }

    /// How far an answer from the segment at `index` may reach that begins at `start` and was to reach to `end`: up to what
    /// is known to be unreadable. If that is in the first batch, what becomes of the fetch.
    pub(super) fn readable_end(
        &mut self,
        partition: &Partition<P>,
        id: FetchId,
        index: usize,
        start: Position,
        first_end: Position,
        end: Position,
    ) -> Result<Position, Progress> {
        let segment = &partition.segments[index];
        let (uid, base_offset) = (segment.uid, segment.base_offset);
        let Some(block) = self.memory.cache.first_hole(uid, start, end) else { return Ok(end) };
        if block >= first_end {
            return Ok(block);
        }
        let wanted = block.max(start);
        match partition.glance(&mut self.memory, uid, wanted, end) {
            Glance::Unreadable(block) => Err(Progress::Failed(Box::new(unreadable(base_offset, block)))),
            // The tail has it, by a later read.
            Glance::Resident { .. } => Ok(end),
            glance => {
                if let Some(fetch) = self.fetches.get_mut(id) {
                    fetch.state = FetchState::Locating { uid, at: start };
                }
                let until = wanted.plus(ByteCount::new(1));
                Err(self.await_read(partition, id, uid, wanted, until, glance))
            }
        }
    }
}

/// What becomes of an answer for a handle whose next bytes lie on an unreadable block.
pub(super) fn stop_at_hole<P: Platform>(stream: &mut Stream<P>, block: Position) -> Progress {
    if stream.at < stream.first_end {
        return Progress::Failed(Box::new(unreadable(stream.outcome.segment, block)));
    }
    stream.end = stream.at;
    stream.outcome.len = stream.at.since(stream.outcome.position);
    Progress::Gathered
}
