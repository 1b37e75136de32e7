//! The types the ring driver works with, and what it needs from other threads.

use std::os::fd::BorrowedFd;

use rohrpost_engine_core::fetch::Mode;
use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::message::{Reply, Ticket};
use rohrpost_engine_core::ops::{Event, Token};
use rohrpost_engine_core::platform::Platform;

use super::recv::RecvBuf;
use crate::arena::{LinuxArena, LinuxChunk, LinuxLease, LinuxSlab};
use crate::disk::LinuxDisk;
use crate::file::LinuxFile;

/// Memory, files and disk of the ring driver: as of every Linux driver, but for the receive buffers.
pub struct UringPlatform;

impl Platform for UringPlatform {
    type Disk = LinuxDisk;
    type File = LinuxFile;
    type Arena = LinuxArena;
    type Slab = LinuxSlab;
    type Chunk = LinuxChunk;
    type Lease = LinuxLease;
    type RecvBuf = RecvBuf;

    const MODES: &'static [Mode] = &[Mode::Send, Mode::Sendfile, Mode::DirectSend];
}

/// The shard's connection to other threads: helpers that run steps and fetch memory, and handles that
/// send requests and await replies.
pub trait Outside {
    /// An eventfd that another thread writes to after it has queued something for a parked shard. Stays
    /// open as long as this value; nobody needs to read it.
    fn wake_fd(&self) -> BorrowedFd<'_>;

    /// Says that the shard is about to wait: from now on whoever queues something writes to the
    /// eventfd. `false` if something is queued already, so that waiting would miss it.
    fn park(&mut self) -> bool;

    /// Says that the shard runs again; queueing needs no eventfd now.
    fn unpark(&mut self);

    /// Takes what has been queued.
    fn drain(&mut self, events: &mut Vec<Event<UringPlatform>>);

    /// Runs a step on a helper thread, in order per partition; answered through [`Self::drain`].
    fn run_step(&mut self, token: Token, step: Box<Step<UringPlatform>>);

    /// Fetches another slab on a helper thread; answered through [`Self::drain`].
    fn grow(&mut self);

    /// Hands a reply to whoever sent the request.
    fn reply(&mut self, ticket: Ticket, reply: Reply<UringPlatform>);
}
