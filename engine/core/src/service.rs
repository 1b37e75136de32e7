//! What an embedder runs on the shards themselves: a protocol.
//!
//! The shard receives, splits frames by [`Service::frame_len`], and hands each to
//! [`Service::handle_frame`]. Every frame gets exactly one [`Answer`], and answers leave the
//! connection in the order of their frames. Header bytes come from the service, log bytes go from the
//! arena or the page cache straight to the socket.

use crate::error::{AppendError, FetchError};
use crate::fetch::{FetchOutcome, FetchRequest};
use crate::format::names::TopicPartition;
use crate::message::{Appended, PartitionId, Watermarks};
use crate::ops::{ConnId, Now};
use crate::types::Nanos;

/// Where the first frame in a receive buffer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// It takes the first so many bytes; at least 1.
    Complete(usize),
    /// More bytes must arrive first.
    Incomplete,
    /// This is no frame; the connection is closed, since the next one cannot be found.
    Malformed,
}

/// What a frame leads to.
#[derive(Debug)]
pub enum Answer {
    /// The bytes written to the response are the whole answer.
    Respond,
    /// Read a partition; [`Service::handle_fetched`] then writes what goes before the log bytes.
    Fetch {
        /// What to read.
        request: FetchRequest,
        /// Returned with the outcome.
        tag: u64,
    },
    /// Append a part of the frame; [`Service::handle_appended`] then writes the answer.
    Append {
        /// Where.
        partition: PartitionId,
        /// Which bytes of the frame are the record batches.
        batches: std::ops::Range<usize>,
        /// Returned with the outcome.
        tag: u64,
    },
    /// Close the connection when everything before is answered, and the bytes written to the response are
    /// sent.
    Close,
}

/// A protocol that runs on the shards. One value per shard, never shared, never sent once started.
pub trait Service: Sized + Send + 'static {
    /// What the service keeps for one connection.
    type Connection: Default + 'static;

    /// Finds the end of the first frame in what has been received. Called again, with more bytes,
    /// after `Incomplete`. Frames are at most `request_len_max` long; longer ones close the connection.
    fn frame_len(&self, received: &[u8]) -> Frame;

    /// Handles one frame. `response` is empty; what is written there leaves before anything else of
    /// this answer.
    fn handle_frame(
        &mut self,
        now: Now,
        connection: &mut Self::Connection,
        frame: &[u8],
        response: &mut Vec<u8>,
    ) -> Answer;

    /// A fetch is planned, or has failed: write the header. With `Ok`, exactly `outcome.len` log bytes
    /// follow it.
    fn handle_fetched(
        &mut self,
        tag: u64,
        outcome: &Result<FetchOutcome, FetchError>,
        response: &mut Vec<u8>,
    );

    /// An append of this service is durable at the partition's level, or has failed: write the answer.
    /// For appends of [`Access::append`], `response` is discarded.
    fn handle_appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>, response: &mut Vec<u8>);

    /// Called once a turn, after everything else. A service that produces by itself does it here.
    /// Returns when it wants to be called even if nothing happens.
    fn turn(&mut self, now: Now, access: &mut impl Access) -> Option<Nanos> {
        let _ = (now, access);
        None
    }

    /// A partition has become available. Called on every shard, whichever owns the partition, before whoever has
    /// opened it learns that it is open.
    fn handle_opened(&mut self, partition: PartitionId, name: &TopicPartition) {
        let _ = (partition, name);
    }

    /// A connection is gone.
    fn handle_closed(&mut self, connection: ConnId) {
        let _ = connection;
    }
}

/// What a service may do with its shard in [`Service::turn`].
pub trait Access {
    /// Appends batches. `Ok` means accepted: [`Service::handle_appended`] follows. `Err(Busy)` means
    /// there is no room at the moment. Batches for another shard's partition are copied once more.
    fn append(&mut self, partition: PartitionId, batches: &[u8], tag: u64) -> Result<(), AppendError>;

    /// Where the log begins and ends; `None` for partitions of other shards.
    fn watermarks(&self, partition: PartitionId) -> Option<Watermarks>;
}

/// No protocol: an engine that is used through handles only.
impl Service for () {
    type Connection = ();

    fn frame_len(&self, _received: &[u8]) -> Frame {
        Frame::Malformed
    }

    fn handle_frame(&mut self, _: Now, _: &mut (), _: &[u8], _: &mut Vec<u8>) -> Answer {
        Answer::Close
    }

    fn handle_fetched(&mut self, _: u64, _: &Result<FetchOutcome, FetchError>, _: &mut Vec<u8>) {}

    fn handle_appended(&mut self, _: u64, _: &Result<Appended, AppendError>, _: &mut Vec<u8>) {}
}
