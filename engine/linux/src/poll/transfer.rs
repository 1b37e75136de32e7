//! One system call on one connection: receive, send from memory, from a file, or from a pipe.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use arrayvec::ArrayVec;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, SEND_PARTS_MAX, Send, SendFile, SendHow, SendPart};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::connections::{Connection, Transfer};
use super::pipes::Pipes;
use super::recv::PollRecvBuf;
use super::{PollDriver, PollPlatform};
use crate::file::errno_of;
use crate::reference::Reference;

/// One receive into `buffer`; `None` when there was nothing.
pub(super) fn receive_once(
    connection: &mut Connection,
    mut buffer: PollRecvBuf,
) -> Option<Result<PollRecvBuf, Errno>> {
    let received = rustix::net::recv(&connection.socket, buffer.space(), RecvFlags::DONTWAIT);
    match received {
        Ok((len, _)) => {
            buffer.set_len(len);
            if len == 0 {
                connection.receiving = false;
                connection.readable = false;
            } else if len < buffer.space().len() && !connection.ended {
                // A short receive has emptied the socket; the next bytes raise a new edge.
                connection.readable = false;
            }
            Some(Ok(buffer))
        }
        Err(rustix::io::Errno::INTR) => None,
        Err(rustix::io::Errno::AGAIN) => {
            connection.readable = false;
            None
        }
        Err(errno) => {
            connection.receiving = false;
            connection.readable = false;
            Some(Err(errno_of(errno)))
        }
    }
}

impl PollDriver {
    pub(super) fn start_transfer(
        &mut self,
        id: ConnId,
        transfer: Transfer,
        events: &mut Vec<Event<PollPlatform>>,
    ) {
        match self.connections.get_mut(id) {
            Some(connection) => {
                debug_assert!(connection.transfer.is_none(), "two transfers on {id:?}");
                self.kernel_entries += 1;
                continue_transfer(connection, &mut self.pipes, &mut self.reference, id, transfer, events);
            }
            None => events.push(ended(id, transfer, Err(Errno::CONNRESET))),
        }
    }

    /// Ends a send that waits for the peer.
    pub(super) fn recall(&mut self, id: ConnId, events: &mut Vec<Event<PollPlatform>>) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if let Some(transfer) = connection.transfer.take() {
            events.push(ended(id, transfer, Ok(0)));
        }
        self.start_transfer(id, Transfer::Room, events);
    }
}

/// Gives the socket as much as it takes. Without room for a byte, the transfer waits for the edge.
pub(super) fn continue_transfer(
    connection: &mut Connection,
    pipes: &mut Pipes,
    reference: &mut Option<Reference>,
    id: ConnId,
    transfer: Transfer,
    events: &mut Vec<Event<PollPlatform>>,
) {
    let result = loop {
        let result = match &transfer {
            Transfer::Send(send) => match reference {
                Some(reference) if send.how == SendHow::Reference => {
                    reference.send(connection.socket.as_fd(), send)
                }
                _ => send_parts(&connection.socket, send),
            },
            Transfer::File(send) => send_file(&connection.socket, send),
            Transfer::Drain(len) => pipes.drain(connection, *len),
            Transfer::Room => room_in(&connection.socket),
        };
        match result {
            Err(Errno(libc::EINTR)) => {}
            Err(Errno::AGAIN) => {
                connection.transfer = Some(transfer);
                return;
            }
            result => break result,
        }
    };
    events.push(ended(id, transfer, result));
}

/// What a transfer that has ended says.
pub(super) fn ended(conn: ConnId, transfer: Transfer, result: Result<usize, Errno>) -> Event<PollPlatform> {
    match transfer {
        Transfer::Room => Event::Writable(conn),
        Transfer::Send(send) => Event::Sent { result, send },
        Transfer::File(_) | Transfer::Drain(_) => Event::FileSent { conn, result },
    }
}

fn send_parts(socket: &OwnedFd, send: &Send<PollPlatform>) -> Result<usize, Errno> {
    let mut pieces: ArrayVec<IoSlice<'_>, SEND_PARTS_MAX> =
        send.parts.iter().map(|part| IoSlice::new(SendPart::as_ref(part))).collect();
    if let Some(first) = pieces.first_mut() {
        first.advance(send.skip);
    }
    let more = if send.more { SendFlags::MORE } else { SendFlags::empty() };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | more;
    rustix::net::sendmsg(socket, &pieces, &mut SendAncillaryBuffer::default(), flags).map_err(errno_of)
}

/// `AGAIN` unless the socket takes bytes, or is broken.
fn room_in(socket: &OwnedFd) -> Result<usize, Errno> {
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    let ready = rustix::event::poll(&mut polled, Some(&Timespec::default())).map_err(errno_of)?;
    if ready == 0 { Err(Errno::AGAIN) } else { Ok(0) }
}

fn send_file(socket: &OwnedFd, send: &SendFile<PollPlatform>) -> Result<usize, Errno> {
    let mut offset = send.position.get();
    let file = send.file.buffered_fd()?;
    rustix::fs::sendfile(socket, file, Some(&mut offset), send.len).map_err(errno_of)
}
