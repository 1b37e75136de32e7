//! `null`: answers every fetch with the right number of constant bytes. What it reaches is what the harness,
//! the loop and the loopback can do; a path close to it is limited by them. Its bytes are not the log's.

use std::io;
use std::os::fd::BorrowedFd;

use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};
use crate::server::epoll::{Delivery, EpollServer, Progress, Transfer, send_from_memory};
use crate::server::{ServerContext, Stats};
use crate::wire::FETCH_LEN_MAX;

/// Larger bodies repeat it.
const MEMORY_LEN: usize = 2 << 20;

struct Null {
    memory: Vec<u8>,
}

impl Delivery for Null {
    fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        transfer: &mut Transfer,
        _log: &ServedLog,
        stats: &Stats,
    ) -> io::Result<Progress> {
        loop {
            let from = transfer.body_sent();
            let len = (transfer.body.len - from).min(self.memory.len());
            match send_from_memory(socket, transfer, &self.memory[..len], from, stats)? {
                Progress::Waiting => {}
                ended => return Ok(ended),
            }
        }
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    const { assert!(MEMORY_LEN <= FETCH_LEN_MAX as usize) };
    let log = context.take_log()?;
    let memory = (0..MEMORY_LEN).map(|at| at as u8).collect();
    let listener = context.listener.try_clone().map_err(BenchError::system("clone a socket"))?;
    let server = EpollServer::new(listener, log, Null { memory }, context.stats.clone())?;
    context.ready("constant bytes")?;
    server.run()
}
