//! Receive buffers: taken from a pool for one receive, back when dropped.
//!
//! Data is received once a connection is readable, so buffers belong to what has arrived, not to
//! connections: ten thousand idle ones hold none. The pool allocates until it has as many as were ever
//! in use at once.

use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of one receive at most.
pub(super) const RECV_LEN: usize = 64 << 10;

/// Buffers the pool keeps; more are freed as they return.
const KEPT_MAX: usize = 256;

type Buffers = Rc<RefCell<Vec<Box<[u8]>>>>;

/// Buffers of [`RECV_LEN`] bytes for one driver.
#[derive(Default)]
pub(super) struct RecvPool(Buffers);

/// Received bytes; the buffer returns to its driver when dropped.
pub struct PollRecvBuf {
    buffer: Box<[u8]>,
    len: usize,
    home: Buffers,
}

impl RecvPool {
    pub(super) fn take(&self) -> PollRecvBuf {
        let pooled = self.0.borrow_mut().pop();
        let buffer = pooled.unwrap_or_else(|| vec![0; RECV_LEN].into_boxed_slice());
        PollRecvBuf { buffer, len: 0, home: Rc::clone(&self.0) }
    }
}

impl PollRecvBuf {
    /// The memory to receive into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Says how much was received.
    pub(super) fn set_len(&mut self, len: usize) {
        assert!(len <= self.buffer.len(), "received {len} bytes into {}", self.buffer.len());
        self.len = len;
    }
}

impl AsRef<[u8]> for PollRecvBuf {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for PollRecvBuf {
    fn drop(&mut self) {
        let mut pool = self.home.borrow_mut();
        if pool.len() < KEPT_MAX {
            pool.push(std::mem::take(&mut self.buffer));
        }
    }
}
