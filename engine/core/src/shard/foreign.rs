//! What this shard does for the connections of others: plans their fetches, lends them the bytes, appends.

use std::ops::Range;

use crate::cache::SegmentUid;
use crate::error::FetchError;
use crate::fetch::transfer::{FetchId, FetchState, Stream};
use crate::fetch::{FetchOutcome, FetchRequest, Mode};
use crate::log::partition::Origin;
use crate::message::{CallId, Letter, PartitionId, Pieces, ShardId, Source};
use crate::ops::{Now, Ops};
use crate::platform::{Lease as _, Platform};
use crate::shard::Core;
use crate::shard::appends::Batches;
use crate::types::{Nanos, Offset, Position};

/// Most bytes in one letter: as much as a connection sends at a time.
const LETTER_LEN_MAX: usize = 256 << 10;

/// A segment's file, for a fetch that goes by file.
enum Lent<F> {
    File(F),
    /// A step opens it.
    Later,
    Gone,
    /// It is not to be believed.
    Doubted(FetchError),
}

impl<P: Platform, C> Core<P, C> {
    /// A fetch of another shard is planned, or has failed.
    pub(super) fn answer_shard(
        &mut self,
        shard: ShardId,
        call: CallId,
        fetch: Option<FetchId>,
        outcome: Result<FetchOutcome, FetchError>,
        ops: &mut Ops<P>,
    ) {
        let planned = match (outcome, fetch) {
            (Ok(outcome), Some(id)) => self.lend_first(id, outcome, ops).map(|source| (outcome, source)),
            (Ok(_), None) => Err(FetchError::Cancelled),
            (Err(error), _) => Err(error),
        };
        let letter = match planned {
            Ok((outcome, Some((mode, source)))) => Letter::Planned { call, outcome, mode, source },
            // Its file is being opened.
            Ok((_, None)) => return,
            Err(error) => {
                if let Some(id) = fetch {
                    self.fetches.end(id);
                }
                Letter::Refused { call, error }
            }
        };
        self.peers.push(shard, letter);
    }

    /// Where the bytes of a fetch just planned come from.
    fn lend_first(
        &mut self,
        id: FetchId,
        outcome: FetchOutcome,
        ops: &mut Ops<P>,
    ) -> Result<Option<(Mode, Source<P>)>, FetchError> {
        let Some(fetch) = self.fetches.get_mut(id) else { return Err(FetchError::Cancelled) };
        let FetchState::Streaming(stream) = &fetch.state else { return Err(FetchError::Cancelled) };
        let (mode, uid, partition) = (stream.mode, stream.uid, fetch.request.partition);
        let offset = fetch.request.offset;
        if mode.is_of_file() && stream.at < stream.end {
            let position = stream.at;
            return match self.lend_file(partition, uid, ops) {
                Lent::File(file) => {
                    // A pipe may be refused: the owner's memory serves the rest then.
                    let plan = (mode != Mode::Sendfile).then_some(id.into());
                    if plan.is_none() {
                        self.fetches.end(id);
                    }
                    Ok(Some((mode, Source::File { file, position, plan })))
                }
                Lent::Later => {
                    self.await_file(id);
                    Ok(None)
                }
                Lent::Doubted(error) => Err(error),
                Lent::Gone => {
                    // The log starts later than it did when the fetch was planned.
                    let marks = self.partitions.get(partition).map_or(outcome.watermarks, |p| p.watermarks());
                    let (log_start_offset, log_end_offset) = (marks.log_start_offset, marks.log_end_offset);
                    Err(FetchError::OffsetOutOfRange { offset, log_start_offset, log_end_offset })
                }
            };
        }
        let (pieces, whole) = self.lend_more(id)?;
        if let Some(fetch) = self.fetches.get_mut(id) {
            fetch.owed = !whole && pieces.is_empty();
        }
        if whole {
            self.fetches.end(id);
        }
        Ok(Some((mode, Source::Memory { plan: (!whole).then_some(id.into()), pieces })))
    }

    /// The next bytes of a fetch that are in memory, and whether they are the last.
    fn lend_more(&mut self, id: FetchId) -> Result<(Pieces<P>, bool), FetchError> {
        let (mut pieces, mut len) = (Pieces::<P>::new(), 0);
        loop {
            let Some(fetch) = self.fetches.get_mut(id) else { return Err(FetchError::Cancelled) };
            let FetchState::Streaming(stream) = &fetch.state else { return Err(FetchError::Cancelled) };
            let whole = stream.at >= stream.end;
            if whole || pieces.is_full() || len >= LETTER_LEN_MAX {
                return Ok((pieces, whole));
            }
            match self.next_piece(id, LETTER_LEN_MAX - len, false)? {
                Some((piece, how)) => {
                    len += piece.len();
                    self.take_piece(id, &piece, how);
                    pieces.push((piece, how));
                }
                None => return Ok((pieces, false)),
            }
        }
    }

    /// The asker has given back what it was lent of a fetch, and goes on with the rest of it.
    pub(super) fn resume_for(
        &mut self,
        shard: ShardId,
        call: CallId,
        request: FetchRequest,
        rest: FetchOutcome,
        ops: &mut Ops<P>,
    ) {
        let origin = Origin::Shard { shard, call };
        let begun = self.uid_of(&request, rest.segment).and_then(|uid| {
            let id = self.fetches.insert(request, origin, Nanos::ZERO).ok_or(FetchError::Busy)?;
            let (at, end) = (rest.position, rest.position.plus(rest.len));
            let (mode, by_file, pieces) = (Mode::DirectSend, at..at, Vec::new());
            if let Some(fetch) = self.fetches.get_mut(id) {
                fetch.state = FetchState::Streaming(Stream {
                    outcome: rest,
                    uid,
                    at,
                    first_end: at,
                    end,
                    mode,
                    by_file,
                    pieces,
                });
            }
            Ok(id)
        });
        self.answer_shard(shard, call, begun.as_ref().ok().copied(), begun.map(|_| rest), ops);
    }

    /// The segment that a fetch was planned in.
    fn uid_of(&self, request: &FetchRequest, base_offset: Offset) -> Result<SegmentUid, FetchError> {
        let partition = self.partitions.get(request.partition).ok_or(FetchError::UnknownPartition)?;
        if !partition.is_readable() {
            return Err(FetchError::Closing);
        }
        let segment = partition.segments.iter().find(|segment| segment.base_offset == base_offset);
        let marks = partition.watermarks();
        segment.map(|segment| segment.uid).ok_or(FetchError::OffsetOutOfRange {
            offset: request.offset,
            log_start_offset: marks.log_start_offset,
            log_end_offset: marks.log_end_offset,
        })
    }

    /// The asker wants the next bytes.
    pub(super) fn handle_pull(&mut self, plan: CallId, from: Option<Position>) {
        if let Some(fetch) = self.fetches.get_mut(plan.into()) {
            fetch.owed = true;
            if let (Some(from), FetchState::Streaming(stream)) = (from, &mut fetch.state) {
                stream.at = from;
                stream.mode = Mode::DirectSend;
            }
            self.serve_shard(plan.into());
        }
    }

    /// Lends the bytes that another shard waits for, if they are in memory now.
    pub(super) fn serve_shard(&mut self, id: FetchId) {
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        let Origin::Shard { shard, call } = fetch.origin else { return };
        if !fetch.owed {
            return;
        }
        let (pieces, whole) = match self.lend_more(id) {
            Ok((pieces, whole)) => (Ok(pieces), whole),
            Err(error) => (Err(error), true),
        };
        // A read is under way, and its end brings us here again.
        if pieces.as_ref().is_ok_and(Pieces::<P>::is_empty) {
            return;
        }
        if whole {
            self.fetches.end(id);
        } else if let Some(fetch) = self.fetches.get_mut(id) {
            fetch.owed = false;
        }
        self.peers.push(shard, Letter::Bytes { call, pieces });
    }

    pub(super) fn handle_cancel(&mut self, shard: ShardId, call: CallId, plan: Option<CallId>) {
        let origin = Origin::Shard { shard, call };
        let planned = plan.map(FetchId::from);
        let known =
            planned.filter(|id| self.fetches.get_mut(*id).is_some_and(|fetch| fetch.origin == origin));
        // One that waits for data has no name that its asker knows; looking for it is rare.
        let found = known.or_else(|| {
            let mut all = self.fetches.ids();
            all.find(|(_, fetch)| fetch.origin == origin).map(|(id, _)| id)
        });
        if let Some(id) = found {
            self.fetches.end(id);
        }
    }

    /// Appends what has come in another shard's memory. What must wait keeps the memory.
    pub(super) fn append_foreign(
        &mut self,
        partition: PartitionId,
        frame: &mut Vec<u8>,
        batches: Range<usize>,
        origin: Origin,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        debug_assert!(batches.end <= frame.len());
        self.append(partition, Batches::Lent(frame, batches), origin, now, ops);
    }

    fn lend_file(&mut self, partition: PartitionId, uid: SegmentUid, ops: &mut Ops<P>) -> Lent<P::File> {
        let Some(partition) = self.partitions.get_mut(partition) else { return Lent::Gone };
        let Some(index) = partition.segment_index(uid) else { return Lent::Gone };
        if let Err(error) = partition.check_file(index) {
            return Lent::Doubted(error);
        }
        partition.segment_file(index, ops).map_or(Lent::Later, Lent::File)
    }
}
