//! What can go wrong in a run, and the exit code each cause ends the process with.

use std::io;
use std::path::{Path, PathBuf};

/// Why the harness could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The command line asks for something that does not exist; names the cause and the remedy.
    #[error("{0}")]
    Usage(String),
    /// An operation on a named file or directory failed.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The operation, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A system call without a file failed.
    #[error("{what}: {source}")]
    System {
        /// The operation.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory does not hold what it should.
    #[error("{}: {why}", path.display())]
    Corpus {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A path returned bytes that are not the log's.
    #[error("path {path} failed its verification: {why}")]
    Verify {
        /// The path.
        path: String,
        /// The first difference.
        why: String,
    },
    /// One of our own processes broke off or spoke nonsense.
    #[error("{who} process: {why}")]
    Process {
        /// Server or client.
        who: &'static str,
        /// What it said or did.
        why: String,
    },
    /// Ctrl-C or a termination signal.
    #[error("interrupted; children stopped and scratch files removed")]
    Interrupted,
}

/// The harness's result type.
pub type Result<T, E = BenchError> = std::result::Result<T, E>;

impl BenchError {
    /// The process exit code: 2 for what the caller can correct on the command line, 130 after a
    /// signal, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            BenchError::Usage(_) => 2,
            BenchError::Interrupted => 130,
            _ => 1,
        }
    }

    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| BenchError::File { what, path, source }
    }

    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| BenchError::System { what, source: source.into() }
    }
}
