//! Which of the oldest chunks of the cache stay although their time has come: those that are asked for far more often
//! than their likes.
//!
//! Readers that follow a producer ask for every chunk alike, be they one or sixteen, and are done with what is old; so
//! having been asked for says nothing. Owns an estimate of what the least wanted of the oldest chunks are asked for.

use crate::types::ByteCount;

/// How many times as often a chunk is asked for that stays.
pub(crate) const WANTED_SHARE: u64 = 4;

/// Requests that show nothing: one reader makes so many.
const WANTED_COUNT_MIN: u32 = 4;

/// See the module documentation. In requests for each byte, times 2^32.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UsualDemand(u64);

impl UsualDemand {
    /// Whether a chunk of `len` bytes that was asked for `hits` times stays; takes note of it.
    pub(crate) fn is_exceeded(&mut self, hits: u32, len: ByteCount) -> bool {
        let usual = self.0;
        let demand = (u64::from(hits) << 32) / len.get();
        let one_hit = demand / u64::from(hits.max(1));
        // Down quickly, up slowly: where most chunks are wanted and few are not, the few are the measure.
        self.0 = match demand <= usual {
            true => usual.midpoint(demand),
            false => demand.min(usual + usual / 8 + one_hit),
        };
        hits > WANTED_COUNT_MIN && demand > WANTED_SHARE * usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: ByteCount = ByteCount::kib(256);

    /// Where all are asked for alike, none stays, after a few that taught what is usual.
    #[test]
    fn likes_do_not_stay() {
        for hits in [1, 5, 70, 3_000] {
            let mut usual = UsualDemand::default();
            let stayed = (0..1000).filter(|_| usual.is_exceeded(hits, LEN)).count();
            assert!(stayed < 60, "{stayed} of {hits}");
        }
    }

    /// The few that are hardly wanted set the measure for the many, whatever their lengths.
    #[test]
    fn most_may_stay() {
        let mut usual = UsualDemand::default();
        for at in 0..1000 {
            let wanted = at % 4 > 0;
            let (hits, len) = if wanted { (500, LEN) } else { (20, ByteCount::mib(1)) };
            let stays = usual.is_exceeded(hits, len);
            assert!(stays == wanted || at < 20, "{at}");
        }
    }
}
