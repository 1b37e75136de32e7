//! Fetches and appends of this shard's connections that another shard carries out.
//!
//! Log bytes stay where they are: their leases come here a letter at a time, go to the socket, and are dropped;
//! the memory finds its own way home. Always holds: at most one letter of bytes is on its way for a fetch and
//! one is here, so that a peer that reads nothing holds little of the owner's memory.

use std::ops::Range;

use crate::error::{AppendError, FetchError};
use crate::fetch::policy::{PieceFacts, hand_over};
use crate::fetch::transfer::{FetchId, FetchState, Foreign};
use crate::fetch::{FetchOutcome, FetchRequest, Mode};
use crate::log::partition::Origin;
use crate::message::{Letter, PartitionId, Pieces, ShardId, Source};
use crate::ops::{ConnId, Ops, SendHow};
use crate::platform::{Lease, Platform};
use crate::service::Service;
use crate::shard::Core;
use crate::shard::sends::Piece;
use crate::types::ByteCount;

/// The batches of an append for another shard.
pub(super) struct Away {
    pub(super) owner: ShardId,
    pub(super) partition: PartitionId,
    /// Which bytes of the frame are the record batches.
    pub(super) batches: Range<usize>,
    pub(super) origin: Origin,
}

impl<P: Platform, C> Core<P, C> {
    /// Asks the owner to plan a fetch of a connection.
    pub(super) fn ask<S: Service<Connection = C>>(
        &mut self,
        owner: ShardId,
        id: FetchId,
        request: FetchRequest,
        service: &mut S,
        ops: &mut Ops<P>,
    ) {
        if self.peers.has_ended(owner) {
            self.end_call(id, FetchError::Closing, service, ops);
            return;
        }
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        fetch.state = FetchState::Asked { owner };
        self.stats.fetches_at_others += 1;
        self.peers.push(owner, Letter::Fetch { call: id.into(), request });
    }

    /// A fetch at another shard has failed.
    pub(super) fn end_call<S: Service<Connection = C>>(
        &mut self,
        id: FetchId,
        error: FetchError,
        service: &mut S,
        ops: &mut Ops<P>,
    ) {
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        let origin = fetch.origin;
        if matches!(fetch.state, FetchState::Foreign(_)) {
            // Its header has left: the connection finds the failure when it is to send the rest.
            fetch.failure = Some(error);
            if let Origin::Frame { conn, .. } = origin {
                self.queue_conn(conn);
            }
            return;
        }
        // The owner knows that it has ended.
        fetch.state = FetchState::New;
        self.fetches.end(id);
        self.answer(origin, None, Err(error), service, ops);
    }

    pub(super) fn handle_planned<S: Service<Connection = C>>(
        &mut self,
        id: FetchId,
        outcome: FetchOutcome,
        mode: Mode,
        source: Source<P>,
        service: &mut S,
        ops: &mut Ops<P>,
    ) {
        // A fetch that has been cancelled meanwhile: its owner has been told.
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        let Some(owner) = fetch.owner() else { return };
        let pulled = match &source {
            Source::Memory { plan, pieces } => plan.is_some() && pieces.is_empty(),
            Source::File { .. } => false,
        };
        let origin = fetch.origin;
        if let FetchState::Foreign(foreign) = &mut fetch.state {
            // It goes on; its header has left.
            debug_assert_eq!(foreign.left, outcome.len, "what was left is what comes");
            (foreign.mode, foreign.source, foreign.pulled) = (mode, source, pulled);
            if let Origin::Frame { conn, .. } = origin {
                self.queue_conn(conn);
            }
            return;
        }
        let left = outcome.len;
        fetch.state = FetchState::Foreign(Foreign { owner, left, outcome, mode, source, pulled });
        self.answer(origin, Some(id), Ok(outcome), service, ops);
    }

    pub(super) fn handle_bytes(&mut self, id: FetchId, more: Result<Pieces<P>, FetchError>) {
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        let origin = fetch.origin;
        let FetchState::Foreign(foreign) = &mut fetch.state else { return };
        foreign.pulled = false;
        match (more, &mut foreign.source) {
            (Ok(more), Source::Memory { pieces, .. }) => {
                debug_assert!(pieces.is_empty(), "bytes come when they are wanted");
                *pieces = more;
            }
            (Err(error), _) => fetch.failure = Some(error),
            (Ok(_), Source::File { .. }) => debug_assert!(false, "files are read here"),
        }
        if let Origin::Frame { conn, .. } = origin {
            self.queue_conn(conn);
        }
    }

    /// Stages the next piece of a foreign fetch, or ends it. `None` if the fetch is this shard's own.
    pub(super) fn stage_foreign(
        &mut self,
        conn_id: ConnId,
        id: FetchId,
        len_max: usize,
    ) -> Option<Result<Piece, FetchError>> {
        let zero_copy = self.conn_mut(conn_id).is_some_and(|conn| conn.zero_copy);
        let modes = self.modes;
        let fetch = self.fetches.get_mut(id)?;
        let FetchState::Foreign(foreign) = &mut fetch.state else { return None };
        if foreign.left == ByteCount::ZERO {
            return Some(self.end_staged(conn_id, id));
        }
        let Source::Memory { plan, pieces } = &mut foreign.source else {
            return Some(Ok(Piece::NotNow));
        };
        let Some((first, how)) = pieces.first_mut() else {
            let failure = fetch.failure.take();
            if failure.is_none() && plan.is_none() && !foreign.pulled {
                // They were given back.
                foreign.pulled = true;
                let (call, request, rest) = (id.into(), fetch.request, foreign.rest());
                self.peers.push(foreign.owner, Letter::Resume { call, request, rest });
            }
            return Some(failure.map_or(Ok(Piece::NotNow), Err));
        };
        let facts =
            PieceFacts { len: foreign.outcome.len, shared: false, zero_copy, forced: fetch.request.mode };
        // Only the owner knows whether others read the same memory.
        let how = if *how == SendHow::Reference { *how } else { hand_over(facts, modes) };
        if let Some(conn) = self.conns.get_mut(conn_id.slot as usize).and_then(Option::as_deref_mut)
            && !conn.goes_with(how)
        {
            return Some(Ok(Piece::OtherWay));
        }
        let piece = if first.len() > len_max {
            let piece = first.slice(0..len_max);
            *first = first.slice(len_max..first.len());
            piece
        } else {
            pieces.remove(0).0
        };
        let len = ByteCount::of_usize(piece.len());
        debug_assert!(len <= foreign.left, "no more comes than was planned");
        foreign.left = ByteCount::new(foreign.left.get().saturating_sub(len.get()));
        // The next bytes are fetched while these leave.
        if let Some(plan) = *plan
            && pieces.is_empty()
            && foreign.left > ByteCount::ZERO
            && !foreign.pulled
        {
            foreign.pulled = true;
            self.peers.push(foreign.owner, Letter::Pull { plan, from: None });
        }
        if let Some(conn) = self.conn_mut(conn_id) {
            conn.stage_lease(piece);
        }
        Some(Ok(Piece::Staged))
    }

    /// A connection's pipe could not be filled for a foreign fetch: its owner serves the rest from memory.
    /// `false` if the fetch is this shard's own.
    pub(super) fn give_up_file(&mut self, id: FetchId) -> bool {
        let Some(fetch) = self.fetches.get_mut(id) else { return false };
        let FetchState::Foreign(foreign) = &mut fetch.state else { return false };
        let Source::File { position, plan, .. } = &foreign.source else { return false };
        let (from, plan) = (Some(*position), *plan);
        match plan {
            Some(plan) => self.peers.push(foreign.owner, Letter::Pull { plan, from }),
            None => fetch.failure = Some(FetchError::Cancelled),
        }
        foreign.mode = Mode::DirectSend;
        foreign.pulled = plan.is_some();
        foreign.source = Source::Memory { plan, pieces: Pieces::<P>::new() };
        true
    }

    /// Sends an append to the partition's owner, in `frame`, which travels.
    pub(super) fn send_away(&mut self, away: Away, frame: Vec<u8>) {
        let Away { owner, partition, batches, origin } = away;
        debug_assert!(batches.end <= frame.len());
        if self.peers.has_ended(owner) {
            self.outcomes.push((origin, Err(AppendError::Closing)));
            self.peers.recycle(frame);
            return;
        }
        let Some(call) = self.peers.begin_append(owner, origin) else {
            self.outcomes.push((origin, Err(AppendError::Busy)));
            self.peers.recycle(frame);
            return;
        };
        self.stats.appends_at_others += 1;
        self.peers.push(owner, Letter::Append { call, partition, frame, batches });
    }

    /// As [`Self::send_away`], for batches in memory that cannot travel.
    pub(super) fn copy_away(&mut self, away: Away, frame: &[u8]) {
        let bytes = &frame[away.batches.clone()];
        let mut copy = self.peers.frame();
        copy.extend_from_slice(bytes);
        self.stats.payload_copied_between_shards += bytes.len() as u64;
        self.send_away(Away { batches: 0..bytes.len(), ..away }, copy);
    }
}
