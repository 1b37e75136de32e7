//! Whether a power cut could leave the disk like this. The other half of a model: real file systems are cut, and what
//! they leave must be among the model's outcomes.

use std::collections::{BTreeMap, BTreeSet};

use super::Storage;
use super::names::{Inode, Names, ROOT};
use super::planes::{Planes, SECTOR_LEN};

/// Changes of directories at stake that are combined; more would be too many subsets.
const CHANGES_MAX: usize = 14;

/// What was found: path below the root to content; `None` for directories.
pub type Observed = BTreeMap<String, Option<Vec<u8>>>;

impl Storage {
    /// Whether a power cut between two operations, now, could leave exactly this.
    ///
    /// # Errors
    /// What is impossible about it.
    ///
    /// # Panics
    /// If more than fourteen changes of directories are at stake, or something is in flight.
    pub fn could_become(&self, observed: &Observed) -> Result<(), String> {
        assert!(self.in_flight.is_empty(), "the model is asked between operations");
        let mut reason = String::from("no such set of names");
        for tree in self.names.possible() {
            let same_names = tree.keys().eq(observed.keys());
            if !same_names {
                continue;
            }
            match tree.iter().try_for_each(|(path, inode)| self.could_be(path, *inode, &observed[path])) {
                Ok(()) => return Ok(()),
                Err(why) => reason = why,
            }
        }
        Err(reason)
    }

    fn could_be(&self, path: &str, inode: Inode, observed: &Option<Vec<u8>>) -> Result<(), String> {
        match (self.files.get(&inode), observed) {
            (Some(file), Some(bytes)) => file.could_be(bytes).map_err(|why| format!("{path}: {why}")),
            (None, None) => Ok(()),
            _ => Err(format!("{path}: a file or a directory?")),
        }
    }
}

impl Names {
    /// Every tree that a cut may leave: path to what it names.
    fn possible(&self) -> BTreeSet<BTreeMap<String, Inode>> {
        let count = self.pending_count();
        assert!(count <= CHANGES_MAX, "{count} changes of directories are at stake");
        (0..1_u32 << count).map(|survivors| self.tree_with(survivors)).collect()
    }

    fn tree_with(&self, survivors: u32) -> BTreeMap<String, Inode> {
        let names = self.settled_with(|index| survivors & 1 << index != 0);
        let (mut tree, mut open) = (BTreeMap::new(), vec![(String::new(), ROOT)]);
        while let Some((path, inode)) = open.pop() {
            for (name, target) in names.list(inode).into_iter().flatten() {
                let below = format!("{path}/{name}");
                open.push((below.clone(), *target));
                tree.insert(below, *target);
            }
        }
        tree
    }
}

impl Planes {
    /// Whether a power cut may leave the file with this content.
    fn could_be(&self, observed: &[u8]) -> Result<(), String> {
        let (least, pending) = self.lengths_at_stake();
        let len = observed.len() as u64;
        if len != least && !pending.clone().any(|pending| pending == len) {
            return Err(format!("{len} bytes long, not {least} nor {:?}", pending.collect::<Vec<_>>()));
        }
        for (sector, bytes) in observed.chunks(SECTOR_LEN).enumerate() {
            let contents = self.contents_at_stake(sector as u64);
            if !contents.iter().any(|content| content[..bytes.len()] == *bytes) {
                let first: Vec<u8> = contents.iter().map(|content| content[0]).collect();
                return Err(format!("sector {sector} begins with {}, not one of {first:?}", bytes[0]));
            }
        }
        Ok(())
    }
}
