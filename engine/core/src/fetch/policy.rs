//! Which way the bytes of a range take. One pure function; the facts behind it are measurements
//! (docs/KERNEL.md, and the harness's results).

use crate::fetch::Mode;
use crate::types::ByteCount;

/// What is known about a range when it is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeFacts {
    /// Whether its start is in the arena.
    pub resident: bool,
    /// Its length.
    pub len: ByteCount,
    /// The mode the request forces, if any.
    pub forced: Option<Mode>,
}

/// Chooses the mode. Cold bytes never come through the page cache unless a request forces it: a page
/// cache miss would stall every connection of the shard.
pub const fn choose(facts: RangeFacts) -> Mode {
    match facts.forced {
        Some(Mode::Sendfile) => Mode::Sendfile,
        // A forced `send` still has to bring a cold range into memory first.
        Some(Mode::Send | Mode::DirectSend) | None => {
            if facts.resident {
                Mode::Send
            } else {
                Mode::DirectSend
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_ranges_stay_off_the_page_cache_unless_forced() {
        let facts = |resident, forced| RangeFacts { resident, len: ByteCount::kib(64), forced };
        assert_eq!(choose(facts(true, None)), Mode::Send);
        assert_eq!(choose(facts(false, None)), Mode::DirectSend);
        assert_eq!(choose(facts(false, Some(Mode::Send))), Mode::DirectSend);
        assert_eq!(choose(facts(true, Some(Mode::DirectSend))), Mode::Send);
        assert_eq!(choose(facts(true, Some(Mode::Sendfile))), Mode::Sendfile);
    }
}
