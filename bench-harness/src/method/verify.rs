//! Verification before timing: a fetch path must return the log's own bytes; an append path must leave files
//! that hold, CRC-checked and in order, everything it acknowledged.

use crate::client::verify::verify_fetch;
use crate::error::Result;
use crate::method::Env;
use crate::method::window::{Cell, Server, client_config};
use crate::paths::Role;
use crate::workload::Kind;

/// Starts the path, checks it, ends it.
pub(super) fn verify(env: &Env, cell: &Cell<'_>) -> Result<()> {
    if cell.path.role == Role::Harness {
        // Its bytes are constants by design; the report says so.
        return Ok(());
    }
    let server = Server::start(env, cell)?;
    if cell.workload.kind == Kind::Fetch
        && let Some(log) = cell.log
    {
        let config = client_config(env, cell, server.ready.port, 0);
        verify_fetch(cell.path.name, log, &config)?;
    }
    server.finish()
}
