//! What a run leaves out of what its seed has drawn: whole lives, single actions, single faults. Shrinking a failing
//! seed means leaving out as much as possible; written down, the edits reproduce the small run.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Something that a seed draws and that a run can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// The life with this number that ends by force.
    Life(u64),
    /// The action with this number, of a client or of the machine.
    Action(u64),
    /// The fault with this number.
    Fault(u64),
}

/// Decisions that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    left_out: BTreeSet<Decision>,
}

/// How many decisions of each kind a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Lives that end by force.
    pub lives: u64,
    /// Actions.
    pub actions: u64,
    /// Faults.
    pub faults: u64,
}

impl Edits {
    /// Whether a decision is left out.
    pub fn leaves_out(&self, decision: Decision) -> bool {
        self.left_out.contains(&decision)
    }

    /// Leaves out these as well.
    pub fn leave_out(&mut self, decisions: &[Decision]) {
        self.left_out.extend(decisions);
    }
}

impl Drawn {
    /// Decisions that `edits` keeps, the coarsest kind first.
    pub fn kept(&self, edits: &Edits) -> [Vec<Decision>; 3] {
        let keep = |all: Vec<Decision>| all.into_iter().filter(|one| !edits.leaves_out(*one)).collect();
        [
            keep((0..self.lives).map(Decision::Life).collect()),
            keep((0..self.faults).map(Decision::Fault).collect()),
            keep((0..self.actions).map(Decision::Action).collect()),
        ]
    }
}

impl fmt::Display for Edits {
    /// For instance `life0-2,action7,fault1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(&str, u64, u64)> = Vec::new();
        for decision in &self.left_out {
            let (word, number) = match decision {
                Decision::Life(number) => ("life", *number),
                Decision::Action(number) => ("action", *number),
                Decision::Fault(number) => ("fault", *number),
            };
            match runs.last_mut() {
                Some((last, _, end)) if *last == word && *end + 1 == number => *end = number,
                _ => runs.push((word, number, number)),
            }
        }
        for (at, (word, from, to)) in runs.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if from == to {
                write!(f, "{comma}{word}{from}")?;
            } else {
                write!(f, "{comma}{word}{from}-{to}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Edits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut edits = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let bad = || format!("{word}: not like life0-2, action7 or fault1");
            let at = word.find(|c: char| c.is_ascii_digit()).ok_or_else(bad)?;
            let (kind, numbers) = word.split_at(at);
            let (from, to) = numbers.split_once('-').unwrap_or((numbers, numbers));
            let decision: fn(u64) -> Decision = match kind {
                "life" => Decision::Life,
                "action" => Decision::Action,
                "fault" => Decision::Fault,
                _ => return Err(bad()),
            };
            let (from, to): (u64, u64) = from.parse().ok().zip(to.parse().ok()).ok_or_else(bad)?;
            edits.left_out.extend((from..=to).map(decision));
        }
        Ok(edits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_read_as_they_are_written() {
        let mut edits = Edits::default();
        edits.leave_out(&[Decision::Fault(9), Decision::Action(3), Decision::Action(4), Decision::Life(0)]);
        assert_eq!(edits.to_string(), "life0,action3-4,fault9");
        assert_eq!(edits.to_string().parse(), Ok(edits));
        assert_eq!("".parse(), Ok(Edits::default()));
        for bad in ["life", "day3", "action3-", "7"] {
            assert!(bad.parse::<Edits>().is_err(), "{bad}");
        }
    }
}
