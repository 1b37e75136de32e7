//! The simulated directory tree. Entries are durable objects of their own: a creation, rename or removal is at stake
//! until its directory is synced, whatever happens to the file's bytes.
//!
//! Owns, per directory, the entries programs see and the durable ones, and the changes in between, in order. A change
//! is atomic: of a rename, both halves survive or none.

use std::collections::{BTreeMap, BTreeSet};

use super::survival::Survival;

/// Names a file or directory for as long as the world lives; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(pub u64);

/// The root directory.
pub(super) const ROOT: Inode = Inode(0);

type Entries = BTreeMap<String, Inode>;

#[derive(Clone, Debug, Default)]
struct Directory {
    now: Entries,
    durable: Entries,
}

#[derive(Clone, Debug)]
struct Change {
    seq: u64,
    edits: Vec<(Inode, String, Option<Inode>)>,
}

/// All directories.
#[derive(Clone, Debug)]
pub(super) struct Names {
    directories: BTreeMap<Inode, Directory>,
    pending: Vec<Change>,
}

impl Names {
    /// An empty root.
    pub(super) fn new() -> Self {
        Self { directories: BTreeMap::from([(ROOT, Directory::default())]), pending: Vec::new() }
    }

    /// Makes a directory known; it still needs an entry somewhere.
    pub(super) fn add_directory(&mut self, inode: Inode) {
        self.directories.insert(inode, Directory::default());
    }

    /// Whether the inode is a directory.
    pub(super) fn is_directory(&self, inode: Inode) -> bool {
        self.directories.contains_key(&inode)
    }

    /// What a directory's entry names now.
    pub(super) fn lookup(&self, directory: Inode, name: &str) -> Option<Inode> {
        self.directories.get(&directory)?.now.get(name).copied()
    }

    /// A directory's entries, sorted by name.
    pub(super) fn list(&self, directory: Inode) -> Option<&Entries> {
        self.directories.get(&directory).map(|d| &d.now)
    }

    /// Sets or removes entries, as one atomic change.
    pub(super) fn change(&mut self, seq: &mut u64, edits: Vec<(Inode, String, Option<Inode>)>) {
        for (directory, name, target) in &edits {
            let directory = self.directories.get_mut(directory).expect("edits name directories that exist");
            apply(&mut directory.now, name, *target);
        }
        *seq += 1;
        self.pending.push(Change { seq: *seq, edits });
    }

    /// Makes every change of the directory durable. A change takes along what happened earlier to the same entries, in
    /// other directories too: it cannot be there without.
    pub(super) fn sync(&mut self, directory: Inode) {
        let mut entries = BTreeSet::new();
        let (mut synced, mut rest) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.pending).into_iter().rev() {
            let mine = change.edits.iter().map(|(inode, name, _)| (*inode, name.clone()));
            if touches(&change, directory) || mine.clone().any(|entry| entries.contains(&entry)) {
                entries.extend(mine);
                synced.push(change);
            } else {
                rest.push(change);
            }
        }
        rest.reverse();
        synced.reverse();
        self.pending = rest;
        self.settle(synced);
    }

    /// Whether an entry would be at stake in a power cut.
    pub(super) fn is_dirty(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The power goes. Returns every inode that can still be reached.
    pub(super) fn cut(&mut self, survival: &mut Survival) -> BTreeSet<Inode> {
        let pending = std::mem::take(&mut self.pending);
        let survivors =
            pending.into_iter().filter(|change| survival.choose([change.seq].into_iter()).is_some());
        let survivors: Vec<Change> = survivors.collect();
        self.settle(survivors);
        let mut reached = BTreeSet::new();
        let mut open = vec![ROOT];
        while let Some(inode) = open.pop() {
            if reached.insert(inode)
                && let Some(directory) = self.directories.get_mut(&inode)
            {
                directory.now = directory.durable.clone();
                open.extend(directory.now.values());
            }
        }
        self.directories.retain(|inode, _| reached.contains(inode));
        reached
    }

    /// Every inode that has an entry now.
    pub(super) fn linked(&self) -> BTreeSet<Inode> {
        self.directories.values().flat_map(|directory| directory.now.values().copied()).collect()
    }

    /// How many changes are at stake.
    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// The directories as a cut leaves them that spares the changes so chosen, by their place in time.
    pub(super) fn settled_with(&self, survives: impl Fn(usize) -> bool) -> Self {
        let mut names = self.clone();
        let pending = std::mem::take(&mut names.pending).into_iter().enumerate();
        names.settle(pending.filter(|(index, _)| survives(*index)).map(|(_, change)| change).collect());
        for directory in names.directories.values_mut() {
            directory.now = directory.durable.clone();
        }
        names
    }

    /// Makes changes durable, in order.
    fn settle(&mut self, changes: Vec<Change>) {
        for (inode, name, target) in changes.into_iter().flat_map(|change| change.edits) {
            if let Some(directory) = self.directories.get_mut(&inode) {
                apply(&mut directory.durable, &name, target);
            }
        }
    }
}

fn apply(entries: &mut Entries, name: &str, target: Option<Inode>) {
    match target {
        Some(inode) => entries.insert(name.to_owned(), inode),
        None => entries.remove(name),
    };
}

fn touches(change: &Change, directory: Inode) -> bool {
    change.edits.iter().any(|(inode, _, _)| *inode == directory)
}
