//! Sends whose memory the kernel reads in place (`SENDMSG_ZC`).
//!
//! Header bytes in front are copied, by a call of their own: only leases are worth a second completion. A send
//! comes back at its first completion; the leases it named stay here until the kernel says that it has done
//! reading. Owns these leases. Always holds: what is in the table is not free memory; a connection may close, and
//! its slot serve the next one, while the kernel still reads.

use arrayvec::ArrayVec;
use io_uring::{cqueue, opcode, types};
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, SEND_PARTS_MAX, Send, SendPart};
use rohrpost_engine_core::planted::{Bug, is_planted};

use super::UringPlatform;
use super::conn::Transfer;
use super::features::Feature;
use super::net_ops::{ConnTable, Events, Outcome};
use super::ring::{Cqe, Ring};
use super::slab::{Key, Kind, Slab};
use super::socket::send_now;
use crate::arena::LinuxLease;

/// `IORING_SEND_ZC_REPORT_USAGE`.
pub(super) const REPORT_USAGE: u16 = 1 << 3;

/// `IORING_NOTIF_USAGE_ZC_COPIED`, the highest bit of a notification's result.
const COPIED: i32 = i32::MIN;

/// Sends before memory is allocated for more.
const SENDS_CAPACITY: usize = 64;

#[derive(Default)]
struct ZeroCopy {
    conn: Option<ConnId>,
    leases: ArrayVec<LinuxLease, SEND_PARTS_MAX>,
}

/// The memory that the kernel reads in place.
pub(super) struct ZeroCopies {
    sends: Slab<ZeroCopy>,
    /// Sends without a copy so far.
    pub(super) sent_count: u64,
    /// Those of them that the kernel copied all the same.
    pub(super) copied_count: u64,
}

impl ZeroCopies {
    /// An empty table.
    pub(super) fn new() -> Self {
        Self { sends: Slab::with_capacity(Kind::ZeroCopy, SENDS_CAPACITY), sent_count: 0, copied_count: 0 }
    }

    /// Bytes of memory that it takes before there are more sends than usual.
    pub(super) const fn memory_len() -> usize {
        Slab::<ZeroCopy>::memory_len(SENDS_CAPACITY)
    }

    /// Sends whose memory the kernel may still read.
    pub(super) fn live_count(&self) -> usize {
        self.sends.live_count()
    }
}

impl ConnTable {
    /// Sends the header bytes in front at once, and submits the leases behind them.
    pub(super) fn send_zero_copy(
        &mut self,
        ring: &mut Ring,
        send: Send<UringPlatform>,
        events: &mut Events,
    ) -> Outcome {
        let slot = send.conn.slot;
        let conn = &mut self.conns[slot as usize];
        let is_bytes = |part: &SendPart<_>| matches!(part, SendPart::Bytes(_));
        let heads = send.parts.iter().take_while(|part| is_bytes(part)).count();
        let end = heads + send.parts[heads..].iter().take_while(|part| !is_bytes(part)).count();
        let mut copied = 0;
        if heads > 0 {
            let header = &send.parts[..heads];
            let len = header.iter().map(|part| part.as_ref().len()).sum::<usize>() - send.skip;
            let more = send.more || heads < send.parts.len();
            self.inline_count += 1;
            match send_now(conn.socket.as_ref(), header, send.skip, more) {
                Ok(taken) if taken == len && end > heads => copied = taken,
                Err(Errno::AGAIN) => return self.send_parts(ring, send, 0..heads),
                result => {
                    events.push(Event::Sent { result, send });
                    return Ok(());
                }
            }
        }
        let more = send.more || end < send.parts.len();
        let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let (key, kept) = self.zero_copies.sends.take();
        kept.conn = Some(conn.id);
        kept.leases.extend(send.parts[heads..end].iter().filter_map(|part| match part {
            SendPart::Lease(lease) => Some(lease.clone()),
            SendPart::Bytes(_) => None,
        }));
        conn.transfer = Transfer::ZeroCopy(send, copied);
        let message = conn.message(heads..end);
        let report = if self.features.has(Feature::ZcReport) { REPORT_USAGE } else { 0 };
        let request = opcode::SendMsgZc::new(types::Fd(conn.fd()), message);
        let entry = request.flags(flags as u32).ioprio(report).build();
        conn.requests += 1;
        self.requests += 1;
        self.zero_copies.sent_count += 1;
        // SAFETY: [U20] the connection owns socket, message and parts until the first completion, the table owns
        // leases on the same memory until the notification.
        unsafe { ring.push(&entry.user_data(key.encode())) }
    }

    /// Gives up the memory that the kernel may still read.
    pub(super) fn leak_zero_copies(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.zero_copies, ZeroCopies::new()));
    }

    /// Takes the completion of such a send, or the word that its memory is no longer read.
    pub(super) fn complete_zero_copy(
        &mut self,
        ring: &mut Ring,
        key: Key,
        cqe: Cqe,
        events: &mut Events,
    ) -> Outcome {
        let kept = self.zero_copies.sends.get_mut(key);
        let Some((kept, id)) = kept.and_then(|kept| kept.conn.map(|id| (kept, id))) else {
            debug_assert!(false, "a completion of no send: {key:?}");
            return Ok(());
        };
        if is_planted(Bug::ReuseBeforeNotification) {
            kept.leases.clear();
        }
        if !cqe.more()
            && let Some(kept) = self.zero_copies.sends.release(key)
        {
            *kept = ZeroCopy::default();
        }
        if cqueue::notif(cqe.flags) {
            if cqe.result & COPIED != 0 {
                self.zero_copies.copied_count += 1;
                if self.find(id).is_some() {
                    events.push(Event::CopiedAnyway(id));
                }
            }
            return Ok(());
        }
        let conn = &mut self.conns[id.slot as usize];
        debug_assert_eq!(conn.id, id, "a send keeps its connection's slot");
        conn.requests -= 1;
        self.requests -= 1;
        let Transfer::ZeroCopy(send, copied) = std::mem::replace(&mut conn.transfer, Transfer::None) else {
            unreachable!("a send completed that is not under way");
        };
        let result = match cqe.outcome() {
            Ok(taken) => Ok(copied + taken),
            Err(_) if conn.closing => Err(Errno::CANCELED),
            // Interrupted before the first byte.
            Err(Errno(libc::EINTR) | Errno::AGAIN) => Ok(copied),
            // The pages cannot be pinned: the locked-memory limit. What went before is reported first.
            Err(Errno::NOMEM | Errno(libc::ENOBUFS)) if copied > 0 => Ok(copied),
            Err(Errno::NOMEM | Errno(libc::ENOBUFS)) => {
                let all = 0..send.parts.len();
                return self.send_parts(ring, send, all);
            }
            Err(errno) => Err(errno),
        };
        events.push(Event::Sent { result, send });
        self.close_if_quiet(id.slot, events);
        Ok(())
    }
}
