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
        let error = "zero_copy".parse::<Mode>().expect_err("there is no such mode");
        assert!(error.to_string().contains("direct_splice, read_send"), "{error}");
    }
}
