//! Reading: from an offset and a byte limit to bytes on a socket.

pub(crate) mod memo;
mod mode;
pub(crate) mod plan;
pub mod policy;
mod request;
pub(crate) mod transfer;

pub use mode::{Mode, ModeSet, UnknownMode};
pub use request::{FetchOutcome, FetchRequest, Fetched};
