//! The ways bytes go from a segment to a socket.

use std::fmt;
use std::str::FromStr;

/// A transfer mode. Each can be forced, so that its cost can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Copy from the arena into the socket.
    Send,
    /// From the page cache, by `sendfile`.
    Sendfile,
    /// Direct read into the arena, then as `Send`.
    DirectSend,
}

impl Mode {
    /// Every mode, in the order of the documentation.
    pub const ALL: &'static [Mode] = &[Mode::Send, Mode::Sendfile, Mode::DirectSend];

    /// The name on command lines and in results.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Send => "send",
            Mode::Sendfile => "sendfile",
            Mode::DirectSend => "direct_send",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}; known modes: send, sendfile, direct_send")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Mode::ALL.iter().find(|mode| mode.name() == text);
        known.copied().ok_or_else(|| UnknownMode(text.to_owned()))
    }
}
