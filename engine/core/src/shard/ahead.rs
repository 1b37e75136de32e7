//! Reading ahead of readers that go through old data: the disk brings the next range while this one is being sent.
//!
//! Owns the places at which cold fetches ended lately. Always holds: a fetch is read ahead of by at most
//! `cold_ahead_len`, once, and only if it went on where an earlier one had ended, so that a reader that stops leaves no
//! more than that behind, in the queue that is evicted first. Nothing is read ahead while other cold reads wait or are in
//! flight, nor in the active segment: its end is in memory.

use crate::cache::SegmentUid;
use crate::fetch::Mode;
use crate::fetch::transfer::Stream;
use crate::log::partition::Partition;
use crate::platform::{CHUNK_LEN_MIN, Platform};
use crate::shard::Core;
use crate::shard::reads::Reading;
use crate::types::{ByteCount, Position};

/// Readers that are recognised when they come again; more than this many at once are not read ahead of.
const PLACES_MAX: usize = 16;

/// Bytes by which a fetch may begin before the end of the last: that one may have ended inside a batch.
const OVERLAP_LEN_MAX: ByteCount = ByteCount::mib(1);

/// Most bytes at the end of a range that goes by file which go through memory.
const EDGE_LEN_MAX: u64 = 128 << 10;

/// Ranges whose whole chunks are less than this go by file with their edges.
const PIPED_LEN_MIN: u64 = 128 << 10;

/// Where cold fetches ended, the one noted longest ago first to go.
pub(super) struct Places {
    ends: [Option<(SegmentUid, Position)>; PLACES_MAX],
    oldest: usize,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { ends: [None; PLACES_MAX], oldest: 0 }
    }

    /// The place of the reader that goes on at `start`.
    fn find(&mut self, uid: SegmentUid, start: Position) -> Option<&mut (SegmentUid, Position)> {
        self.ends.iter_mut().flatten().find(|(in_segment, end)| {
            *in_segment == uid && start <= end.plus(CHUNK_LEN_MIN) && start.plus(OVERLAP_LEN_MAX) >= *end
        })
    }

    fn note(&mut self, place: (SegmentUid, Position)) {
        self.ends[self.oldest] = Some(place);
        self.oldest = (self.oldest + 1) % PLACES_MAX;
    }
}

impl<P: Platform, C> Core<P, C> {
    /// A fetch from the segment at `index` has been planned: brings what it will want next.
    pub(super) fn bring_ahead(
        &mut self,
        partition: &Partition<P>,
        index: usize,
        stream: &mut Stream<P>,
        forced: Option<Mode>,
    ) {
        match stream.mode {
            Mode::DirectSplice => self.read_edge(partition, index, stream),
            Mode::Sendfile | Mode::Splice => {}
            _ if forced == Some(Mode::ReadSend) => {}
            mode => self.read_ahead(partition, index, stream.at, stream.end, mode),
        }
    }

    /// Leaves the edges of a range to memory, so that its fills lie on whole chunks, and reads the one at its end, where
    /// its reader will look for the batch to go on with: the disk reads nothing twice, and the next fetch finds its
    /// batch at once.
    fn read_edge(&mut self, partition: &Partition<P>, index: usize, stream: &mut Stream<P>) {
        let chunk = CHUNK_LEN_MIN.get();
        let segment = &partition.segments[index];
        let last = stream.end.align_down(chunk);
        let walked = segment.index.offsets().walk_start(stream.end).align_down(chunk);
        let tail = walked.max(Position::new(last.get().saturating_sub(EDGE_LEN_MAX - chunk)));
        let head = stream.at.align_up(chunk);
        if tail.get() < head.get() + PIPED_LEN_MIN {
            return;
        }
        stream.by_file = head..tail;
        // The end of the active segment is in memory.
        if index + 1 < partition.segments.len() {
            let until = stream.end.plus(ByteCount::new(1)).min(partition.visible_end(index));
            self.request_reads(partition, segment.uid, tail, until, Reading::Edge);
        }
    }

    /// A fetch of `[start, end)` of the segment at `index` has been planned: notes where it ends, and reads ahead if
    /// its reader was expected here.
    fn read_ahead(
        &mut self,
        partition: &Partition<P>,
        index: usize,
        start: Position,
        end: Position,
        mode: Mode,
    ) {
        let ahead = self.limits.cold_ahead_len;
        let known = self.places.find(partition.segments[index].uid, start);
        let cold = mode == Mode::DirectSend;
        if ahead == ByteCount::ZERO || (known.is_none() && !cold) {
            return;
        }
        let (next, from) = match end >= partition.visible_end(index) {
            true => (index + 1, Position::ZERO),
            false => (index, end),
        };
        if next + 1 >= partition.segments.len() {
            return;
        }
        let uid = partition.segments[next].uid;
        match known {
            Some(place) => *place = (uid, from),
            None => return self.places.note((uid, from)),
        }
        // Beside other readers' reads the disk has enough to do, and what it brings early only takes their place.
        if self.reads.are_done() {
            let until = from.plus(ahead).min(partition.visible_end(next));
            self.request_reads(partition, uid, from, until, Reading::Range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: SegmentUid = SegmentUid(3);

    /// A reader is known where its last fetch ended, a batch before that, and right behind it; not elsewhere, not in
    /// another segment.
    #[test]
    fn a_reader_is_known_where_it_goes_on() {
        let mut places = Places::new();
        let end = Position::new(8 << 20);
        assert!(places.find(UID, end).is_none());
        places.note((UID, end));
        for start in [8 << 20, 7 << 20, (8 << 20) + 65_536] {
            assert!(places.find(UID, Position::new(start)).is_some(), "{start}");
        }
        for start in [(7 << 20) - 1, (8 << 20) + 65_537, 0] {
            assert!(places.find(UID, Position::new(start)).is_none(), "{start}");
        }
        assert!(places.find(SegmentUid(4), end).is_none());
    }

    /// The place that was noted longest ago goes first.
    #[test]
    fn the_oldest_place_goes_first() {
        let mut places = Places::new();
        let at = |n: u32| (SegmentUid(n), Position::ZERO);
        (0..=PLACES_MAX as u32).for_each(|n| places.note(at(n)));
        assert!(places.find(SegmentUid(0), Position::ZERO).is_none());
        assert!((1..=PLACES_MAX as u32).all(|n| places.find(SegmentUid(n), Position::ZERO).is_some()));
    }
}
