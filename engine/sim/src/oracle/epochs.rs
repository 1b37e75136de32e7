//! Leader epochs over the lives of a partition: raised after every life that did not end in order, and written into what
//! that life appends.

use std::collections::BTreeMap;

/// The epochs of a partition's lives; a life begins with every opening.
#[derive(Debug, Default)]
pub(super) struct EpochsOfLives {
    by_life: BTreeMap<u64, i32>,
    /// It is open, and nothing has been said of a stop.
    open: bool,
    /// It was open when its engine ended without a word.
    must_raise: bool,
}

impl EpochsOfLives {
    /// It was opened: the epoch of the last time, and that of now.
    pub(super) fn handle_opened(&mut self, life: u64, (before, now): (i32, i32)) {
        let raised = !std::mem::take(&mut self.must_raise) || now > before;
        assert!(raised, "the epoch is not raised after a life that ended by force: {before}, now {now}");
        self.by_life.insert(life, now);
        self.open = true;
    }

    /// A batch that was sent in this life carries this epoch.
    pub(super) fn check_served(&self, base: i64, epoch: i32, life: u64) {
        let own = self.by_life.get(&life);
        assert!(own == Some(&epoch), "the batch at {base} was appended in epoch {own:?} and carries {epoch}");
    }

    /// The engine stops in order: whether that was seen on disk is not known.
    pub(super) const fn handle_stopping(&mut self) {
        self.open = false;
    }

    /// A life of the engine has ended.
    pub(super) fn handle_end(&mut self) {
        self.must_raise |= std::mem::take(&mut self.open);
    }

    /// The partition was deleted, or may have been: what comes may begin anew.
    pub(super) const fn forget(&mut self) {
        (self.open, self.must_raise) = (false, false);
    }
}
