//! Clients behind simulated connections: they pipeline requests, read answers in order, close and reset. Owns what each
//! connection has asked and received.

use std::collections::{BTreeMap, VecDeque};

use rohrpost_engine_core::message::{Reply, Request, Ticket};
use rohrpost_engine_core::ops::{ConnId, Now};

use crate::coverage::Happening;
use crate::driver::SimDriver;
use crate::oracle::Oracle;
use crate::prng::Prng;
use crate::service::{HEADER_LEN, Served, SimService, append_frame, fetch_frame, read_header};
use crate::workload::Workload;

/// Connections at a time.
const CONNECTIONS: u32 = 4;

/// Requests of one connection without an answer.
const PIPELINE: usize = 12;

#[derive(Default)]
struct Client {
    asked: VecDeque<u64>,
    received: Vec<u8>,
    /// The client has closed or reset: the end of the connection is no surprise.
    closing: bool,
}

/// All clients of a life.
pub(crate) struct Clients {
    conns: BTreeMap<ConnId, Client>,
    prng: Prng,
    /// Longest frame the shard takes.
    frame_len_max: usize,
}

impl Clients {
    pub(crate) fn new(prng: Prng, frame_len_max: usize) -> Self {
        Self { conns: BTreeMap::new(), prng, frame_len_max }
    }

    /// Sends a request over a connection, if it is of the kind, and a connection can take it. Returns it otherwise.
    pub(crate) fn send(
        &mut self,
        driver: &mut SimDriver,
        service: &SimService,
        ticket: Ticket,
        mut request: Request,
    ) -> Option<(Ticket, Request)> {
        if let Request::Append { partition, batches } = &request
            && self.prng.one_in(4)
        {
            service.produce(*partition, batches.clone(), ticket.0);
            return None;
        }
        if let Request::Fetch(fetch) = &mut request
            && self.prng.one_in(3)
        {
            let modes = rohrpost_engine_core::fetch::Mode::ALL;
            fetch.mode = Some(*self.prng.pick(modes));
        }
        let frame = match &request {
            Request::Fetch(fetch) => fetch_frame(ticket.0, fetch),
            Request::Append { partition, batches } => append_frame(ticket.0, *partition, batches),
            _ => return Some((ticket, request)),
        };
        let conn = self.pick(driver).filter(|_| frame.len() <= self.frame_len_max);
        let Some(conn) = conn else {
            if let Request::Fetch(fetch) = &mut request {
                fetch.mode = None;
            }
            return Some((ticket, request));
        };
        let now = driver.now_ns();
        driver.net.client_send(conn, &frame, now);
        self.conns.get_mut(&conn).expect("picked among them").asked.push_back(ticket.0);
        None
    }

    fn pick(&mut self, driver: &mut SimDriver) -> Option<ConnId> {
        let slot = self.prng.below(u64::from(CONNECTIONS)) as u32;
        match self.conns.iter().find(|(conn, _)| conn.slot == slot) {
            Some((conn, client)) => (!client.closing && client.asked.len() < PIPELINE).then_some(*conn),
            None => {
                let conn = driver.net.connect(slot, driver.now_ns());
                self.conns.insert(conn, Client::default());
                Some(conn)
            }
        }
    }

    /// One client closes its side, or resets.
    pub(crate) fn hang_up(&mut self, driver: &mut SimDriver) {
        let slot = self.prng.below(u64::from(CONNECTIONS)) as u32;
        if let Some((conn, client)) = self.conns.iter_mut().find(|(conn, _)| conn.slot == slot) {
            client.closing = true;
            let now = driver.now_ns();
            driver.net.client_close(*conn, self.prng.one_in(2), now);
        }
    }

    /// Takes in what has arrived, and checks it.
    pub(crate) fn receive(
        &mut self,
        driver: &mut SimDriver,
        service: &SimService,
        workload: &mut Workload,
        now: Now,
    ) {
        for (tag, served) in service.take_own() {
            let Served::Appended(result) = served else { panic!("the service only appends by itself") };
            workload.handle_unordered(Ticket(tag), Reply::Appended(result), now);
        }
        let mut gone = Vec::new();
        for (conn, client) in &mut self.conns {
            match driver.net.client_receive(*conn) {
                Some(bytes) => client.received.extend_from_slice(&bytes),
                None => gone.push(*conn),
            }
            client.read(service, workload, now);
        }
        for conn in gone {
            let client = self.conns.remove(&conn).expect("listed a moment ago");
            let shrinks = workload.oracles.iter().any(Oracle::may_shrink);
            let excused = workload.is_faulty() || workload.stopping || workload.stalled;
            let expected = client.closing || excused || shrinks;
            assert!(expected, "{conn:?} was closed by the engine: {:?}", client.asked);
            workload.note(Happening::ConnectionBroken);
            for tag in client.asked {
                workload.forget(Ticket(tag));
                let _ = service.take_served(tag);
            }
        }
    }
}

impl Client {
    /// Reads every whole answer.
    fn read(&mut self, service: &SimService, workload: &mut Workload, now: Now) {
        while let Some((tag, len)) = read_header(&self.received) {
            if self.received.len() < HEADER_LEN + len {
                return;
            }
            let rest = self.received.split_off(HEADER_LEN + len);
            let bytes = std::mem::replace(&mut self.received, rest).split_off(HEADER_LEN);
            let asked = self.asked.pop_front();
            assert!(asked == Some(tag), "answer {tag} where {asked:?} is next");
            match service.take_served(tag) {
                Some(Served::Appended(result)) => {
                    workload.handle_unordered(Ticket(tag), Reply::Appended(result), now);
                }
                Some(Served::Fetched(result)) => workload.handle_sent(Ticket(tag), result, &bytes, now),
                None => panic!("answer {tag} has no outcome"),
            }
        }
    }
}
