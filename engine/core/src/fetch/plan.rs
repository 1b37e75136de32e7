//! Planning: from an offset to a position, and to the range of bytes that answers a request. Memory
//! only: what is not in memory is named, so that it can be read.

use crate::cache::{Lookup, SegmentUid};
use crate::disk::Errno;
use crate::error::FetchError;
use crate::fetch::FetchRequest;
use crate::fetch::memo::{Key, Memo};
use crate::format::batch::{BatchPrefix, PREFIX_LEN};
use crate::format::walk::{Seek, seek};
use crate::log::partition::Partition;
use crate::memory::Memory;
use crate::message::Watermarks;
use crate::platform::{Lease, Platform};
use crate::types::{ByteCount, Offset, Position};

/// What a look at memory brings.
pub(crate) enum Glance<P: Platform> {
    /// The lease's range `[start, end)` contains the position.
    Resident { lease: P::Lease, start: Position, end: Position, written: bool },
    /// A read of it is under way.
    Loading(u32),
    /// It has been read, but for the block that begins here.
    Unreadable(Position),
    /// It has to be read.
    Missing,
}

/// Where the batch lies that contains an offset.
pub(crate) enum Located<P: Platform> {
    /// It starts here and is so long.
    At(Position, ByteCount),
    /// No batch of this segment contains it or a later offset: compaction has left a gap at its end.
    Beyond,
    /// The walk stops at the batch `at`, for want of the bytes at `missing`.
    Stopped { at: Position, missing: Position, glance: Glance<P> },
}

impl<P: Platform> Partition<P> {
    /// Looks at `position` of a segment, in the tail first, then in the cache. `end` bounds what readers
    /// may see.
    pub(crate) fn glance(
        &self,
        memory: &mut Memory<P>,
        uid: SegmentUid,
        position: Position,
        end: Position,
    ) -> Glance<P> {
        if let Some((lease, start, end)) = self.tail.lease_at(uid, position, end) {
            return Glance::Resident { lease, start, end, written: true };
        }
        match memory.cache.lookup(uid, position) {
            Lookup::Resident { lease, start, end: to, written } if to > end => {
                if end <= position {
                    return Glance::Missing;
                }
                let lease = lease.slice(0..end.since(start).as_usize());
                Glance::Resident { lease, start, end, written }
            }
            Lookup::Resident { lease, start, end, written } => {
                Glance::Resident { lease, start, end, written }
            }
            Lookup::Loading(entry) => Glance::Loading(entry),
            Lookup::Unreadable(block) => Glance::Unreadable(block),
            Lookup::Missing => Glance::Missing,
        }
    }

    /// Whether the end of a range is in memory, and so most likely all of it.
    pub(crate) fn is_resident(&self, memory: &Memory<P>, uid: SegmentUid, end: Position) -> bool {
        let last = Position::new(end.get().saturating_sub(1));
        self.tail.lease_at(uid, last, end).is_some() || memory.cache.is_resident(uid, last)
    }

    /// Finds the batch of segment `index` that contains the request's offset, or the first one after it: noted
    /// already, or by a walk from `resume`, or from where the index says.
    pub(crate) fn locate(
        &self,
        memory: &mut Memory<P>,
        memo: &mut Memo,
        index: usize,
        request: &FetchRequest,
        resume: Option<Position>,
    ) -> Result<Located<P>, FetchError> {
        let segment = &self.segments[index];
        let key = Key::new(segment.uid, segment.base_offset, request.offset);
        if let Some((start, len)) = key.and_then(|key| memo.find(key)) {
            return Ok(Located::At(start, len));
        }
        let indexed = || segment.index.offsets().lookup(request.offset).position;
        let located = self.walk(memory, index, request, resume.unwrap_or_else(indexed))?;
        if let (Some(key), Located::At(start, len)) = (key, &located) {
            memo.note(key, *start, *len);
        }
        Ok(located)
    }

    /// Walks the batch headers from `at` to the batch that contains the request's offset, or the first one
    /// after it.
    fn walk(
        &self,
        memory: &mut Memory<P>,
        index: usize,
        request: &FetchRequest,
        mut at: Position,
    ) -> Result<Located<P>, FetchError> {
        let segment = &self.segments[index];
        let (uid, end) = (segment.uid, self.visible_end(index));
        while at < end {
            let (lease, start) = match self.glance(memory, uid, at, end) {
                Glance::Resident { lease, start, .. } => (lease, start),
                Glance::Unreadable(block) => return self.locate_behind(memory, index, request, at, block),
                glance => return Ok(Located::Stopped { at, missing: at, glance }),
            };
            let window = &lease.as_ref()[at.since(start).as_usize()..];
            let mut found = seek(window, at, request.offset);
            if let Seek::ReadOn(header) = found {
                let next = start.plus(ByteCount::of_usize(lease.len()));
                if header >= next || header >= end {
                    at = header;
                    continue;
                }
                // The header lies in two chunks: look at its bytes end to end.
                let here = &window[header.since(at).as_usize()..];
                let mut prefix = [0; PREFIX_LEN];
                prefix[..here.len()].copy_from_slice(here);
                let (lease, start) = match self.glance(memory, uid, next, end) {
                    Glance::Resident { lease, start, .. } => (lease, start),
                    Glance::Unreadable(block) => {
                        return self.locate_behind(memory, index, request, header, block);
                    }
                    glance => return Ok(Located::Stopped { at: header, missing: next, glance }),
                };
                let more = &lease.as_ref()[next.since(start).as_usize()..];
                let wanted = (PREFIX_LEN - here.len()).min(more.len());
                prefix[here.len()..here.len() + wanted].copy_from_slice(&more[..wanted]);
                found = seek(&prefix[..here.len() + wanted], header, request.offset);
                if let Seek::ReadOn(after) = found {
                    if after == header {
                        return Err(corrupt(segment.base_offset, header));
                    }
                    at = after;
                    continue;
                }
            }
            return match found {
                Seek::Found(position, batch) if position.plus(batch.len()) <= end => {
                    Ok(Located::At(position, batch.len()))
                }
                Seek::Found(position, _) | Seek::Stopped(position, _) | Seek::ReadOn(position) => {
                    Err(corrupt(segment.base_offset, position))
                }
            };
        }
        if segment.damaged {
            return Err(corrupt(segment.base_offset, segment.end));
        }
        Ok(Located::Beyond)
    }

    /// The walk has come to the header `at`, which lies on an unreadable block. The batch looked for may lie behind it: the
    /// index names batches by their last offsets, so that most walks begin a batch early.
    fn locate_behind(
        &self,
        memory: &mut Memory<P>,
        index: usize,
        request: &FetchRequest,
        at: Position,
        block: Position,
    ) -> Result<Located<P>, FetchError> {
        let (segment, end) = (&self.segments[index], self.visible_end(index));
        let failed = Err(unreadable(segment.base_offset, block));
        let offsets = segment.index.offsets();
        if offsets.lookup(request.offset).last_offset == request.offset {
            return failed;
        }
        let entry = offsets.after(request.offset);
        let Some(entry) = entry.filter(|entry| entry.position > at && entry.position < end) else {
            return failed;
        };
        match self.glance(memory, segment.uid, entry.position, end) {
            Glance::Resident { lease, start, .. } => {
                let window = &lease.as_ref()[entry.position.since(start).as_usize()..];
                match BatchPrefix::peek(window) {
                    // One that begins later is not it: it lies in between, out of reach.
                    Ok(batch)
                        if batch.base_offset() <= request.offset
                            && entry.position.plus(batch.len()) <= end =>
                    {
                        Ok(Located::At(entry.position, batch.len()))
                    }
                    _ => failed,
                }
            }
            Glance::Unreadable(block) => Err(unreadable(segment.base_offset, block)),
            glance => Ok(Located::Stopped { at, missing: entry.position, glance }),
        }
    }

    /// Whether the log has that offset, or will have it next.
    pub(crate) fn check_offset(&self, offset: Offset) -> Result<(), FetchError> {
        let (Watermarks { log_start_offset, log_end_offset, .. }, active) =
            (self.watermarks(), self.active());
        if active.damaged && offset >= active.next_offset {
            return Err(corrupt(active.base_offset, active.end));
        }
        if offset < log_start_offset || offset > log_end_offset {
            return Err(FetchError::OffsetOutOfRange { offset, log_start_offset, log_end_offset });
        }
        Ok(())
    }
}

fn corrupt(base_offset: Offset, position: Position) -> FetchError {
    FetchError::Corrupt { base_offset, position: position.get() }
}

/// The device does not give out the block at `position`.
pub(crate) fn unreadable(base_offset: Offset, position: Position) -> FetchError {
    FetchError::ReadFailed { base_offset, position: position.get(), errno: Errno::IO }
}
