//! A medium that does not keep what it was given: bits rot, writes are lost or land where they do not belong, all of it
//! reported as success. Done to files at rest, when nothing is at stake any more.

use std::path::Path;

use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;

use super::Storage;
use crate::coverage::{Harm, State, States};

/// What has happened to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit has changed.
    BitRot,
    /// A block was never written: it holds zeros.
    LostWrite,
    /// A block holds what belongs to another place of the file.
    AstrayWrite,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::BitRot, Self::LostWrite, Self::AstrayWrite];

    const fn harm(self) -> Harm {
        match self {
            Self::BitRot => Harm::BitRot,
            Self::LostWrite => Harm::WriteLost,
            Self::AstrayWrite => Harm::WriteAstray,
        }
    }
}

impl Storage {
    /// Damages some file of a directory, most likely a segment. Says where, if there was anything to damage.
    pub(crate) fn damage(&mut self, directory: &Path, damage: Damage) -> Option<String> {
        let entries = self.names.list(self.resolve(directory).ok()?)?.clone();
        let len = |inode| self.files.get(inode).map_or(0, |file| file.len());
        let full: Vec<_> = entries.iter().filter(|(_, inode)| len(inode) > 0).collect();
        let logs: Vec<_> = full.iter().filter(|(name, _)| name.ends_with(".log")).collect();
        let (name, inode) = match logs.is_empty() || self.prng.one_in(4) {
            true if full.is_empty() => return None,
            true => full[self.prng.index(full.len())],
            false => *logs[self.prng.index(logs.len())],
        };
        let len = len(inode);
        let block = self.prng.below(len.div_ceil(DIRECT_IO_ALIGN)) * DIRECT_IO_ALIGN;
        let block_len = DIRECT_IO_ALIGN.min(len - block) as usize;
        let (position, bytes) = match damage {
            Damage::BitRot => {
                let position = self.prng.below(len);
                let byte = self.peek_inode(*inode, position, 1)?[0];
                (position, vec![byte ^ (1 << self.prng.below(8))])
            }
            Damage::LostWrite => (block, vec![0; block_len]),
            Damage::AstrayWrite => {
                let other = self.prng.below(len.div_ceil(DIRECT_IO_ALIGN)) * DIRECT_IO_ALIGN;
                (block, self.peek_inode(*inode, other, block_len)?)
            }
        };
        self.trace.note("damage", &[inode.0, position, bytes.len() as u64]);
        self.coverage.suffer(damage.harm(), States::only(State::Starting));
        let file = self.files.get_mut(inode).expect("listed a moment ago");
        file.overwrite(position, &bytes);
        Some(format!("{damage:?} at {position} of {name}"))
    }
}
