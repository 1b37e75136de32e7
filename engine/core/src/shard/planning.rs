//! Planning a fetch: where its first batch lies, and how far the answer reaches.
//!
//! Always holds: what is planned lies in one segment, below the high watermark, and has its first batch whole. Reads nothing:
//! what is not in memory is waited for.

use crate::fetch::plan::Located;
use crate::fetch::policy::{RangeFacts, choose};
use crate::fetch::transfer::{FetchId, FetchState, Stream};
use crate::fetch::{FetchOutcome, FetchRequest, Mode};
use crate::limits::FETCH_LEN_MAX;
use crate::log::partition::{Origin, Partition};
use crate::platform::{CHUNK_LEN_MIN, Platform};
use crate::shard::Core;
use crate::shard::fetches::Progress;
use crate::shard::reads::Reading;
use crate::types::{ByteCount, Position};

/// The first batch of an answer: its segment's index, and from where to where it lies there.
struct First {
    index: usize,
    start: Position,
    first_end: Position,
}

impl<P: Platform, C> Core<P, C> {
    /// Finds the first batch and the range to send.
    pub(super) fn plan(&mut self, partition: &mut Partition<P>, id: FetchId, expired: bool) -> Progress {
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        let request = fetch.request;
        let First { index, start, first_end } = match self.find_first(partition, id, request, expired) {
            Ok(first) => first,
            Err(progress) => return progress,
        };
        let visible = partition.visible_end(index);
        let segment = &partition.segments[index];
        let last = segment.uid == partition.durable.uid;
        let scarce = last && visible.since(start) < request.len_min.min(request.len_max);
        if scarce && !expired && request.wait_ms_max > 0 {
            return self.park(partition, id);
        }
        let (uid, first_len) = (segment.uid, first_end.since(start));
        let len = request.len_max.min(FETCH_LEN_MAX).max(first_len).min(visible.since(start));
        let end = match self.readable_end(partition, id, index, start, first_end, start.plus(len)) {
            Ok(end) => end,
            Err(progress) => return progress,
        };
        let segment = &partition.segments[index];
        let len = end.since(start);
        // What is in memory of a file that is not to be believed is sent from there.
        let by_file = partition.check_file(index).is_ok();
        let forced = request.mode.filter(|mode| by_file || !mode.is_of_file());
        let cold_by_splice = by_file && self.goes_by_splice(&request);
        // Pipes leave a range's edges in memory: there its middle tells.
        let middle = start.plus(ByteCount::new(len.get() / 2));
        let resident = partition.is_resident(&self.memory, segment.uid, start.plus(len))
            && (!cold_by_splice || partition.is_resident(&self.memory, segment.uid, middle));
        let facts = RangeFacts { resident, forced, cold_by_splice };
        let outcome = FetchOutcome {
            len,
            segment: segment.base_offset,
            position: start,
            watermarks: partition.watermarks(),
        };
        let mut stream = Stream {
            outcome,
            uid,
            at: start,
            first_end,
            end,
            mode: choose(facts),
            by_file: start..end,
            pieces: Vec::new(),
        };
        self.bring_ahead(partition, index, &mut stream, forced);
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        fetch.state = FetchState::Streaming(stream);
        self.stats.fetches += 1;
        match fetch.origin {
            Origin::Ticket(_) => self.gather(partition, id),
            _ => Progress::Planned(outcome),
        }
    }

    /// Finds the first batch of the answer; if there is none, or not yet, what becomes of the fetch.
    fn find_first(
        &mut self,
        partition: &mut Partition<P>,
        id: FetchId,
        request: FetchRequest,
        expired: bool,
    ) -> Result<First, Progress> {
        // The offset is below the high watermark, so a segment holds it, or compaction has removed it and
        // a later one follows.
        let Some(mut index) = partition.segment_of(request.offset) else {
            return Err(self.plan_empty(partition, id));
        };
        let mut resume = match self.fetches.get_mut(id).map(|fetch| &fetch.state) {
            Some(FetchState::Locating { uid, at }) if *uid == partition.segments[index].uid => Some(*at),
            _ => None,
        };
        loop {
            match partition.locate(&mut self.memory, &mut self.memo, index, &request, resume.take()) {
                Ok(Located::At(start, len)) => {
                    return Ok(First { index, start, first_end: start.plus(len) });
                }
                Ok(Located::Beyond) if index + 1 < partition.segments.len() => index += 1,
                // Only a hole follows, up to the high watermark: the next append ends the wait.
                Ok(Located::Beyond) if !expired && request.waits() => return Err(self.park(partition, id)),
                Ok(Located::Beyond) => return Err(self.plan_empty(partition, id)),
                Ok(Located::Stopped { at, missing, glance }) => {
                    let uid = partition.segments[index].uid;
                    if let Some(fetch) = self.fetches.get_mut(id) {
                        fetch.state = FetchState::Locating { uid, at };
                    }
                    let wanted = request.len_max.min(self.limits.cold_read_bytes_max);
                    let edge = self.reading(id) == Reading::Edge;
                    let until = missing.plus(if edge { CHUNK_LEN_MIN } else { wanted });
                    return Err(self.await_read(partition, id, uid, missing, until, glance));
                }
                Err(error) => return Err(Progress::Failed(Box::new(error))),
            }
        }
    }

    pub(super) fn plan_empty(&mut self, partition: &Partition<P>, id: FetchId) -> Progress {
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        let active = partition.active();
        let outcome = FetchOutcome {
            len: ByteCount::ZERO,
            segment: active.base_offset,
            position: partition.durable.position,
            watermarks: partition.watermarks(),
        };
        let (at, end) = (Position::ZERO, Position::ZERO);
        let uid = active.uid;
        let mode = Mode::Send;
        let (by_file, pieces) = (at..end, Vec::new());
        let first_end = at;
        fetch.state =
            FetchState::Streaming(Stream { outcome, uid, at, first_end, end, mode, by_file, pieces });
        self.stats.fetches += 1;
        match fetch.origin {
            Origin::Ticket(_) => Progress::Gathered,
            _ => Progress::Planned(outcome),
        }
    }
}
