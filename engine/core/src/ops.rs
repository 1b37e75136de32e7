//! What the core asks of a driver, and what the driver answers.
//!
//! An operation is one step: write this extent, read into that chunk, send these ranges. It owns its
//! memory until the driver has no more use for it. Every operation is answered once by its event;
//! answers may come in any order. A driver holds no logic about durability or order: it submits disk
//! operations before the others of the same turn, and otherwise does as it is told.

use arrayvec::ArrayVec;

use crate::bill::table_len;
use crate::disk::Errno;
use crate::fetch::ModeSet;
use crate::log::step::{Step, StepOutput};
use crate::message::{Letter, Reply, Request, ShardId, Ticket};
use crate::platform::Platform;
use crate::types::{ByteCount, Nanos, Position, Timestamp};

/// Most leases in one write, bounce block excluded: a commit of [`crate::limits::COMMIT_LEN_MAX`]
/// laid over chunks of 64 KiB, both edges unaligned, and one to spare.
pub const WRITE_EXTENTS_MAX: usize = 66;

/// Most pieces in one send.
pub const SEND_PARTS_MAX: usize = 8;

/// Names one outstanding operation to the core. A driver returns it unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A connection's slot and its generation, given out by the driver when it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Index into the driver's table; below [`crate::limits::ShardLimits::connections_max`].
    pub slot: u32,
    /// Raised at every reuse of the slot.
    pub generation: u32,
}

/// One vectored write at `position`.
///
/// The pieces lie end to end. On a direct file, position and every piece are multiples of
/// [`crate::platform::DIRECT_IO_ALIGN`].
pub struct Write<P: Platform> {
    /// Returned in [`Event::Written`].
    pub token: Token,
    /// Where to.
    pub file: P::File,
    /// Start in the file.
    pub position: Position,
    /// Frozen memory, in order.
    pub extents: ArrayVec<P::Lease, WRITE_EXTENTS_MAX>,
    /// The padded last block, after the extents.
    pub bounce: Option<P::Chunk>,
    /// Total length of extents and bounce.
    pub len: ByteCount,
    /// Whether the completion means "confirmed by the device" (`RWF_DSYNC`).
    pub durable: bool,
}

/// One direct read of `[position, position + range.len())` into `chunk[range]`.
pub struct Read<P: Platform> {
    /// Returned in [`Event::ReadDone`].
    pub token: Token,
    /// Where from.
    pub file: P::File,
    /// Start in the file.
    pub position: Position,
    /// Where to; nothing in `range` is frozen.
    pub chunk: P::Chunk,
    /// First byte of the chunk to fill.
    pub from: usize,
    /// Bytes to read; a short result means the file ends there.
    pub len: usize,
    /// Through the page cache instead of past it.
    pub cached: bool,
}

/// Moves up to `len` bytes of a file, from `position` on, into a pipe that the driver keeps for the connection.
/// Whatever was in the connection's pipe has been drained before.
///
/// Past the page cache the driver reads whole blocks and discards what lies before `position`.
pub struct Fill<P: Platform> {
    /// Returned in [`Event::Filled`].
    pub token: Token,
    /// For which connection.
    pub conn: ConnId,
    /// Where from.
    pub file: P::File,
    /// Start in the file, on no particular boundary.
    pub position: Position,
    /// Bytes wanted; the pipe may hold fewer.
    pub len: usize,
    /// Through the page cache instead of past it.
    pub cached: bool,
}

/// One piece of a send.
pub enum SendPart<P: Platform> {
    /// Header bytes; the buffer returns with the operation. Always copied into the socket.
    Bytes(Vec<u8>),
    /// Log bytes in memory.
    Lease(P::Lease),
}

impl<P: Platform> AsRef<[u8]> for SendPart<P> {
    fn as_ref(&self) -> &[u8] {
        match self {
            SendPart::Bytes(bytes) => bytes,
            SendPart::Lease(lease) => lease.as_ref(),
        }
    }
}

/// The pieces of a send, in order. They travel in a box that comes back with the operation: an operation goes through
/// several queues, and moves as a pointer. A connection has one such box.
pub type SendParts<P> = Box<ArrayVec<SendPart<P>, SEND_PARTS_MAX>>;

/// How leases get into the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendHow {
    /// The kernel copies them.
    #[default]
    Copy,
    /// The network card reads them in place, and the kernel says when it is done (`SEND_ZC`).
    ZeroCopy,
    /// The socket refers to their pages, and nobody says when it is done: the pages are replaced before their
    /// memory is used again (DESIGN D4a).
    Reference,
}

/// Send these pieces, in order, onto one connection. At most one transfer per connection is
/// outstanding. The driver sends as much as the socket takes and reports how much.
///
/// The operation comes back as soon as the socket has taken bytes. What the kernel reads beyond that, the
/// driver keeps alive by leases of its own.
pub struct Send<P: Platform> {
    /// Onto which connection.
    pub conn: ConnId,
    /// What; never empty. The first `skip` bytes of the first piece are already sent.
    pub parts: SendParts<P>,
    /// Bytes of the first piece to leave out.
    pub skip: usize,
    /// Whether more of the same response follows at once (`MSG_MORE`).
    pub more: bool,
    /// How the leases among the parts are sent.
    pub how: SendHow,
}

/// Send `len` bytes of a file from the page cache, as much as the socket takes.
pub struct SendFile<P: Platform> {
    /// Onto which connection.
    pub conn: ConnId,
    /// Which file; the driver uses its buffered descriptor.
    pub file: P::File,
    /// Start in the file.
    pub position: Position,
    /// Bytes to send.
    pub len: usize,
}

/// Operations on the device's data path.
pub enum DiskOp<P: Platform> {
    /// See [`Write`].
    Write(Write<P>),
    /// Make everything written to the file durable.
    Sync {
        /// Returned in [`Event::Synced`].
        token: Token,
        /// Which file.
        file: P::File,
    },
    /// See [`Read`].
    Read(Read<P>),
    /// See [`Fill`].
    Fill(Fill<P>),
}

/// Operations on sockets.
pub enum NetOp<P: Platform> {
    /// Deliver what arrives on the connection as [`Event::Received`], until paused or closed.
    Receive(ConnId),
    /// Deliver nothing more for now. What is already under way still arrives as [`Event::Received`].
    Pause(ConnId),
    /// See [`Send`].
    Send(Send<P>),
    /// See [`SendFile`].
    SendFile(SendFile<P>),
    /// Send up to `len` bytes of what is in the connection's pipe, as much as the socket takes.
    Drain {
        /// Onto which connection.
        conn: ConnId,
        /// At most what [`Event::Filled`] said is there.
        len: usize,
    },
    /// Give back the memory of the [`Send`] under way, which is copied or goes by reference: it ends at once, with what
    /// the socket has taken of it, perhaps nothing. [`Event::Writable`] follows, also where the send has ended by
    /// itself, unless the connection is closed before.
    Recall(ConnId),
    /// Close at once; outstanding operations end with an error first, [`Event::Closed`] comes last.
    Close(ConnId),
}

/// Everything a shard asks for in one turn. Capacities are fixed at start-up.
pub struct Ops<P: Platform> {
    /// Submitted first, by themselves.
    pub disk: Vec<DiskOp<P>>,
    /// Submitted second.
    pub net: Vec<NetOp<P>>,
    /// Run on a helper thread, each by [`Step::run`], in the order given per partition, and answered in that
    /// order.
    pub steps: Vec<(Token, Box<Step<P>>)>,
    /// Handed to whoever sent the request.
    pub replies: Vec<(Ticket, Reply<P>)>,
    /// Brought to other shards of the engine, in order; dropped where the shard has ended.
    pub to_shards: Vec<(ShardId, Letter<P>)>,
    /// Whether another slab is wanted; answered by [`Event::Grown`] or [`Event::GrowFailed`].
    pub grow: bool,
}

impl<P: Platform> Ops<P> {
    /// Queues with room for `capacity` operations of each kind.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            disk: Vec::with_capacity(capacity),
            net: Vec::with_capacity(capacity),
            steps: Vec::with_capacity(capacity),
            replies: Vec::with_capacity(capacity),
            to_shards: Vec::with_capacity(capacity),
            grow: false,
        }
    }

    /// Bytes of memory that queues of this capacity take.
    pub const fn memory_len(capacity: usize) -> usize {
        table_len::<DiskOp<P>>(capacity)
            + table_len::<NetOp<P>>(capacity)
            + table_len::<(Token, Box<Step<P>>)>(capacity)
            + table_len::<(Ticket, Reply<P>)>(capacity)
            + table_len::<(ShardId, Letter<P>)>(capacity)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.disk.is_empty()
            && self.net.is_empty()
            && self.steps.is_empty()
            && self.replies.is_empty()
            && self.to_shards.is_empty()
            && !self.grow
    }
}

/// What happened since the last turn.
pub enum Event<P: Platform> {
    /// A [`Write`] ended. Less than the requested length is not an error by itself; the core decides.
    Written {
        /// From the operation.
        token: Token,
        /// Bytes written.
        result: Result<ByteCount, Errno>,
    },
    /// A [`DiskOp::Sync`] ended.
    Synced {
        /// From the operation.
        token: Token,
        /// Whether the data is on the device.
        result: Result<(), Errno>,
    },
    /// A [`Read`] ended; its memory comes back.
    ReadDone {
        /// From the operation.
        token: Token,
        /// From the operation.
        chunk: P::Chunk,
        /// Bytes read.
        result: Result<usize, Errno>,
    },
    /// A step ended.
    StepDone {
        /// From the operation.
        token: Token,
        /// What it brought.
        output: Box<StepOutput<P>>,
    },
    /// A slab of memory arrived. The driver has already registered it where it can.
    Grown(P::Slab),
    /// No further slab is to be had.
    GrowFailed(Errno),
    /// Somebody connected.
    Accepted {
        /// Where.
        conn: ConnId,
        /// Whether the peer is on another machine, as far as its address tells: only then may sending without a
        /// copy pay.
        remote: bool,
    },
    /// Bytes arrived. Empty: the peer sends no more.
    Received {
        /// Where.
        conn: ConnId,
        /// What, or why receiving ended.
        bytes: Result<P::RecvBuf, Errno>,
    },
    /// A [`Fill`] ended. Comes before the connection's [`Event::Closed`].
    Filled {
        /// From the operation.
        token: Token,
        /// Bytes asked for.
        asked: usize,
        /// Bytes of the range asked for that are in the pipe now; 0 where the file has none there. An error means
        /// that the pipe is empty, or that there is none to be had.
        result: Result<usize, Errno>,
    },
    /// A [`Send`] ended.
    Sent {
        /// Bytes taken by the socket.
        result: Result<usize, Errno>,
        /// The operation.
        send: Send<P>,
    },
    /// A [`SendFile`] or [`NetOp::Drain`] ended.
    FileSent {
        /// From the operation.
        conn: ConnId,
        /// Bytes taken by the socket.
        result: Result<usize, Errno>,
    },
    /// After [`NetOp::Recall`] and the end of its send: the socket takes bytes again, or is broken.
    Writable(ConnId),
    /// The kernel has copied what it was to send without a copy: it costs more and gains nothing here.
    CopiedAnyway(ConnId),
    /// The connection is gone and its slot may be reused.
    Closed(ConnId),
    /// A request from a handle.
    Request(Ticket, Request),
    /// A letter from another shard.
    Letter(ShardId, Letter<P>),
    /// Another shard has ended; nothing comes from it any more.
    ShardEnded(ShardId),
}

/// A turn's time, read once.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations.
    pub mono: Nanos,
    /// For record timestamps and retention.
    pub wall: Timestamp,
}

/// Executes operations. One per shard, on the shard's thread.
pub trait Driver {
    /// The types it works with.
    type Platform: Platform;

    /// Why a turn could not be made; the shard cannot go on.
    type Error: std::error::Error + std::marker::Send + Sync + 'static;

    /// The modes that it can execute on this host.
    fn modes(&self) -> ModeSet {
        Self::Platform::MODES
    }

    /// The time.
    fn now(&self) -> Now;

    /// Executes and empties `ops`, then collects what has happened. Waits for something to happen
    /// until `deadline` (forever for `None`), but only when no operation of this turn has completed
    /// on the spot.
    fn turn(
        &mut self,
        ops: &mut Ops<Self::Platform>,
        events: &mut Vec<Event<Self::Platform>>,
        deadline: Option<Nanos>,
    ) -> Result<(), Self::Error>;
}
