//! A shard without a kernel: a platform on whose rig every operation ends at once, or when the caller wants it to.
//!
//! For criterion, to measure what a turn of the state machine costs by itself, and for tests that decide when an
//! operation ends. Memory is the real arena, files are real and so are reads and steps; writes, reservations and sends
//! vanish, and count as done.

use std::path::Path;
use std::sync::Arc;

use rohrpost_engine_core::disk::{Disk, Errno};
use rohrpost_engine_core::fetch::{Mode, ModeSet};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::step::{Step, StepOutput};
use rohrpost_engine_core::log::{LogConfig, LogDir, LogDirOptions, WriteMode};
use rohrpost_engine_core::message::{PartitionId, Reply, Request, ShardId, Ticket};
use rohrpost_engine_core::ops::{DiskOp, Event, NetOp, Now, Ops, Read, SendPart};
use rohrpost_engine_core::platform::{Chunk, Platform};
use rohrpost_engine_core::service::Service;
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::{ByteCount, Nanos, Timestamp};
use rohrpost_engine_linux::arena::{LinuxArena, LinuxChunk, LinuxLease, LinuxSlab};
use rohrpost_engine_linux::disk::LinuxDisk;
use rohrpost_engine_linux::file::LinuxFile;

/// Operations of one kind that a turn may ask for before the queues grow.
const OPS_CAPACITY: usize = 256;

/// Real memory and files, no sockets.
#[derive(Debug)]
pub struct NullPlatform;

/// Bytes that a peer might have sent.
#[derive(Debug)]
pub struct Received(pub Vec<u8>);

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Platform for NullPlatform {
    type Disk = LinuxDisk;
    type File = LinuxFile;
    type Arena = LinuxArena;
    type Slab = LinuxSlab;
    type Chunk = LinuxChunk;
    type Lease = LinuxLease;
    type RecvBuf = Received;

    const MODES: ModeSet = ModeSet::of(Mode::ALL);
}

/// One shard and who drives it.
pub struct NullRig<S: Service> {
    /// The shard.
    pub shard: Shard<NullPlatform, S>,
    /// What it has asked for since the last [`NullRig::complete`].
    pub ops: Ops<NullPlatform>,
    /// Its answers to requests, oldest first.
    pub replies: Vec<(Ticket, Reply<NullPlatform>)>,
    /// The time, which stands still unless it is set.
    pub now: Now,
    spare: Ops<NullPlatform>,
    log_dir: Arc<LogDir<LinuxDisk>>,
    tickets: u64,
}

impl<S: Service> NullRig<S> {
    /// A shard with one slab over a log directory at `root`, which is created if its parent exists.
    ///
    /// # Errors
    /// Why the directory cannot be opened, or there is no memory.
    pub fn new(root: &Path, limits: ShardLimits, service: S) -> Result<Self, Box<dyn std::error::Error>> {
        let log_dir = LogDir::open(LinuxDisk, root, LogDirOptions::default())?;
        Ok(Self {
            shard: Shard::new(limits, LinuxArena::with_slabs(1)?, service),
            ops: Ops::with_capacity(OPS_CAPACITY),
            replies: Vec::new(),
            now: Now { mono: Nanos::ZERO, wall: Timestamp::new(1_700_000_000_000) },
            spare: Ops::with_capacity(OPS_CAPACITY),
            log_dir,
            tickets: 0,
        })
    }

    /// The same shard as number `me` of `count`: letters to the others are in [`Self::ops`].
    #[must_use]
    pub fn among(self, me: ShardId, count: u16) -> Self {
        Self { shard: self.shard.among(me, count), ..self }
    }

    /// Settings of a partition for any file system, that keep records of any age.
    pub fn log_config() -> LogConfig {
        LogConfig { write_mode: WriteMode::Buffered, retention_ms: None, ..LogConfig::default() }
    }

    /// Opens a partition and waits for it.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open(
        &mut self,
        partition: PartitionId,
        name: &str,
        config: LogConfig,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let ticket = self.request(Request::Open { partition, name: name.parse()?, config });
        self.settle();
        match self.take_reply(ticket) {
            Some(Reply::Opened(opened)) => opened.map(drop).map_err(Into::into),
            _ => Err("the shard did not answer".into()),
        }
    }

    /// Hands a request to the shard.
    pub fn request(&mut self, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.handle(Event::Request(ticket, request));
        ticket
    }

    /// The answer to a request, once.
    pub fn take_reply(&mut self, ticket: Ticket) -> Option<Reply<NullPlatform>> {
        self.replies.append(&mut self.ops.replies);
        let at = self.replies.iter().position(|(of, _)| *of == ticket)?;
        Some(self.replies.remove(at).1)
    }

    /// Tells the shard what has happened.
    pub fn handle(&mut self, event: Event<NullPlatform>) {
        self.shard.handle_event(self.now, event, &mut self.ops);
    }

    /// Lets the shard ask for what comes next.
    pub fn poll(&mut self) {
        self.shard.poll(self.now, &mut self.ops);
    }

    /// Ends everything the shard has asked for, and tells it so.
    pub fn complete(&mut self) {
        std::mem::swap(&mut self.ops, &mut self.spare);
        let mut asked = std::mem::replace(&mut self.spare, Ops::with_capacity(0));
        for op in asked.disk.drain(..) {
            let event = disk_event(op);
            self.handle(event);
        }
        for op in asked.net.drain(..) {
            if let Some(event) = net_event(op) {
                self.handle(event);
            }
        }
        for (token, step) in asked.steps.drain(..) {
            let output = Box::new(self.run_step(*step));
            self.handle(Event::StepDone { token, output });
        }
        self.replies.append(&mut asked.replies);
        if std::mem::take(&mut asked.grow) {
            self.handle(Event::GrowFailed(Errno::NOMEM));
        }
        self.spare = asked;
    }

    /// Runs a step. Nothing is reserved ahead, since nothing is written: segments stay sparse.
    fn run_step(&self, step: Step<NullPlatform>) -> StepOutput<NullPlatform> {
        match step {
            Step::Extend { to, .. } => StepOutput::Extended(Ok(to)),
            Step::PrepareSegment { .. } => {
                StepOutput::SegmentPrepared(Err(rohrpost_engine_core::error::PartitionError::ReadOnly))
            }
            Step::CreateSegment { name, config, base_offset, preallocate, .. } => {
                let (unreserved, prepared) = (ByteCount::ZERO, None);
                let step =
                    Step::CreateSegment { name, config, base_offset, preallocate: unreserved, prepared };
                match step.run(&self.log_dir) {
                    StepOutput::SegmentCreated(Ok((file, start))) => {
                        StepOutput::SegmentCreated(Ok((file, start.plus(preallocate))))
                    }
                    output => output,
                }
            }
            step => step.run(&self.log_dir),
        }
    }

    /// Turns until the shard asks for nothing more.
    pub fn settle(&mut self) {
        loop {
            self.poll();
            if self.ops.is_empty() {
                return;
            }
            self.complete();
        }
    }
}

fn disk_event(op: DiskOp<NullPlatform>) -> Event<NullPlatform> {
    match op {
        DiskOp::Write(write) => Event::Written { token: write.token, result: Ok(write.len) },
        DiskOp::Sync { token, .. } => Event::Synced { token, result: Ok(()) },
        DiskOp::Read(read) => read_event(read),
        DiskOp::Fill(fill) => Event::Filled { token: fill.token, asked: fill.len, result: Ok(fill.len) },
    }
}

/// Makes a read, and the event that it has ended.
pub fn read_event(read: Read<NullPlatform>) -> Event<NullPlatform> {
    let Read { token, file, position, mut chunk, from, len, .. } = read;
    let into = &mut chunk.unfrozen_mut()[from..from + len];
    let result = LinuxDisk.read_at(&file, position, into).map_err(|error| error.errno);
    Event::ReadDone { token, chunk, result }
}

fn net_event(op: NetOp<NullPlatform>) -> Option<Event<NullPlatform>> {
    match op {
        NetOp::Receive(_) | NetOp::Pause(_) => None,
        NetOp::Send(send) => {
            let len =
                send.parts.iter().map(|part: &SendPart<_>| part.as_ref().len()).sum::<usize>() - send.skip;
            Some(Event::Sent { result: Ok(len), send })
        }
        NetOp::SendFile(send) => Some(Event::FileSent { conn: send.conn, result: Ok(send.len) }),
        NetOp::Drain { conn, len } => Some(Event::FileSent { conn, result: Ok(len) }),
        NetOp::Recall(conn) => Some(Event::Writable(conn)),
        NetOp::Close(conn) => Some(Event::Closed(conn)),
    }
}
