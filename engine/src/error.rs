//! Errors of the facade: what the core's typed errors do not know of.

use rohrpost_engine_core::error::{AppendError, FetchError, PartitionError};
use rohrpost_engine_core::log::OpenError;

/// The engine could not be started. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The log directory could not be opened.
    #[error(transparent)]
    LogDir(#[from] OpenError),
    /// The service's address is not to be had.
    #[error(transparent)]
    Listen(#[from] rohrpost_engine_linux::net::ListenError),
    /// io_uring was asked for and is not to be had.
    #[error("io_uring is not available: {0}; choose the poll driver, or allow io_uring")]
    Uring(String),
    /// A thread could not be started or pinned, or a descriptor was not to be had.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The process may not open as many files as the engine has from its start on.
    #[error(
        "cannot {action}: {source}; an engine of this size opens {needed} files at its start and up to {most} in use, \
         {allowed} may be open in this process: raise the limit (ulimit -n)"
    )]
    Descriptors {
        /// What was tried.
        action: String,
        /// The system's answer.
        source: std::io::Error,
        /// Descriptors from the start on.
        needed: u64,
        /// With all connections and segment files that the limits allow.
        most: u64,
        /// Descriptors that the process may have.
        allowed: u64,
    },
    /// A shard could not be set up: its driver, or its core.
    #[error("shard {index} cannot start: {reason}")]
    Shard {
        /// Which.
        index: usize,
        /// Why, and what helps.
        reason: String,
    },
    /// A setting is out of its range.
    #[error("setting {setting}: {reason}")]
    InvalidOption {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError<E: std::error::Error> {
    /// The shard refused or failed it.
    #[error(transparent)]
    Refused(#[from] E),
    /// The engine has stopped, or its shard has failed; an append under way may or may not be in the
    /// log.
    #[error("the engine has stopped")]
    Stopped,
    /// As many requests as the shard takes are waiting already; nothing was done.
    #[error("too many requests are waiting for the shard; retry later")]
    Full,
}

/// See [`RequestError`].
pub type AppendResult<T> = Result<T, RequestError<AppendError>>;
/// See [`RequestError`].
pub type FetchResult<T> = Result<T, RequestError<FetchError>>;
/// See [`RequestError`].
pub type PartitionResult<T> = Result<T, RequestError<PartitionError>>;
