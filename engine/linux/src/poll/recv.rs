//! Receive buffers: taken from a pool for one receive, back when dropped.
//!
//! Data is received once a connection is readable, so buffers belong to what has arrived, not to
//! connections: ten thousand idle ones hold none. The pool allocates when it has none free, up to its
//! limit, and keeps what it has allocated.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rohrpost_engine_core::bill::table_len;

/// The buffers of one driver.
pub(super) struct RecvPool(Rc<Home>);

struct Home {
    free: RefCell<Vec<Box<[u8]>>>,
    /// Buffers made so far, free or not.
    made: Cell<usize>,
    len: usize,
    count_max: usize,
}

/// Received bytes; the buffer returns to its driver when dropped.
pub struct PollRecvBuf {
    buffer: Box<[u8]>,
    len: usize,
    home: Rc<Home>,
}

impl RecvPool {
    /// Up to `count_max` buffers of `len` bytes.
    pub(super) fn new(len: usize, count_max: usize) -> Self {
        let free = RefCell::new(Vec::with_capacity(count_max));
        Self(Rc::new(Home { free, made: Cell::new(0), len, count_max }))
    }

    /// Bytes of the table of so many buffers.
    pub(super) const fn table_len(count_max: usize) -> usize {
        table_len::<Box<[u8]>>(count_max)
    }

    /// Whether [`Self::take`] would find one.
    pub(super) fn has_room(&self) -> bool {
        self.0.made.get() < self.0.count_max || !self.0.free.borrow().is_empty()
    }

    /// A buffer; `None` when all are in use.
    pub(super) fn take(&self) -> Option<PollRecvBuf> {
        let home = &self.0;
        let pooled = home.free.borrow_mut().pop();
        let buffer = match pooled {
            Some(buffer) => buffer,
            None if home.made.get() < home.count_max => {
                home.made.set(home.made.get() + 1);
                vec![0; home.len].into_boxed_slice()
            }
            None => return None,
        };
        Some(PollRecvBuf { buffer, len: 0, home: Rc::clone(home) })
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
        self.home.free.borrow_mut().push(std::mem::take(&mut self.buffer));
    }
}
