//! Sends of what does not come from the arena: from the page cache, or through a connection's pipe.
//!
//! Always holds: a pipe is filled again only when it is empty, and by the fetch at the head of its connection.

use crate::cache::SegmentUid;
use crate::disk::Errno;
use crate::error::FetchError;
use crate::fetch::transfer::{FetchId, FetchState, Foreign, Part};
use crate::fetch::{FetchRequest, Mode};
use crate::log::partition::Origin;
use crate::message::Source;
use crate::ops::{ConnId, DiskOp, Fill, NetOp, Now, Ops, SendFile};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::Core;
use crate::shard::conn::{AnswerState, Pipe};
use crate::shard::sends::SEND_LEN_MAX;
use crate::token::Purpose;
use crate::types::{ByteCount, Position};

/// Most bytes in one fill: most of its cost is per fill. A pipe that has no room for so much is filled as far as it
/// goes.
const FILL_LEN_MAX: usize = 1 << 20;

/// Requests for less are read into memory: most of a pipe's cost is per fill.
const SPLICE_LEN_MIN: ByteCount = ByteCount::kib(256);

/// The rest of a fetch that does not come from the arena.
struct FileRange {
    mode: Mode,
    position: Position,
    len: usize,
}

impl<P: Platform, C> Core<P, C> {
    /// Whether a cold range of this request goes through a pipe, if nothing is forced.
    pub(super) fn goes_by_splice(&self, request: &FetchRequest) -> bool {
        self.limits.cold_by_splice
            && request.len_max >= SPLICE_LEN_MIN
            && self.modes.contains(Mode::DirectSplice)
    }

    pub(super) fn is_of_file(&mut self, fetch: FetchId) -> bool {
        self.file_range(fetch).is_some()
    }

    /// The rest of a fetch that does not come from the arena.
    fn file_range(&mut self, fetch: FetchId) -> Option<FileRange> {
        let entry = self.fetches.get_mut(fetch)?;
        if let FetchState::Foreign(Foreign { source: Source::File { position, .. }, mode, left, .. }) =
            &entry.state
        {
            return Some(FileRange { mode: *mode, position: *position, len: left.as_usize() });
        }
        let FetchState::Streaming(stream) = &entry.state else { return None };
        let Part::File(end) = stream.part() else { return None };
        let len = end.since(stream.at).as_usize();
        Some(FileRange { mode: stream.mode, position: stream.at, len })
    }

    /// Sends from the page cache, or from the connection's pipe once that is filled. Returns the length.
    pub(super) fn send_file(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) -> usize {
        let Some(range) = self.file_range(fetch) else { return 0 };
        if range.mode == Mode::Sendfile {
            let Some(file) = self.file_of(id, fetch, ops) else { return 0 };
            let Some(conn) = self.conn_mut(id) else { return 0 };
            conn.sending = true;
            let len = range.len.min(SEND_LEN_MAX);
            ops.net.push(NetOp::SendFile(SendFile { conn: id, file, position: range.position, len }));
            return len;
        }
        let Some(conn) = self.conn_mut(id) else { return 0 };
        match conn.pipe {
            Pipe::Holds(0) => {
                conn.pipe = Pipe::Queued;
                self.queue_fill(id, fetch);
                0
            }
            Pipe::Holds(held) => {
                conn.sending = true;
                let len = held.min(range.len);
                ops.net.push(NetOp::Drain { conn: id, len });
                len
            }
            Pipe::Queued | Pipe::Filling => 0,
        }
    }

    /// The file that a fetch's range lies in; `None`: it is being opened, or the connection is closed because it
    /// is gone, or not to be believed.
    fn file_of(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) -> Option<P::File> {
        let entry = self.fetches.get_mut(fetch)?;
        if let FetchState::Foreign(Foreign { source: Source::File { file, .. }, .. }) = &entry.state {
            return Some(file.clone());
        }
        let FetchState::Streaming(stream) = &entry.state else { return None };
        let (uid, partition_id) = (stream.uid, entry.request.partition);
        let partition = self.partitions.get_mut(partition_id);
        let found = partition.and_then(|partition| {
            let index = partition.segment_index(uid)?;
            partition.check_file(index).ok()?;
            Some(partition.segment_file(index, ops))
        });
        match found {
            Some(Some(file)) => Some(file),
            Some(None) => {
                self.await_file(fetch);
                None
            }
            None => {
                self.close(id, ops);
                None
            }
        }
    }

    /// A fetch goes on when its segment's file is open; see [`Self::handle_file_opened`].
    pub(super) fn await_file(&mut self, id: FetchId) {
        if let Some(fetch) = self.fetches.get_mut(id)
            && !std::mem::replace(&mut fetch.awaits_file, true)
        {
            self.waiting_for_file.push(id);
        }
    }

    /// A segment's file has been opened, or could not be: looks again at the fetches that wait for it.
    pub(super) fn handle_file_opened(
        &mut self,
        uid: SegmentUid,
        opened: &Result<(), FetchError>,
        ops: &mut Ops<P>,
    ) {
        let mut waiting = std::mem::take(&mut self.waiting_for_file);
        waiting.retain(|id| self.awaits_another(*id, uid, opened, ops));
        // The file may be closed again already.
        waiting.append(&mut self.waiting_for_file);
        self.waiting_for_file = waiting;
    }

    /// Whether a fetch waits for another file than this; if it does not, it goes on, or comes to nothing.
    fn awaits_another(
        &mut self,
        id: FetchId,
        uid: SegmentUid,
        opened: &Result<(), FetchError>,
        ops: &mut Ops<P>,
    ) -> bool {
        let Some(fetch) = self.fetches.get_mut(id) else { return false };
        let FetchState::Streaming(stream) = &fetch.state else { return false };
        if stream.uid != uid {
            return true;
        }
        let (origin, outcome) = (fetch.origin, stream.outcome);
        fetch.awaits_file = false;
        match (origin, opened) {
            (Origin::Frame { conn, .. }, Ok(())) => self.queue_conn(conn),
            // Its header may have left: there is no other way to tell.
            (Origin::Frame { conn, .. }, Err(_)) => self.close(conn, ops),
            (Origin::Shard { shard, call }, _) => {
                self.answer_shard(shard, call, Some(id), opened.clone().map(|()| outcome), ops);
            }
            (Origin::Ticket(_) | Origin::Service { .. }, _) => {}
        }
        false
    }

    /// Submits a connection's fill, whose turn it is. Returns its length; 0 if nothing came of it.
    pub(super) fn submit_fill(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) -> usize {
        let Some(conn) = self.conn_mut(id) else { return 0 };
        if conn.pipe != Pipe::Queued {
            return 0;
        }
        conn.pipe = Pipe::Holds(0);
        let Some(range) = self.file_range(fetch) else { return 0 };
        // A file that has to be opened first brings the connection back to its turn.
        let Some(file) = self.file_of(id, fetch, ops) else { return 0 };
        let Some(conn) = self.conn_mut(id) else { return 0 };
        conn.pipe = Pipe::Filling;
        let len = range.len.min(FILL_LEN_MAX);
        let (token, cached) = (Purpose::Fill(id).token(), range.mode == Mode::Splice);
        let position = range.position;
        ops.disk.push(DiskOp::Fill(Fill { token, conn: id, file, position, len, cached }));
        len
    }

    /// A connection's pipe has been filled, or could not be.
    pub(super) fn handle_filled(
        &mut self,
        id: ConnId,
        asked: usize,
        result: Result<usize, Errno>,
        ops: &mut Ops<P>,
    ) {
        self.end_fill(asked);
        let Some(conn) = self.conn_mut(id) else { return };
        conn.pipe = Pipe::Holds(result.unwrap_or(0));
        let head = conn.responses.front().map(|response| response.state);
        if result == Ok(0) {
            // The file ends before the log does.
            self.close(id, ops);
            return;
        }
        if result.is_err()
            && let Some(AnswerState::Ready(Some(fetch))) = head
        {
            self.stats.pipes_refused += u64::from(self.give_up_file(fetch));
        }
        if result.is_err()
            && let Some(AnswerState::Ready(Some(fetch))) = head
            && let Some(entry) = self.fetches.get_mut(fetch)
            && let FetchState::Streaming(stream) = &mut entry.state
        {
            // No pipe, or a file system without this way: the arena serves the rest, and reports what is wrong with
            // the device if that was it.
            stream.mode = Mode::DirectSend;
            self.stats.pipes_refused += 1;
        }
        self.queue_conn(id);
    }

    /// Bytes have gone into the socket from a file or from the connection's pipe, or could not.
    pub(super) fn handle_file_sent<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        result: Result<usize, Errno>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.sending = false;
        match result {
            // Zero: the file ends before the log does.
            Ok(0) | Err(_) => self.close(id, ops),
            Ok(len) => self.advance_file(id, len),
        }
        self.queue_conn(id);
        self.resume(id, service, now, ops);
    }

    /// `len` bytes that did not come from the arena have gone into the socket.
    fn advance_file(&mut self, id: ConnId, len: usize) {
        let Some(conn) = self.conn_mut(id) else { return };
        let Some(AnswerState::Ready(Some(fetch))) = conn.responses.front().map(|head| head.state) else {
            return;
        };
        if let Pipe::Holds(held) = &mut conn.pipe {
            *held = held.saturating_sub(len);
        }
        let Some(entry) = self.fetches.get_mut(fetch) else { return };
        let mode = match &mut entry.state {
            FetchState::Streaming(stream) => {
                stream.at = stream.at.plus(ByteCount::of_usize(len));
                stream.mode
            }
            FetchState::Foreign(Foreign { source: Source::File { position, .. }, left, mode, .. }) => {
                *position = position.plus(ByteCount::of_usize(len));
                *left = ByteCount::new(left.get().saturating_sub(len as u64));
                *mode
            }
            _ => return,
        };
        match mode {
            Mode::DirectSplice => self.stats.sent_through_pipes += len as u64,
            _ => self.stats.sent_from_page_cache += len as u64,
        }
    }
}
