//! Makes a failing seed small: leaves out lives, faults and actions as long as the same check fails, until none can be
//! spared (delta debugging, one kind of decision after the other).

use crate::edits::{Decision, Drawn, Edits};
use crate::run::{Failure, Plan, run_plan};

/// Rounds over all decisions; each one may make others superfluous.
const ROUNDS_MAX: usize = 4;

/// A failing seed, made small.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The seed and what can be left out.
    pub plan: Plan,
    /// How it fails now.
    pub failure: Failure,
    /// Decisions that are left.
    pub left: usize,
    /// Decisions there were.
    pub before: usize,
}

/// Shrinks a plan; `None` if it does not fail.
pub fn shrink(plan: &Plan) -> Option<Shrunk> {
    let (mut failure, mut drawn) = fails(plan, None)?;
    let before = count(drawn, &plan.edits);
    let mut plan = plan.clone();
    for _ in 0..ROUNDS_MAX {
        let start = plan.edits.clone();
        for kind in 0..3 {
            let all = drawn.kept(&plan.edits)[kind].len();
            let mut size = all.max(1);
            while size > 0 {
                // From the end: what comes last shifts the least.
                let mut end = drawn.kept(&plan.edits)[kind].len();
                while end > 0 {
                    let kept = &drawn.kept(&plan.edits)[kind];
                    end = end.min(kept.len());
                    let from = end.saturating_sub(size);
                    if let Some(smaller) = without(&plan, &kept[from..end])
                        && let Some(found) = fails(&smaller, Some(&failure.kind()))
                    {
                        plan = smaller;
                        (failure, drawn) = found;
                    }
                    end = from;
                }
                size /= 2;
            }
        }
        if plan.edits == start {
            break;
        }
    }
    let left = count(drawn, &plan.edits);
    Some(Shrunk { plan, failure, left, before })
}

fn count(drawn: Drawn, edits: &Edits) -> usize {
    drawn.kept(edits).iter().map(Vec::len).sum()
}

fn without(plan: &Plan, decisions: &[Decision]) -> Option<Plan> {
    let mut plan = plan.clone();
    plan.edits.leave_out(decisions);
    (!decisions.is_empty()).then_some(plan)
}

/// How a plan fails, in this way if one is given, and what it had drawn by then.
fn fails(plan: &Plan, kind: Option<&str>) -> Option<(Failure, Drawn)> {
    let failure = run_plan(plan).err()?;
    let drawn = failure.drawn;
    kind.is_none_or(|kind| kind == failure.kind()).then_some((*failure, drawn))
}
