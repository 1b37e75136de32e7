//! What happened in a run, in order: a hash of everything, and the lines themselves where somebody wants to read
//! them. Two runs of one seed must have equal hashes; that is what makes a seed worth printing.

use std::fmt;

/// The record of one run.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    lines: Option<Vec<String>>,
    /// The virtual time shown before each line, microseconds; not part of the hash.
    pub micros: u64,
}

impl Trace {
    /// An empty trace; with `keep`, its lines are kept for printing.
    pub fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, count: 0, lines: keep.then(Vec::new), micros: 0 }
    }

    /// Records that `what` happened with these numbers.
    pub fn note(&mut self, what: &str, numbers: &[u64]) {
        self.fold(what.as_bytes());
        for number in numbers {
            self.fold(&number.to_le_bytes());
        }
        self.count += 1;
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>6} {:>12} {what} {numbers:?}", self.count, self.micros));
        }
    }

    /// Adds a remark for the reader of the lines; it is not part of the hash.
    pub fn remark(&mut self, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("       {:>12} {}", "", text()));
        }
    }

    /// Hash of everything noted so far.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of notes so far.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Whether the lines are kept.
    pub const fn is_kept(&self) -> bool {
        self.lines.is_some()
    }

    fn fold(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines.iter().flatten() {
            writeln!(f, "{line}")?;
        }
        write!(f, "trace hash {:#018x} over {} notes", self.hash, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_words_numbers_and_order_and_not_on_remarks() {
        let hash = |notes: &[(&str, &[u64])]| {
            let mut trace = Trace::new(false);
            notes.iter().for_each(|(what, numbers)| trace.note(what, numbers));
            trace.hash()
        };
        assert_eq!(hash(&[("a", &[1]), ("b", &[2])]), hash(&[("a", &[1]), ("b", &[2])]));
        assert_ne!(hash(&[("a", &[1]), ("b", &[2])]), hash(&[("b", &[2]), ("a", &[1])]));
        assert_ne!(hash(&[("a", &[1])]), hash(&[("a", &[2])]));
        let mut remarked = Trace::new(true);
        remarked.note("a", &[1]);
        remarked.remark(|| "seen".to_owned());
        assert_eq!(remarked.hash(), hash(&[("a", &[1])]));
        assert!(remarked.to_string().contains("seen"));
    }
}
