//! One system call on one connection: receive, send from memory, from a file, or from a pipe.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use arrayvec::ArrayVec;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, SEND_PARTS_MAX, Send, SendFile, SendHow, SendPart};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::PollPlatform;
use super::connections::{Connection, Transfer};
use super::pipes::Pipes;
use super::recv::PollRecvBuf;
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
    events.push(sent(id, transfer, result));
}

pub(super) fn sent(conn: ConnId, transfer: Transfer, result: Result<usize, Errno>) -> Event<PollPlatform> {
    match transfer {
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

fn send_file(socket: &OwnedFd, send: &SendFile<PollPlatform>) -> Result<usize, Errno> {
    let mut offset = send.position.get();
    let file = send.file.buffered_fd()?;
    rustix::fs::sendfile(socket, file, Some(&mut offset), send.len).map_err(errno_of)
}
