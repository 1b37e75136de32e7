//! Which path runs which workload, and why not the others.
//!
//! Always holds: a path that is refused is refused with a reason for people to read.

use super::Path;
use crate::workload::{Kind, Workload};

impl Path {
    /// Whether the path has nothing to do with this kind of workload.
    pub fn is_of_other_kind(&self, workload: &Workload) -> bool {
        if self.calibration.is_some() && workload.kind == Kind::Fetch {
            return !self.fetch || workload.catch_up_len().is_none();
        }
        !match workload.kind {
            Kind::Fetch => self.fetch,
            Kind::Append => self.append,
            Kind::Tail => self.tail,
        }
    }

    /// Why this path cannot run that workload, if it cannot.
    pub fn unfit_for(&self, workload: &Workload) -> Option<&'static str> {
        let (able, why) = match workload.kind {
            Kind::Fetch if self.calibration.is_some() && self.fetch => {
                (workload.cold.is_some(), "only readers of old data need it")
            }
            Kind::Fetch if workload.is_cold() && self.fetch => {
                (self.cold, "the path serves from memory only, the workload reads more than memory holds")
            }
            Kind::Fetch => (self.fetch, "the path does not serve a corpus"),
            Kind::Append if workload.has_schedule() && self.append => (self.tail, why_unscheduled(workload)),
            Kind::Append => (self.append, "the path does not append"),
            Kind::Tail => (self.tail, "the path does not serve readers while it appends"),
        };
        (!able).then_some(why)
    }
}

/// Why a path that appends as fast as it can is of no use where more is asked for.
fn why_unscheduled(workload: &Workload) -> &'static str {
    match &workload.append {
        Some(append) if append.flood.is_some() => {
            "the path has one closed loop: it cannot flood one partition and keep another one's pace"
        }
        Some(append) if append.touch_all => {
            "the path syncs every batch by itself, whichever partition it is for: append-16k is its figure, and it \
             does not fill every partition before the window"
        }
        Some(append) if append.backlog_len > 0 => {
            "the path serves no reader: old data that it has written is of no use beside its appends"
        }
        _ => {
            "the path has a closed loop: at a rate it would show the time of one write and fdatasync, which \
             append-16k has, or a queue"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::find;

    /// A refusal says what of the workload the path cannot do; what it can do is not refused.
    #[test]
    fn refusals_say_why() {
        let words = [
            ("flood", "flood"),
            ("flood-0", "closed loop"),
            ("partitions-10k", "every partition"),
            ("backfill-append-0", "reader"),
            ("tail-1", "while it appends"),
            ("fanout-1k", "corpus"),
        ];
        let path = find("write_fdatasync_8").unwrap();
        let all = Workload::all();
        let of = |name: &str| all.iter().find(|workload| workload.name == name).unwrap();
        for (name, word) in words {
            let reason = path.unfit_for(of(name));
            assert!(reason.is_some_and(|reason| reason.contains(word)), "{name}: {reason:?}");
        }
        assert_eq!(path.unfit_for(of("append-16k")), None);
    }
}
