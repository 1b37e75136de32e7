//! Reading: from an offset and a byte limit to bytes on a socket.

mod mode;
mod request;

pub use mode::{Mode, UnknownMode};
pub use request::{FETCHED_PIECES_MAX, FetchOutcome, FetchRequest, Fetched};
