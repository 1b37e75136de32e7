//! Which way the bytes of a range take: two pure functions, one for a planned range, one for each piece of it that
//! is in memory. The facts behind them are measurements (docs/KERNEL.md, and the harness's results).

use crate::fetch::{Mode, ModeSet};
use crate::ops::SendHow;
use crate::types::ByteCount;

/// Ranges shorter than this are copied: the header travels in the same call, and the copy costs less than two
/// further system calls.
pub const REFERENCE_LEN_MIN: ByteCount = ByteCount::kib(32);

/// How often all of a chunk that was read from the device has been sent before its pages are lent; for one that was
/// written it is once. Twice: a single reader asks for the batch at the end of its range again, and so sends a little of most chunks
/// twice; lending its chunks, which nobody else wants, would have every page of a backfill replaced.
const SHARED_COUNT_MIN: u64 = 2;

/// Ranges shorter than this are copied to remote peers as well: the kernel's documentation puts the point at which
/// `SEND_ZC` starts to pay at about 10 KiB, and each such send has a second completion.
pub const ZERO_COPY_LEN_MIN: ByteCount = ByteCount::kib(64);

/// What is known about a range when it is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeFacts {
    /// Whether it is in the arena.
    pub resident: bool,
    /// The mode the request forces, if any.
    pub forced: Option<Mode>,
    /// Whether what is cold is to go through pipes, uncached (an option of the shard).
    pub cold_by_splice: bool,
}

/// Chooses a range's mode. Cold bytes never come through the page cache unless a request forces it: a page cache
/// miss would stall every connection of the shard.
pub const fn choose(facts: RangeFacts) -> Mode {
    match facts.forced {
        Some(mode) => mode,
        None if facts.resident => Mode::Send,
        None if facts.cold_by_splice => Mode::DirectSplice,
        None => Mode::DirectSend,
    }
}

/// What is known about a piece in memory when it is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceFacts {
    /// Length of the range it belongs to.
    pub len: ByteCount,
    /// Whether several readers want its chunk (`is_shared`) and memory is ample: lending pages pays with several
    /// readers, because the price, replacing them, falls due once.
    pub shared: bool,
    /// Whether the connection's peer is remote and has not been found to get copies all the same.
    pub zero_copy: bool,
    /// The mode the request forces, if any.
    pub forced: Option<Mode>,
}

/// Whether a chunk with `len` bytes of log, of which `sent` bytes have been sent over all its readers, has several.
/// `written`: by this shard, not read from the device.
pub(crate) const fn is_shared(sent: u64, len: ByteCount, written: bool) -> bool {
    sent >= if written { 1 } else { SHARED_COUNT_MIN } * len.get()
}

/// Chooses how a piece is sent by a driver with these modes.
pub const fn hand_over(facts: PieceFacts, modes: ModeSet) -> SendHow {
    match facts.forced {
        Some(Mode::SendZc | Mode::DirectSendZc) => SendHow::ZeroCopy,
        Some(Mode::SendRef) => SendHow::Reference,
        Some(_) => SendHow::Copy,
        None if facts.zero_copy
            && facts.len.get() >= ZERO_COPY_LEN_MIN.get()
            && modes.contains(Mode::SendZc) =>
        {
            SendHow::ZeroCopy
        }
        None if facts.shared
            && facts.len.get() >= REFERENCE_LEN_MIN.get()
            && modes.contains(Mode::SendRef) =>
        {
            SendHow::Reference
        }
        None => SendHow::Copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ModeSet = ModeSet::of(Mode::ALL);
    const SEND: ModeSet = ModeSet::of(&[Mode::Send]);

    #[test]
    fn cold_ranges_stay_off_the_page_cache_unless_forced() {
        for resident in [false, true] {
            for cold_by_splice in [false, true] {
                let free = choose(RangeFacts { resident, forced: None, cold_by_splice });
                assert!(!matches!(free, Mode::Sendfile | Mode::Splice | Mode::ReadSend), "{free}");
                for &mode in Mode::ALL {
                    assert_eq!(choose(RangeFacts { resident, forced: Some(mode), cold_by_splice }), mode);
                }
            }
        }
        let cold = |cold_by_splice| choose(RangeFacts { resident: false, forced: None, cold_by_splice });
        assert_eq!((cold(false), cold(true)), (Mode::DirectSend, Mode::DirectSplice));
    }

    #[test]
    fn pages_are_lent_only_to_further_readers_of_long_ranges() {
        let facts = |len, shared| PieceFacts { len, shared, zero_copy: false, forced: None };
        let long = REFERENCE_LEN_MIN;
        let short = ByteCount::new(long.get() - 1);
        assert_eq!(hand_over(facts(long, true), ALL), SendHow::Reference);
        assert_eq!(hand_over(facts(long, false), ALL), SendHow::Copy);
        assert_eq!(hand_over(facts(short, true), ALL), SendHow::Copy);
        assert_eq!(hand_over(facts(long, true), SEND), SendHow::Copy, "the driver cannot");
    }

    #[test]
    fn zero_copy_is_for_remote_peers_and_never_without_the_driver() {
        let facts = |zero_copy| PieceFacts { len: ZERO_COPY_LEN_MIN, shared: true, zero_copy, forced: None };
        assert_eq!(hand_over(facts(true), ALL), SendHow::ZeroCopy);
        assert_eq!(hand_over(facts(false), ALL), SendHow::Reference);
        assert_eq!(hand_over(facts(true), SEND), SendHow::Copy);
        let forced = PieceFacts { forced: Some(Mode::ReadSend), ..facts(true) };
        assert_eq!(hand_over(forced, ALL), SendHow::Copy);
    }
}
