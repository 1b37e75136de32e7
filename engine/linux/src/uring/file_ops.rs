//! Sends beside the ring: from the page cache, from a connection's pipe, or from the arena by reference.
//!
//! Each is a system call or a few that never wait. Where the socket takes nothing, the transfer stays
//! with its connection, and a poll request in the ring says when to try again.

use std::os::fd::AsFd;

use io_uring::{opcode, types};
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, SendFile};

use super::UringPlatform;
use super::conn::{Conn, Transfer};
use super::net_ops::{ConnTable, Events, Outcome};
use super::ring::Ring;
use super::slab::Kind;
use super::socket::send_from_file;
use crate::pipe::PipePool;

impl ConnTable {
    pub(super) fn send_file(
        &mut self,
        ring: &mut Ring,
        file: SendFile<UringPlatform>,
        events: &mut Events,
    ) -> Outcome {
        let id = file.conn;
        let Some(conn) = self.find(id).filter(|conn| !conn.closing) else {
            events.push(Event::FileSent { conn: id, result: Err(Errno::CONNRESET) });
            return Ok(());
        };
        assert!(matches!(conn.transfer, Transfer::None), "two transfers on {id:?}");
        self.continue_transfer(ring, id.slot, Transfer::File(file), events)
    }

    /// Gives the socket as much as it takes now, or waits until it takes something.
    pub(super) fn continue_transfer(
        &mut self,
        ring: &mut Ring,
        slot: u32,
        transfer: Transfer,
        events: &mut Events,
    ) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        let result = match &transfer {
            _ if conn.closing => Err(Errno::CANCELED),
            Transfer::File(file) => send_from_file(conn.socket.as_ref(), file),
            Transfer::Drain(len) => Self::drain_now(conn, &mut self.pipes.pool, *len),
            Transfer::Reference(send) => match (&conn.socket, &mut self.reference) {
                (Some(socket), Some(reference)) => reference.send(socket.as_fd(), send),
                _ => Err(Errno::CONNRESET),
            },
            _ => unreachable!("other transfers wait in the ring"),
        };
        self.inline_count += 1;
        match result {
            Err(Errno::AGAIN) => {
                conn.transfer = transfer;
                self.await_writable(ring, slot)
            }
            result => {
                events.push(match transfer {
                    // Interrupted before the first byte: nothing was taken, nothing is wrong.
                    Transfer::Reference(send) if result == Err(Errno(libc::EINTR)) => {
                        Event::Sent { result: Ok(0), send }
                    }
                    Transfer::Reference(send) => Event::Sent { result, send },
                    _ => Event::FileSent { conn: conn.id, result },
                });
                Ok(())
            }
        }
    }

    /// Waits until the socket takes something, with nothing to give.
    pub(super) fn await_room(&mut self, ring: &mut Ring, slot: u32) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        conn.recalled = false;
        conn.transfer = Transfer::Room;
        self.await_writable(ring, slot)
    }

    fn await_writable(&mut self, ring: &mut Ring, slot: u32) -> Outcome {
        let socket = types::Fd(self.conns[slot as usize].fd());
        let entry = opcode::PollAdd::new(socket, libc::POLLOUT as u32).build();
        self.submit(ring, slot, Kind::WritablePoll, entry)
    }

    /// Gives the socket what it takes of the connection's pipe, or waits until it takes something.
    pub(super) fn drain(&mut self, ring: &mut Ring, id: ConnId, len: usize, events: &mut Events) -> Outcome {
        let Some(conn) = self.find(id).filter(|conn| !conn.closing) else {
            events.push(Event::FileSent { conn: id, result: Err(Errno::CONNRESET) });
            return Ok(());
        };
        assert!(matches!(conn.transfer, Transfer::None), "two transfers on {id:?}");
        self.continue_transfer(ring, id.slot, Transfer::Drain(len), events)
    }

    /// One splice from a connection's pipe into its socket.
    fn drain_now(conn: &mut Conn, pool: &mut PipePool, len: usize) -> Result<usize, Errno> {
        let Some(loaded) = &mut conn.pipe else { return Ok(0) };
        let socket = conn.socket.as_ref().ok_or(Errno::CONNRESET)?;
        let taken = loaded.drain(socket, len);
        if loaded.len() == 0
            && let Some(loaded) = conn.pipe.take()
        {
            pool.unload(loaded);
        }
        taken
    }

    /// The socket of a waiting transfer takes something again.
    pub(super) fn complete_writable(&mut self, ring: &mut Ring, slot: u32, events: &mut Events) -> Outcome {
        let conn = &mut self.conns[slot as usize];
        let transfer = std::mem::replace(&mut conn.transfer, Transfer::None);
        if let Transfer::Room = transfer {
            if !conn.closing {
                events.push(Event::Writable(conn.id));
            }
            return Ok(());
        }
        self.continue_transfer(ring, slot, transfer, events)
    }
}
