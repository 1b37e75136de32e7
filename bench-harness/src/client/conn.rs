//! One client connection: which requests are outstanding, how far the current response has arrived.

use std::collections::VecDeque;
use std::net::TcpStream;

use rohrpost_engine_core::format::batch::{BatchPrefix, PREFIX_LEN};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{SendFlags, send};

use crate::client::ClientConfig;
use crate::error::{BenchError, Result};
use crate::sys;
use crate::wire::{HEADER_LEN, PIPELINE_COUNT_MAX, Request, Response, Status};

/// What a connection is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Hot,
    /// Number of the cold reader.
    Cold(usize),
    /// Asks once and reads nothing. Number among its kind.
    Stalled(usize),
    Tail,
    /// Reads what was appended before the window; number of the reader.
    Backlog(usize),
    /// Appends.
    Producer,
}

impl Role {
    /// Whether its next fetch depends on what the last one brought.
    pub(super) fn walks(self) -> bool {
        matches!(self, Role::Tail | Role::Backlog(_))
    }
}

/// What arrived with some received bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) body_bytes: u64,
    pub(super) responses: u32,
}

/// One connection.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) role: Role,
    /// When each outstanding request was sent or should have been, oldest first.
    pub(super) outstanding: VecDeque<u64>,
    pub(super) next_id: u64,
    /// Requests encoded and not yet in the socket.
    unsent: Vec<u8>,
    unsent_at: usize,
    header: [u8; HEADER_LEN],
    header_len: usize,
    body_left: u64,
    /// The walk over a tail reader's bodies.
    pub(super) walker: Walker,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, role: Role) -> Self {
        Self {
            stream,
            role,
            outstanding: VecDeque::with_capacity(PIPELINE_COUNT_MAX),
            next_id: 0,
            unsent: Vec::with_capacity(PIPELINE_COUNT_MAX * HEADER_LEN),
            unsent_at: 0,
            header: [0; HEADER_LEN],
            header_len: 0,
            body_left: 0,
            walker: Walker::default(),
        }
    }

    /// Sends a request that counts from `since_ns`.
    pub(super) fn request(&mut self, request: Request, since_ns: u64) -> Result<()> {
        self.request_with(request, &[], since_ns)
    }

    /// Sends a request with a body.
    pub(super) fn request_with(&mut self, request: Request, body: &[u8], since_ns: u64) -> Result<()> {
        self.outstanding.push_back(since_ns);
        self.next_id += 1;
        self.unsent.extend_from_slice(&request.encode());
        self.unsent.extend_from_slice(body);
        self.flush()
    }

    /// Sends what is left, as far as the socket takes.
    pub(super) fn flush(&mut self) -> Result<()> {
        while self.unsent_at < self.unsent.len() {
            let rest = &self.unsent[self.unsent_at..];
            match send(&self.stream, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) => self.unsent_at += n,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(BenchError::system("send a request")(error)),
            }
        }
        self.unsent.clear();
        self.unsent_at = 0;
        Ok(())
    }

    /// Takes received bytes apart. `completed` is called per response with its time of origin.
    pub(super) fn handle(&mut self, mut bytes: &[u8], mut completed: impl FnMut(u64)) -> Result<Arrived> {
        let mut arrived = Arrived::default();
        while !bytes.is_empty() {
            if self.header_len < HEADER_LEN {
                let n = bytes.len().min(HEADER_LEN - self.header_len);
                self.header[self.header_len..self.header_len + n].copy_from_slice(&bytes[..n]);
                self.header_len += n;
                bytes = &bytes[n..];
                if self.header_len < HEADER_LEN {
                    break;
                }
                self.begin_response()?;
            }
            let n = (bytes.len() as u64).min(self.body_left) as usize;
            if self.role.walks() {
                self.walker.feed(&bytes[..n])?;
            }
            self.body_left -= n as u64;
            arrived.body_bytes += n as u64;
            bytes = &bytes[n..];
            if self.body_left == 0 {
                self.header_len = 0;
                arrived.responses += 1;
                let since = self.outstanding.pop_front().ok_or_else(|| nonsense("a response too many"))?;
                completed(since);
            }
        }
        Ok(arrived)
    }

    fn begin_response(&mut self) -> Result<()> {
        let response = Response::decode(&self.header).map_err(|e| nonsense(&e.to_string()))?;
        if response.status != Status::Ok {
            return Err(nonsense(&format!("offset {}: status {:?}", response.offset, response.status)));
        }
        let expected = self.next_id - self.outstanding.len() as u64;
        if response.request_id != expected {
            return Err(nonsense(&format!("response {} where {expected} was next", response.request_id)));
        }
        self.body_left = u64::from(response.body_len);
        self.walker.begin();
        Ok(())
    }
}

/// A connection of this role: one that never reads has the receive buffer that the workload gives it.
pub(super) fn open(config: &ClientConfig, role: Role) -> Result<TcpStream> {
    let stream = sys::connect(config.port, &config.congestion)?;
    if let (Role::Stalled(_), Some(stalled)) = (role, &config.workload.stalled) {
        set_socket_recv_buffer_size(&stream, stalled.receive_len)
            .map_err(BenchError::system("set a receive buffer"))?;
    }
    Ok(stream)
}

fn nonsense(why: &str) -> BenchError {
    BenchError::Process { who: "client", why: format!("the server's answer makes no sense: {why}") }
}

/// Walks over record batches as they stream by, to know where the next fetch starts.
#[derive(Debug, Default)]
pub(super) struct Walker {
    prefix: [u8; PREFIX_LEN],
    prefix_len: usize,
    batch_left: u64,
    pending: i64,
    pending_len: u64,
    /// Bytes of whole batches seen.
    pub(super) whole_len: u64,
    /// Whole batches seen.
    pub(super) batch_count: u64,
    /// The offset after the last whole batch.
    pub(super) next_offset: i64,
}

impl Walker {
    /// A body begins at a batch; the last one may have ended inside one.
    fn begin(&mut self) {
        self.prefix_len = 0;
        self.batch_left = 0;
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.batch_left == 0 {
                let n = bytes.len().min(PREFIX_LEN - self.prefix_len);
                self.prefix[self.prefix_len..self.prefix_len + n].copy_from_slice(&bytes[..n]);
                self.prefix_len += n;
                bytes = &bytes[n..];
                if self.prefix_len < PREFIX_LEN {
                    return Ok(());
                }
                let prefix = BatchPrefix::peek(&self.prefix).map_err(|e| nonsense(&e.to_string()))?;
                self.batch_left = prefix.len().get() - PREFIX_LEN as u64;
                self.pending_len = prefix.len().get();
                self.pending = prefix.next_offset().get();
            }
            let n = (bytes.len() as u64).min(self.batch_left) as usize;
            self.batch_left -= n as u64;
            bytes = &bytes[n..];
            if self.batch_left == 0 {
                self.next_offset = self.pending;
                self.batch_count += 1;
                self.whole_len += self.pending_len;
                self.prefix_len = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::generate::BatchSource;

    /// The walker finds the end of the last whole batch, however the bytes are cut.
    #[test]
    fn the_walker_finds_whole_batches_in_any_pieces() {
        let mut source = BatchSource::new(3, 8 << 10);
        let (mut bytes, mut batch, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 {
            ends.push(source.next_batch(&mut batch).next_offset().get());
            bytes.extend_from_slice(&batch);
        }
        let cut = bytes.len() - batch.len() / 2;
        for piece in [1, 26, 27, 28, 4096, bytes.len()] {
            let mut walker = Walker::default();
            walker.begin();
            bytes[..cut].chunks(piece).for_each(|piece| walker.feed(piece).unwrap());
            assert_eq!(walker.next_offset, ends[2], "pieces of {piece}");
            // The next body starts with the batch that was cut.
            walker.begin();
            bytes[bytes.len() - batch.len()..].chunks(piece).for_each(|piece| walker.feed(piece).unwrap());
            assert_eq!(walker.next_offset, ends[3], "pieces of {piece}");
        }
        let mut walker = Walker::default();
        walker.begin();
        assert!(walker.feed(&[0xff; 64]).is_err());
    }
}
