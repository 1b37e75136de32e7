//! What becomes of each operation: it runs, fails by chance or because it was chosen to, or is the last one before the
//! life ends.

use rohrpost_engine_core::disk::Errno;

use super::{OpKind, Storage};
use crate::coverage::Harm;
use crate::edits::Decision;
use crate::errors::Blow;

/// What becomes of the operation that is about to run.
pub(super) enum Fate {
    Runs,
    Fails(Errno),
    /// It is the last thing that happens before the power goes.
    Last,
    /// The power is gone.
    Dark,
}

impl Storage {
    /// The machine does this to the engine.
    pub fn suffer(&mut self, harm: Harm) {
        self.coverage.suffer(harm, self.states);
    }

    /// Counts an operation and decides what becomes of it.
    pub(super) fn fate(&mut self, kind: OpKind) -> Fate {
        if self.dark.is_some() {
            return Fate::Dark;
        }
        self.ops += 1;
        self.ops_total += 1;
        self.land_orphans();
        if self.end_at.is_some_and(|(op, _)| op <= self.ops) {
            return Fate::Last;
        }
        let blow = match self.blow {
            Some((op, Blow::Error(errno))) if op == self.ops_total => {
                self.struck = true;
                Some(errno)
            }
            _ => None,
        };
        let drawn = self.faults.draw(kind, &mut self.prng).filter(|_| self.keeps_fault());
        let Some(errno) = blow.or(drawn) else { return Fate::Runs };
        self.trace.note("fault", &[kind as u64, errno.0 as u64]);
        self.suffer(Harm::of(kind, errno));
        Fate::Fails(errno)
    }

    /// Counts a fault that was drawn. Whether it happens.
    fn keeps_fault(&mut self) -> bool {
        self.faults_drawn += 1;
        !self.edits.leaves_out(Decision::Fault(self.faults_drawn - 1))
    }

    /// Whether a transfer on the data path does less than it was asked to.
    pub(super) fn falls_short(&mut self, chance: u32) -> bool {
        let blow = self.blow == Some((self.ops_total, Blow::Short));
        self.struck |= blow;
        blow || (self.prng.chance(chance) && self.keeps_fault())
    }

    /// Runs an operation that either happens as a whole or not at all, unless the power is gone.
    pub(super) fn run<T>(
        &mut self,
        kind: OpKind,
        operation: impl FnOnce(&mut Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.fate(kind) {
            Fate::Runs => operation(self),
            Fate::Fails(errno) => Err(errno),
            Fate::Dark => Err(Errno::IO),
            Fate::Last => {
                // A sync that is cut off has promised nothing; anything else is merely at stake.
                if !matches!(kind, OpKind::Sync | OpKind::SyncAsync) {
                    let _ = operation(self);
                }
                self.end_as_planned();
                Err(Errno::IO)
            }
        }
    }

    pub(super) fn end_as_planned(&mut self) {
        let (_, end) = self.end_at.expect("only a planned end makes an operation the last");
        self.go_dark(end);
    }
}
