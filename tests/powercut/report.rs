//! What the load generator reports, line by line, over a pipe to the process that outlives it.
//!
//! Always holds: a line is written by one `write` and ends with a mark, so that one that a kill has cut short is
//! recognised and dropped. An append is reported before it is made, an acknowledgement after it has come.

use std::fmt;
use std::str::FromStr;

/// One line. `at` is the length of the disk's write log, in bytes, where there is one: of what lies before it, everything
/// had reached the disk when the line was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A partition is open: its log start offset and its end.
    Open { partition: usize, start: i64, end: i64 },
    /// It serves this batch, byte for byte what was once sent.
    Have { partition: usize, base: i64, number: u64 },
    /// It serves bytes that nobody has sent.
    Garbage { partition: usize, base: i64 },
    /// It cannot read what lies from this offset to that one.
    Unreadable { partition: usize, from: i64, to: i64, why: String },
    /// Everything has been read.
    Ready,
    /// This batch is about to be appended.
    Send { partition: usize, number: u64, at: u64 },
    /// It is acknowledged.
    Ack { partition: usize, base: i64, number: u64, at: u64 },
    /// Records below this offset are about to be deleted.
    TrimAsked { partition: usize, before: i64, at: u64 },
    /// They are.
    Trimmed { partition: usize, start: i64, at: u64 },
    /// An append was refused, or its outcome is not known.
    Refused { partition: usize, number: u64, why: String },
    /// An append was refused for want of space, and nothing of it taken; its writer goes on with another one.
    Full { partition: usize, number: u64, why: String },
    /// The engine cannot go on.
    Failed { why: String },
    /// A clean end.
    Done,
}

const END: &str = " .";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Open { partition, start, end } => write!(f, "open {partition} {start} {end}"),
            Line::Have { partition, base, number } => write!(f, "have {partition} {base} {number}"),
            Line::Garbage { partition, base } => write!(f, "garbage {partition} {base}"),
            Line::Unreadable { partition, from, to, why } => {
                write!(f, "unreadable {partition} {from} {to} {}", why.replace('\n', " "))
            }
            Line::Full { partition, number, why } => {
                write!(f, "full {partition} {number} {}", why.replace('\n', " "))
            }
            Line::Ready => write!(f, "ready"),
            Line::Send { partition, number, at } => write!(f, "send {partition} {number} {at}"),
            Line::Ack { partition, base, number, at } => write!(f, "ack {partition} {base} {number} {at}"),
            Line::TrimAsked { partition, before, at } => write!(f, "trim-asked {partition} {before} {at}"),
            Line::Trimmed { partition, start, at } => write!(f, "trimmed {partition} {start} {at}"),
            Line::Refused { partition, number, why } => {
                write!(f, "refused {partition} {number} {}", why.replace('\n', " "))
            }
            Line::Failed { why } => write!(f, "failed {}", why.replace('\n', " ")),
            Line::Done => write!(f, "done"),
        }?;
        f.write_str(END)
    }
}

impl FromStr for Line {
    type Err = ();

    /// Anything that is no whole line is refused.
    fn from_str(line: &str) -> Result<Self, ()> {
        let line = line.strip_suffix(END).ok_or(())?;
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        if kind == "failed" {
            return Ok(Line::Failed { why: rest.to_owned() });
        }
        let mut words = rest.splitn(if matches!(kind, "refused" | "full") { 3 } else { 4 }, ' ');
        let mut number = || words.next().and_then(|word| word.parse::<i64>().ok()).ok_or(());
        Ok(match kind {
            "open" => Line::Open { partition: number()? as usize, start: number()?, end: number()? },
            "have" => Line::Have { partition: number()? as usize, base: number()?, number: number()? as u64 },
            "garbage" => Line::Garbage { partition: number()? as usize, base: number()? },
            "unreadable" => {
                let (partition, from, to) = (number()? as usize, number()?, number()?);
                Line::Unreadable { partition, from, to, why: words.next().unwrap_or("").to_owned() }
            }
            "full" => {
                let (partition, number) = (number()? as usize, number()? as u64);
                Line::Full { partition, number, why: words.next().unwrap_or("").to_owned() }
            }
            "ready" => Line::Ready,
            "send" => {
                Line::Send { partition: number()? as usize, number: number()? as u64, at: number()? as u64 }
            }
            "ack" => Line::Ack {
                partition: number()? as usize,
                base: number()?,
                number: number()? as u64,
                at: number()? as u64,
            },
            "trim-asked" => {
                Line::TrimAsked { partition: number()? as usize, before: number()?, at: number()? as u64 }
            }
            "trimmed" => {
                Line::Trimmed { partition: number()? as usize, start: number()?, at: number()? as u64 }
            }
            "refused" => {
                let (partition, number) = (number()? as usize, number()? as u64);
                Line::Refused { partition, number, why: words.next().unwrap_or("").to_owned() }
            }
            "done" => Line::Done,
            _ => return Err(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of line comes back as it was; a line that was cut short anywhere does not.
    #[test]
    fn lines_come_back_whole_or_not_at_all() {
        let why = "no space: 3 of 4".to_owned();
        let lines = [
            Line::Open { partition: 1, start: 2, end: 30 },
            Line::Have { partition: 1, base: 2, number: 33 },
            Line::Garbage { partition: 3, base: 44 },
            Line::Unreadable { partition: 0, from: 7, to: 9, why: why.clone() },
            Line::Full { partition: 1, number: 21, why: why.clone() },
            Line::Ready,
            Line::Send { partition: 0, number: 17, at: 900 },
            Line::Ack { partition: 2, base: 5, number: 17, at: 901 },
            Line::TrimAsked { partition: 2, before: 70, at: 902 },
            Line::Trimmed { partition: 2, start: 70, at: 903 },
            Line::Refused { partition: 2, number: 18, why: why.clone() },
            Line::Failed { why },
            Line::Done,
        ];
        for line in lines {
            let text = line.to_string();
            assert_eq!(text.parse(), Ok(line));
            for len in 0..text.len() {
                assert_eq!(text[..len].parse::<Line>(), Err(()), "{}", &text[..len]);
            }
        }
    }
}
