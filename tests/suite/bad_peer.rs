//! Peers that err or do nothing: they harm themselves, nobody else.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use rohrpost_engine::{DriverChoice, Engine, Offset, Partition, ShardStats};
use rohrpost_tests::host;
use rohrpost_tests::log::{DRIVERS, Ledger, batch, config, options, split};
use rohrpost_tests::service::{Client, Fetch, OK, OUT_OF_RANGE, REFUSED, REQUEST_LEN, Wire};
use tempfile::TempDir;

struct Server {
    engine: Engine,
    partition: Partition,
    ledger: Ledger,
    _dir: TempDir,
}

impl Server {
    fn start(driver: DriverChoice, batches: u64, batch_len: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), driver);
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let engine = Engine::start_with(options, |_| Wire::default()).unwrap();
        let partition = engine.handle().open_partition_blocking(&"t-0".parse().unwrap(), config()).unwrap();
        let mut ledger = Ledger::default();
        let sent: Vec<_> = (0..batches).map(|number| batch(number, 2, batch_len)).collect();
        let pending: Vec<_> = sent.iter().map(|sent| partition.append(sent.clone())).collect();
        for (pending, sent) in pending.into_iter().zip(sent) {
            ledger.push(pending.wait().unwrap().base_offset, sent);
        }
        Self { engine, partition, ledger, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(self.engine.local_addr().unwrap())
    }

    fn end(self) -> ShardStats {
        self.ledger.check(&self.partition);
        self.engine.shutdown().unwrap()[0].stats
    }
}

/// Whether the server has closed the connection, with or without a reset.
fn is_closed(client: &mut Client) -> bool {
    let mut byte = [0];
    match client.socket().read(&mut byte) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn malformed_requests_close_their_connection_only() {
    for driver in DRIVERS {
        let server = Server::start(driver, 3, 1_000);
        let mut good = server.client();
        good.ping();
        let too_long = {
            let mut header = vec![0; REQUEST_LEN];
            header[..2].copy_from_slice(&[0x52, 2]);
            header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            header
        };
        let too_short = {
            let mut header = vec![0; REQUEST_LEN];
            header[..2].copy_from_slice(&[0x52, 1]);
            header[4..8].copy_from_slice(&(REQUEST_LEN as u32 - 1).to_le_bytes());
            header
        };
        let unknown = {
            let mut header = vec![0; REQUEST_LEN];
            header[..2].copy_from_slice(&[0x52, 99]);
            header[4..8].copy_from_slice(&(REQUEST_LEN as u32).to_le_bytes());
            header
        };
        for garbage in
            [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 1], vec![0xff; 100_000], too_short, unknown]
        {
            let mut bad = server.client();
            // The server may have closed already while this is still being written.
            let _ = bad.socket().write_all(&garbage);
            assert!(is_closed(&mut bad), "{driver:?}: {:?}", &garbage[..1]);
            good.ping();
        }
        // A frame longer than any request may be: the limit ends it, not the peer's patience.
        let mut bad = server.client();
        bad.socket().write_all(&too_long).unwrap();
        let chunk = vec![7; 1 << 20];
        let sent = (0..64).take_while(|_| bad.socket().write_all(&chunk).is_ok()).count();
        assert!(sent < 64, "{driver:?}: a frame without end is not received without end");
        // What came before the malformed frame is answered.
        good.ping();
        server.end();
    }
}

/// Requests in pieces, byte by byte and never finished.
#[test]
fn half_sent_requests_wait_alone() {
    for driver in DRIVERS {
        let server = Server::start(driver, 3, 1_000);
        let mut good = server.client();
        let mut halves: Vec<_> = (0..50).map(|_| server.client()).collect();
        let sent = batch(77, 1, 100);
        let mut request = vec![0; REQUEST_LEN];
        request[..2].copy_from_slice(&[0x52, 2]);
        request[4..8].copy_from_slice(&((REQUEST_LEN + sent.len()) as u32).to_le_bytes());
        request[8..12].copy_from_slice(&server.partition.id().0.to_le_bytes());
        request.extend_from_slice(&sent);
        for (at, half) in halves.iter_mut().enumerate() {
            half.socket().write_all(&request[..1 + at * (request.len() - 2) / 49]).unwrap();
        }
        good.ping();
        // One of them goes on, one byte at a time, and gets its answer.
        let mut slow = server.client();
        for byte in &request {
            slow.socket().write_all(std::slice::from_ref(byte)).unwrap();
        }
        assert_eq!(slow.answer().status, OK);
        // The others end, in either way, and leave nothing behind.
        for (at, half) in halves.into_iter().enumerate() {
            if at % 2 == 0 { half.reset() } else { drop(half) }
        }
        good.ping();
        let told = good.fetch(server.partition.id(), Fetch::new(Offset::new(6), 1 << 20));
        let stored = split(&told.body, Offset::new(6));
        assert_eq!(stored.len(), 1, "{driver:?}: only the finished request was appended");
        assert!(stored[0].is(&sent));
        server.end();
    }
}

/// A peer that sends no more still gets what it has asked for.
#[test]
fn a_peer_that_stops_sending_gets_its_answers() {
    for driver in DRIVERS {
        let server = Server::start(driver, 40, 100_000);
        let mut client = server.client();
        // More than are answered at a time: some are still held back when the peer says that it has ended.
        let tags: Vec<_> = (0..40)
            .map(|i| client.send_fetch(server.partition.id(), Fetch::new(Offset::new(2 * i), 1 << 20)))
            .collect();
        client.socket().shutdown(Shutdown::Write).unwrap();
        for tag in tags {
            let told = client.answer();
            assert_eq!((told.status, told.tag), (OK, tag), "{driver:?}");
            assert!(told.body.len() >= 100_000);
        }
        assert!(is_closed(&mut client));
        server.end();
    }
}

/// Bytes that are no record batch, wrong checksums, unknown partitions, offsets out of range: an error each,
/// and the connection goes on.
#[test]
fn refused_requests_leave_the_connection_open() {
    for driver in DRIVERS {
        let server = Server::start(driver, 3, 1_000);
        let mut client = server.client();
        let id = server.partition.id();
        let mut flipped = batch(5, 2, 1_000).to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let good = batch(5, 2, 1_000);
        let half_good = [&good[..], &flipped].concat();
        for wrong in [b"hello".to_vec(), Vec::new(), flipped, good[..good.len() - 1].to_vec(), half_good] {
            assert_eq!(client.append(id, &wrong).status, REFUSED);
        }
        let too_large = batch(6, 1, 600 << 10);
        assert_eq!(client.append(id, &too_large).status, REFUSED, "larger than batch_len_max");
        let unknown = rohrpost_engine::PartitionId(4_000_000);
        assert_eq!(client.append(unknown, &good).status, REFUSED);
        assert_eq!(client.fetch(unknown, Fetch::new(Offset::ZERO, 1)).status, REFUSED);
        for offset in [-1, 7, i64::MAX, i64::MIN] {
            assert_eq!(client.fetch(id, Fetch::new(Offset::new(offset), 1)).status, OUT_OF_RANGE);
        }
        let at_end = client.fetch(id, Fetch::new(Offset::new(6), 1));
        assert_eq!((at_end.status, at_end.body.len(), at_end.offset), (OK, 0, 6), "nothing was appended");
        server.end();
    }
}

/// Fifty clients ask for gigabytes and never read. The log is larger than the arena, so that whoever still
/// reads needs memory; the process must not grow with what nobody takes.
#[test]
fn clients_that_never_read_cost_the_others_nothing() {
    if !host::in_child("bad_peer::clients_that_never_read_cost_the_others_nothing") {
        return;
    }
    for driver in DRIVERS {
        let server = Server::start(driver, 180, 500_000);
        let before = resident_kib();
        let mut deaf = deaf_clients(&server, 50, 360);
        read_and_append(&server, 360);
        let grown = resident_kib().saturating_sub(before);
        // The arena is 64 MiB, some of it touched before; 50 connections hold less than 1 MiB each.
        assert!(grown < 140 << 10, "{driver:?}: {grown} KiB more for 3 GiB that nobody reads");
        // One of them wakes up: its answers are there, in order.
        let told = deaf[0].answer();
        assert_eq!((told.status, told.tag), (OK, 1));
        assert!(split(&told.body, Offset::ZERO)[0].base_offset == Offset::ZERO);
        drop(deaf);
        server.client().ping();
        let stats = server.end();
        assert_eq!(stats.connections_stalled, 0, "{driver:?}: there was memory for everybody");
    }
}

/// So many, all over a log so much larger than the arena, that what is on its way to them takes all of it: it is taken
/// back from them, the others get theirs, and whoever wakes up gets all the same.
#[test]
fn clients_that_hold_all_memory_and_never_read_give_it_back() {
    for driver in DRIVERS {
        let server = Server::start(driver, 500, 500_000);
        let mut deaf = deaf_clients(&server, 250, 1_000);
        read_and_append(&server, 1_000);
        for (at, client) in deaf.iter_mut().enumerate().step_by(10) {
            let told = client.answer();
            assert_eq!((told.status, told.tag), (OK, 1), "{driver:?}: client {at}");
            let first = at as u64 * 31 % 1_000 / 2;
            let stored = split(&told.body, Offset::new(first as i64 * 2));
            for (number, stored) in (first..).zip(&stored) {
                assert!(stored.is(&batch(number, 2, 500_000)), "{driver:?}: client {at}, batch {number}");
            }
            assert!(!stored.is_empty());
        }
        drop(deaf);
        server.client().ping();
        let stats = server.end();
        assert!(stats.sends_recalled > 0, "{driver:?}: {stats:?}");
        assert_eq!(stats.connections_stalled, 0, "{driver:?}: {stats:?}");
    }
}

/// Clients that ask, all over a log of so many records, and do not listen.
fn deaf_clients(server: &Server, count: usize, records: i64) -> Vec<Client> {
    let mut deaf: Vec<_> = (0..count).map(|_| server.client()).collect();
    for (at, client) in deaf.iter_mut().enumerate() {
        for i in 0..60 {
            let offset = Offset::new((at as i64 * 31 + i) % records);
            client.send_fetch(server.partition.id(), Fetch::new(offset, 1 << 20));
        }
    }
    deaf
}

/// One more client reads the whole log, so many records, and appends to it.
fn read_and_append(server: &Server, records: i64) {
    let mut good = server.client();
    let mut next = Offset::ZERO;
    while next < Offset::new(records) {
        let told = good.fetch(server.partition.id(), Fetch::new(next, 1 << 20));
        assert_eq!(told.status, OK);
        next = split(&told.body, next).last().expect("a first batch is whole").next_offset;
    }
    assert_eq!(good.append(server.partition.id(), &batch(9_999, 1, 1_000)).status, OK);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of every status");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
