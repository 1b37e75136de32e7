//! The exhaustive error loop: a short run is made again and again, and its n-th file operation fails, for n = 1, 2, ...
//! and every error, until a run passes untouched. What is acknowledged must survive each, and the engine must go on.

use std::fmt;
use std::str::FromStr;

use rohrpost_engine_core::disk::Errno;

use crate::outcome::Outcome;
use crate::run::{Failure, Plan, run_plan};

/// How the chosen operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// With this error.
    Error(Errno),
    /// It does less than it was asked to, where that can be: reads and writes of the data path.
    Short,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => write!(f, "{}", errno.0),
            Self::Short => f.write_str("short"),
        }
    }
}

impl FromStr for Blow {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "short" { Ok(Self::Short) } else { text.parse().map(|number| Self::Error(Errno(number))) }
    }
}

impl Blow {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Error(Errno::IO),
        Self::Error(Errno::NOSPC),
        Self::Error(Errno::NOMEM),
        Self::Error(Errno::MFILE),
        Self::Error(Errno::AGAIN),
        Self::Error(Errno::CANCELED),
        Self::Short,
    ];
}

/// What a loop has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looped {
    /// Operations of the run that passed untouched.
    pub ops: u64,
    /// Runs in which an operation failed.
    pub runs: u64,
    /// Everything those have seen.
    pub sum: Outcome,
}

/// Runs the loop over the short run of a seed.
///
/// # Errors
/// The first violation.
pub fn every_operation_fails(seed: u64) -> Result<Looped, Box<Failure>> {
    let mut looped = Looped::default();
    for blow in Blow::ALL {
        for op in 1.. {
            let outcome = run_plan(&Plan { blow: Some((op, blow)), ..Plan::of(seed) })?;
            if outcome.disk_ops < op {
                looped.ops = op - 1;
                break;
            }
            looped.runs += u64::from(outcome.struck);
            looped.sum.add(&outcome);
        }
    }
    Ok(looped)
}
