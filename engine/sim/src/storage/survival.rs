//! What a power cut leaves of the things that were not durable. One value per cut, so that a cut has a character:
//! nothing survives, everything does, everything up to a moment, or any subset.

use crate::prng::Prng;

/// How a cut treats what is at stake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Character {
    Nothing,
    Everything,
    /// Whatever has a sequence number up to this one.
    UpTo(u64),
    /// Each thing by itself, with this chance in 65,536 to survive, in any of its versions.
    Subset(u32),
}

/// Decides, thing by thing, what survives one cut.
#[derive(Debug)]
pub struct Survival {
    character: Character,
    prng: Prng,
}

impl Survival {
    /// A cut of random character. Sequence numbers of what is at stake lie in `oldest..=newest`.
    pub fn new(mut prng: Prng, oldest: u64, newest: u64) -> Self {
        let character = match prng.below(8) {
            0 => Character::Nothing,
            1 => Character::Everything,
            2 | 3 => Character::UpTo(prng.range(oldest, newest.max(oldest))),
            4 => Character::Subset(4096),
            5 => Character::Subset(61_440),
            _ => Character::Subset(32_768),
        };
        Self { character, prng }
    }

    /// A cut that leaves only what was durable.
    pub fn nothing() -> Self {
        Self { character: Character::Nothing, prng: Prng::new(0) }
    }

    /// A cut that leaves everything.
    pub fn everything() -> Self {
        Self { character: Character::Everything, prng: Prng::new(0) }
    }

    /// The version of one thing that survives: an index into its versions, oldest first; `None` for the durable one.
    pub(super) fn choose(&mut self, versions: impl ExactSizeIterator<Item = u64>) -> Option<usize> {
        let count = versions.len();
        if count == 0 {
            return None;
        }
        match self.character {
            Character::Nothing => None,
            Character::Everything => Some(count - 1),
            Character::UpTo(limit) => versions.take_while(|seq| *seq <= limit).count().checked_sub(1),
            Character::Subset(chance) => self.prng.chance(chance).then(|| self.prng.index(count)),
        }
    }
}
