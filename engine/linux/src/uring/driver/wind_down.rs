//! The end of a ring driver: every request is ended and waited for, so that no memory is freed under the kernel.

use std::time::Duration;

use io_uring::{opcode, types};

use super::super::disk_ops::DiskTable;
use super::super::ring::RingError;
use super::super::slab::{Key, Kind};
use super::UringDriver;

/// How often, for 10 ms each, the end of a driver waits for the kernel to have read what was sent in place.
const NOTIFICATION_ROUNDS: u32 = 50;

impl UringDriver {
    fn is_live(&self) -> bool {
        self.disk.live_count() > 0
            || self.conns.live_count() > 0
            || self.acceptor.is_live()
            || self.wake_armed
    }

    /// Ends every request and waits for the last completions.
    fn wind_down(&mut self) -> Result<(), RingError> {
        let mut events = Vec::new();
        self.acceptor.stop(&mut self.ring)?;
        self.conns.close_all(&mut self.ring, &mut events)?;
        if self.wake_armed {
            let builder = types::CancelBuilder::user_data(Key::lone(Kind::Wake).encode());
            let entry = opcode::AsyncCancel2::new(builder).build();
            // SAFETY: [U20] the entry points to no memory.
            unsafe { self.ring.push(&entry.user_data(Key::lone(Kind::Cancel).encode())) }?;
        }
        while self.is_live() {
            self.ring.submit_and_wait(1, None)?;
            self.take_completions(&mut events)?;
            events.clear();
        }
        self.await_notifications()
    }

    /// Waits a little until the kernel has done reading what was sent without a copy. A peer that takes nothing
    /// may keep it for long: its memory is then given up, so that nothing else is ever sent from it.
    fn await_notifications(&mut self) -> Result<(), RingError> {
        let mut events = Vec::new();
        for _ in 0..NOTIFICATION_ROUNDS {
            if self.conns.zero_copies.live_count() == 0 {
                return Ok(());
            }
            self.ring.submit_and_wait(1, Some(Duration::from_millis(10)))?;
            self.take_completions(&mut events)?;
            events.clear();
        }
        self.conns.leak_zero_copies();
        Ok(())
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        if self.wind_down().is_err() {
            // The kernel may still use the tables' memory: better to lose it than to reuse it.
            let empty = DiskTable::new(0, 0, 0);
            std::mem::forget(std::mem::replace(&mut self.disk, empty));
            self.conns.leak();
        }
    }
}
