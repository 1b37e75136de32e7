//! The client's event loop.

mod requests;

use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::time::Timespec;

use crate::client::conn::{Connection, Role, open};
use crate::client::producer::SocketProducer;
use crate::client::readers::{self, Pace};
use crate::client::{ClientConfig, ClientEvent, ClientReport, Go};
use crate::error::{BenchError, Result};
use crate::ipc;
use crate::record::WindowRecorder;
use crate::sys;

/// Bytes received at once: a large copy drain.
const RECV_LEN: usize = 256 << 10;
/// How long requests of an open loop may be answered after the window.
const GRACE_NS: u64 = 1_000_000_000;
/// No byte for this long is a hung server.
const SILENCE_NS: u64 = 20_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Warmup,
    Window,
    Grace,
}

struct Load {
    config: ClientConfig,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    random: fastrand::Rng,
    recorder: WindowRecorder,
    end_to_end: WindowRecorder,
    pace: Pace,
    producer: Option<SocketProducer>,
    report: ClientReport,
    /// Next index into each cold reader's run.
    cold_next: Vec<usize>,
    /// When cold readers begin and ask no more, counted from the window's start; taken when they have begun.
    cold_due_ns: Option<u64>,
    cold_until_ns: Option<u64>,
    /// Open loop: when each hot connection's next request is due.
    due_ns: Vec<u64>,
    interval_ns: Option<u64>,
    phase: Phase,
    window_start_ns: u64,
    window_end_ns: u64,
    heard_ns: u64,
}

pub(super) fn run(config: ClientConfig) -> Result<()> {
    sys::pin_to_core(config.core)?;
    sys::raise_priority();
    // A sleeping sender must wake when it meant to.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let mut load = Load::connect(config)?;
    ipc::child_send(&ClientEvent::Ready)?;
    let Some(go) = ipc::child_receive::<Go>()? else { return Ok(()) };
    load.start(go)?;
    while sys::now_ns() < load.window_start_ns {
        load.step(load.window_start_ns)?;
    }
    ipc::child_send(&ClientEvent::WindowStart)?;
    let cpu = load.begin_window();
    // It ends early when all readers have caught up.
    while sys::now_ns() < load.window_end_ns {
        load.step(load.window_end_ns)?;
    }
    load.end_window(cpu);
    ipc::child_send(&ClientEvent::WindowEnd)?;
    load.run_grace()?;
    load.report.hot = load.recorder.recorded();
    load.report.end_to_end = load.end_to_end.recorded();
    load.report.acks = load.producer.as_ref().map(|producer| producer.acks.recorded());
    ipc::child_send(&ClientEvent::Report(load.report))
}

impl Load {
    fn connect(config: ClientConfig) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(BenchError::system("epoll_create"))?;
        let mut roles = readers::roles(&config);
        let producer = SocketProducer::of(&config, roles.len());
        roles.extend(producer.iter().map(|_| Role::Producer));
        let mut connections = Vec::with_capacity(roles.len());
        for (at, role) in roles.into_iter().enumerate() {
            let stream = open(&config, role)?;
            if !matches!(role, Role::Stalled(_)) {
                let (data, flags) = (epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN);
                epoll::add(&epoll, &stream, data, flags).map_err(BenchError::system("epoll_ctl"))?;
            }
            connections.push(Connection::new(stream, role));
        }
        let hot = config.workload.hot.as_ref();
        let rate = hot.and_then(|hot| hot.rate_per_s);
        let cold = config.workload.cold.as_ref();
        Ok(Self {
            epoll,
            connections,
            buffer: Vec::with_capacity(RECV_LEN),
            random: fastrand::Rng::with_seed(config.seed),
            recorder: WindowRecorder::new(0),
            end_to_end: WindowRecorder::new(0),
            pace: Pace::default(),
            producer,
            report: ClientReport::default(),
            cold_next: vec![0; config.plan.cold.len()],
            cold_due_ns: cold.and_then(|cold| cold.from_seconds).map(|seconds| (seconds * 1e9) as u64),
            cold_until_ns: cold.and_then(|cold| cold.until_seconds).map(|seconds| (seconds * 1e9) as u64),
            due_ns: vec![0; rate.map_or(0, |_| hot.map_or(0, |hot| hot.connections))],
            interval_ns: rate.map(|rate| (1e9 / rate) as u64),
            phase: Phase::Warmup,
            window_start_ns: 0,
            window_end_ns: 0,
            heard_ns: 0,
            config,
        })
    }

    fn start(&mut self, go: Go) -> Result<()> {
        let now = sys::now_ns();
        self.heard_ns = now;
        self.window_start_ns = now + (go.warmup_seconds * 1e9) as u64;
        self.window_end_ns = self.window_start_ns + (go.window_seconds * 1e9) as u64;
        if let Some(interval) = self.interval_ns {
            let count = self.due_ns.len().max(1) as u64;
            for (at, due) in self.due_ns.iter_mut().enumerate() {
                *due = now + interval * at as u64 / count;
            }
        }
        self.pace = Pace::new(&self.config, go.begin_ns, self.connections.len());
        let outstanding = self.config.workload.hot.as_ref().map_or(0, |hot| hot.outstanding);
        for conn in 0..self.connections.len() {
            match self.connections[conn].role {
                Role::Hot => (0..outstanding).try_for_each(|_| self.request_hot(conn, now))?,
                Role::Cold(_) if self.cold_due_ns.is_some() => {}
                Role::Cold(_) | Role::Stalled(_) => self.request_next(conn, now)?,
                Role::Producer => {}
                Role::Tail | Role::Backlog(_) => {
                    if readers::begin(&self.config, &mut self.pace, conn, &mut self.connections[conn]) {
                        self.request_next(conn, now)?;
                    }
                }
            }
        }
        self.produce()
    }

    /// Cold readers that begin within the window do so now, if it is time. Returns when it will be.
    fn begin_cold(&mut self, now: u64) -> Result<u64> {
        let Some(after) = self.cold_due_ns else { return Ok(u64::MAX) };
        let due = self.window_start_ns + after;
        if self.phase != Phase::Window || now < due {
            return Ok(due);
        }
        self.cold_due_ns = None;
        for conn in 0..self.connections.len() {
            if let Role::Cold(_) = self.connections[conn].role {
                self.request_next(conn, now)?;
            }
        }
        Ok(u64::MAX)
    }

    fn begin_window(&mut self) -> u64 {
        self.phase = Phase::Window;
        self.recorder.restart(self.window_start_ns);
        self.end_to_end.restart(self.window_start_ns);
        if let Some(producer) = &mut self.producer {
            producer.acks.restart(self.window_start_ns);
        }
        self.report = ClientReport::default();
        sys::process_cpu_ns()
    }

    fn end_window(&mut self, cpu_before: u64) {
        let now = sys::now_ns();
        self.report.client_cpu_ns = sys::process_cpu_ns() - cpu_before;
        self.report.seconds = (now - self.window_start_ns) as f64 / 1e9;
        self.recorder.end(now);
        self.end_to_end.end(now);
        if let Some(producer) = &mut self.producer {
            producer.acks.end(now);
        }
        self.phase = Phase::Grace;
    }

    /// Open loop: waits for the answers to the window's requests while the cold load goes on.
    fn run_grace(&mut self) -> Result<()> {
        if self.interval_ns.is_none() {
            return Ok(());
        }
        let end = sys::now_ns() + GRACE_NS;
        self.send_due()?;
        while self.oldest_of_window().is_some() && sys::now_ns() < end {
            self.step(end)?;
        }
        let now = sys::now_ns();
        while let Some(conn) = self.oldest_of_window() {
            let since = self.connections[conn].outstanding.pop_front().unwrap_or(now);
            self.recorder.late_latency(now - since);
            self.report.unanswered += 1;
        }
        // Those that never left, because the pipeline was full.
        for due in &mut self.due_ns {
            while *due < self.window_end_ns {
                self.recorder.late_latency(now - *due);
                self.report.offered += 1;
                self.report.unanswered += 1;
                *due += self.interval_ns.unwrap_or(u64::MAX);
            }
        }
        Ok(())
    }

    /// A hot connection that still waits for an answer to a request of the window.
    fn oldest_of_window(&self) -> Option<usize> {
        self.connections.iter().position(|connection| {
            let oldest = connection.outstanding.front();
            connection.role == Role::Hot && oldest.is_some_and(|since| *since < self.window_end_ns)
        })
    }

    /// Sends what is due, waits for something to arrive or to become due, handles what arrived.
    fn step(&mut self, end_ns: u64) -> Result<()> {
        let next_due = self.send_due()?.min(self.send_paced()?);
        let now = sys::now_ns();
        let next_due = next_due.min(self.begin_cold(now)?);
        if now - self.heard_ns > SILENCE_NS {
            let why = format!("no byte from the server for {:?}", Duration::from_nanos(SILENCE_NS));
            return Err(BenchError::Process { who: "client", why });
        }
        let wait = next_due.min(end_ns).saturating_sub(now);
        let mut timeout =
            Timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as i64 };
        if next_due < u64::MAX {
            sys::sleep_exactly(&self.epoll, &timeout)?;
            timeout = Timespec { tv_sec: 0, tv_nsec: 0 };
        }
        let empty = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [empty; 64];
        let count = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(BenchError::system("epoll_wait")(error)),
        };
        for event in &events[..count] {
            self.receive(event.data.u64() as usize)?;
            if self.interval_ns.is_some() {
                self.send_due()?;
            }
        }
        self.produce()
    }

    /// One receive: a connection with much to say does not keep the others waiting.
    fn receive(&mut self, conn: usize) -> Result<()> {
        self.buffer.clear();
        let connection = &mut self.connections[conn];
        let got = match recv(&connection.stream, spare_capacity(&mut self.buffer), RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                return Err(BenchError::Process {
                    who: "client",
                    why: "the server closed a connection".into(),
                });
            }
            Ok((n, _)) => n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(BenchError::system("receive")(error)),
        };
        debug_assert_eq!(got, self.buffer.len());
        let now = sys::now_ns();
        self.heard_ns = now;
        connection.flush()?;
        let (phase, role, open_loop) = (self.phase, connection.role, self.interval_ns.is_some());
        let (from, to) = (self.window_start_ns, self.window_end_ns);
        let (recorder, late) = (&mut self.recorder, &mut self.report.answered_late);
        let batch_count = connection.walker.batch_count;
        let producer = &mut self.producer;
        let arrived = connection.handle(&self.buffer, |since| {
            let in_window = if open_loop { (from..to).contains(&since) } else { phase == Phase::Window };
            match (role, phase) {
                (Role::Cold(_) | Role::Stalled(_) | Role::Backlog(_), _) | (_, Phase::Warmup) => {}
                (Role::Producer, _) => {
                    if let Some(producer) = producer.as_mut().filter(|_| in_window) {
                        producer.acks.latency(now - since, now);
                    }
                }
                (_, Phase::Window) if in_window => recorder.latency(now - since, now),
                (_, Phase::Grace) if in_window && open_loop => {
                    recorder.late_latency(now - since);
                    *late += 1;
                }
                _ => {}
            }
        })?;
        if let Some(producer) = self.producer.as_mut().filter(|_| role == Role::Producer) {
            producer.acked(arrived.responses, self.phase == Phase::Window, now);
        }
        if self.phase == Phase::Window {
            if role == Role::Tail {
                let to = connection.walker.batch_count;
                self.pace.record_end_to_end(&mut self.end_to_end, batch_count, to, now);
            }
            match role {
                Role::Cold(_) | Role::Stalled(_) | Role::Backlog(_) => {
                    self.recorder.bytes(0, arrived.body_bytes, now);
                    self.report.cold_responses += u64::from(arrived.responses);
                }
                Role::Producer => {}
                Role::Hot | Role::Tail => self.recorder.bytes(arrived.body_bytes, 0, now),
            }
        }
        let once = self.config.workload.is_idle();
        let closed_loop = role != Role::Hot || !(open_loop || once);
        let goes_on =
            arrived.responses == 0 || readers::goes_on(&mut self.pace, conn, &self.connections[conn]);
        if closed_loop && goes_on {
            (0..arrived.responses).try_for_each(|_| self.request_next(conn, now))?;
        }
        Ok(())
    }
}
