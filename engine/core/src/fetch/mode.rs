//! The ways bytes go from a segment to a socket.

use std::fmt;
use std::str::FromStr;

/// A transfer mode. Each can be forced, so that its cost can be measured; what is in memory already is sent from
/// there by the forced way of sending, whatever the mode says of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Copy from the arena into the socket.
    Send,
    /// From the arena, read in place by the network card.
    SendZc,
    /// From the arena, by reference to its pages.
    SendRef,
    /// From the page cache, by `sendfile`.
    Sendfile,
    /// From the page cache, through a pipe.
    Splice,
    /// Direct read into the arena, then as `Send`.
    DirectSend,
    /// Direct read into the arena, then as `SendZc`.
    DirectSendZc,
    /// Direct read into a pipe's pages and from there to the socket: neither user memory nor page cache.
    DirectSplice,
    /// Read through the page cache into the arena, then as `Send`.
    ReadSend,
}

const NAMES: [(Mode, &str); 9] = [
    (Mode::Send, "send"),
    (Mode::SendZc, "send_zc"),
    (Mode::SendRef, "send_ref"),
    (Mode::Sendfile, "sendfile"),
    (Mode::Splice, "splice"),
    (Mode::DirectSend, "direct_send"),
    (Mode::DirectSendZc, "direct_send_zc"),
    (Mode::DirectSplice, "direct_splice"),
    (Mode::ReadSend, "read_send"),
];

impl Mode {
    /// Every mode, in the order of the documentation.
    pub const ALL: &'static [Mode] = &[
        Mode::Send,
        Mode::SendZc,
        Mode::SendRef,
        Mode::Sendfile,
        Mode::Splice,
        Mode::DirectSend,
        Mode::DirectSendZc,
        Mode::DirectSplice,
        Mode::ReadSend,
    ];

    /// The name on command lines and in results.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// Whether its bytes come from a file or a pipe, never from the arena.
    pub(crate) const fn is_of_file(self) -> bool {
        matches!(self, Mode::Sendfile | Mode::Splice | Mode::DirectSplice)
    }
}

/// A set of modes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ModeSet(u16);

impl ModeSet {
    /// The set of these.
    pub const fn of(modes: &[Mode]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < modes.len() {
            bits |= 1 << modes[at] as u16;
            at += 1;
        }
        Self(bits)
    }

    /// Whether the mode is in the set.
    #[inline]
    pub const fn contains(self, mode: Mode) -> bool {
        self.0 & (1 << mode as u16) != 0
    }

    /// The set without these.
    #[must_use]
    pub const fn without(self, modes: &[Mode]) -> Self {
        Self(self.0 & !Self::of(modes).0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Its modes, in the order of the documentation.
    pub fn iter(self) -> impl Iterator<Item = Mode> {
        Mode::ALL.iter().copied().filter(move |mode| self.contains(*mode))
    }
}

impl fmt::Debug for ModeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}; known modes: {known}", known = NAMES.map(|(_, name)| name).join(", "))]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Mode::ALL.iter().find(|mode| mode.name() == text);
        known.copied().ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_has_its_own_name_and_is_found_by_it() {
        assert_eq!(Mode::ALL.len(), NAMES.len());
        for (mode, (named, name)) in Mode::ALL.iter().zip(NAMES) {
            assert_eq!((*mode, mode.name()), (named, name));
            assert_eq!(name.parse(), Ok(named));
        }
        let some =
            ModeSet::of(&[Mode::ReadSend, Mode::Send, Mode::Splice]).without(&[Mode::Splice, Mode::SendZc]);
        assert_eq!(some.iter().collect::<Vec<_>>(), [Mode::Send, Mode::ReadSend]);
        assert_eq!(some.and(ModeSet::of(&[Mode::Send, Mode::Splice])), ModeSet::of(&[Mode::Send]));
        assert!(ModeSet::of(Mode::ALL).iter().eq(Mode::ALL.iter().copied()));
        let error = "zero_copy".parse::<Mode>().expect_err("there is no such mode");
        assert!(error.to_string().contains("direct_splice, read_send"), "{error}");
    }
}
