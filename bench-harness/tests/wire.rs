//! Every serving path against bad clients: requests that make no sense, requests in pieces, clients that never read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rohrpost_bench::corpus::ServedLog;
use rohrpost_bench::corpus::generate::{Shape, ensure};
use rohrpost_bench::paths::PATHS;
use rohrpost_bench::server::{ColdReads, Ready, ServerConfig};
use rohrpost_bench::sys;
use rohrpost_bench::wire::{HEADER_LEN, Opcode, Request, Response, Status};
use rohrpost_bench::workload::Workload;

const SMALL: Shape = Shape { cold_segments: 1, segment_len: 2 << 20, hot_len: 2 << 20 };

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// `None` if the path cannot run here; it has said why.
    fn start(path: &str, segments: &Path, scratch: &Path) -> Option<Self> {
        let config = ServerConfig {
            path: path.to_string(),
            workload: Workload::select(&["fanout-4k".to_string()]).unwrap().remove(0),
            segments: Some(segments.to_path_buf()),
            hot_len: SMALL.total_len(),
            scratch: scratch.to_path_buf(),
            core: sys::allowed_cores()[0],
            congestion: sys::congestion_control(),
            mask_features: Vec::new(),
            pool_chunk_len: 64 << 10,
            pool_threads: 2,
            cold_reads: ColdReads::default(),
            sample: None,
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_rohrpost-bench"))
            .arg("server")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = serde_json::to_string(&config).unwrap();
        line.push('\n');
        child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        match serde_json::from_str::<Ready>(&answer) {
            Ok(ready) => Some(Self { child, port: ready.port }),
            Err(_) => {
                println!("{path} cannot run here: {answer}");
                let _ = child.wait();
                None
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `test` against every path that serves a corpus. Paths that need io_uring may be missing, others not.
fn on_every_path(test: impl Fn(&str, &Server, &ServedLog)) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let segments: PathBuf = ensure(dir.path(), SMALL, |_, _| {}).unwrap();
    let log = ServedLog::open(&segments).unwrap();
    let mut count = 0;
    for path in PATHS.iter().filter(|path| path.fetch) {
        let Some(server) = Server::start(path.name, &segments, dir.path()) else {
            assert!(path.name.starts_with("engine") && path.name != "engine_poll", "{} must run", path.name);
            continue;
        };
        test(path.name, &server, &log);
        count += 1;
    }
    assert!(count >= 6, "only {count} paths ran");
}

fn answer(stream: &mut TcpStream) -> (Response, Vec<u8>) {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let response = Response::decode(&header).unwrap();
    let mut body = vec![0; response.body_len as usize];
    stream.read_exact(&mut body).unwrap();
    (response, body)
}

/// A request that makes no sense is answered with `bad request`, and the connection ends; what came before it is
/// answered first; the next connection is served.
#[test]
fn nonsense_is_answered_and_the_connection_closed() {
    on_every_path(|path, server, log| {
        let offset = log.entries(log.segment_count() - 1).next().unwrap().last_offset.get();
        let good = Request::fetch(7, offset, 4096).encode();
        let broken = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            bytes
        };
        for bad in [[0xff; HEADER_LEN], [0; HEADER_LEN], broken(4, 9), broken(5, 99)] {
            let mut stream = server.connect();
            stream.write_all(&[&good[..], &bad[..]].concat()).unwrap();
            let (first, body) = answer(&mut stream);
            assert_eq!((first.status, first.request_id, body.len()), (Status::Ok, 7, 4096), "{path}");
            assert_eq!(answer(&mut stream).0.status, Status::BadRequest, "{path}");
            assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "{path}: closed");
        }
        let mut stream = server.connect();
        stream.write_all(&good).unwrap();
        assert_eq!(answer(&mut stream).0.status, Status::Ok, "{path}");
    });
}

/// Requests that are answered without bytes: unknown partition, offsets out of range, reserved and empty opcodes.
#[test]
fn refusals_have_their_code_and_keep_the_connection() {
    on_every_path(|path, server, log| {
        let mut stream = server.connect();
        let fetch = Request::fetch(1, 0, 4096);
        let end = log.high_watermark();
        for (request, status) in [
            (Request { partition: 9, ..fetch }, Status::UnknownPartition),
            (Request { offset: end + 1, ..fetch }, Status::OffsetOutOfRange),
            (Request { offset: -1, ..fetch }, Status::OffsetOutOfRange),
            (Request { opcode: Opcode::Append, ..fetch }, Status::Unsupported),
            (Request { opcode: Opcode::Ping, ..fetch }, Status::Ok),
            (Request { offset: end, ..fetch }, Status::Ok),
        ] {
            stream.write_all(&request.encode()).unwrap();
            let (response, body) = answer(&mut stream);
            assert_eq!((response.status, body.len()), (status, 0), "{path} {request:?}");
        }
    });
}

/// A request that arrives byte by byte is answered like any other; one that stops half-way disturbs nobody.
#[test]
fn half_a_request_disturbs_nobody() {
    on_every_path(|path, server, log| {
        let offset = log.entries(log.segment_count() - 1).next().unwrap().last_offset.get();
        let bytes = Request::fetch(3, offset, 4096).encode();
        let mut half = server.connect();
        half.write_all(&bytes[..HEADER_LEN / 2]).unwrap();
        let mut slow = server.connect();
        slow.set_nodelay(true).unwrap();
        for byte in bytes {
            slow.write_all(&[byte]).unwrap();
        }
        assert_eq!(answer(&mut slow).1.len(), 4096, "{path}");
        half.write_all(&bytes[HEADER_LEN / 2..]).unwrap();
        assert_eq!(answer(&mut half).1.len(), 4096, "{path}");
        // Gone amid a request.
        drop(slow);
        half.write_all(&bytes[..5]).unwrap();
        drop(half);
        let mut next = server.connect();
        next.write_all(&bytes).unwrap();
        assert_eq!(answer(&mut next).1.len(), 4096, "{path}");
    });
}

/// A client that asks for much and never reads keeps no other client waiting.
#[test]
fn a_client_that_never_reads_stalls_nobody() {
    on_every_path(|path, server, log| {
        let segment = log.segment_count() - 1;
        let offset = log.entries(segment).next().unwrap().last_offset.get();
        let deaf: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut stream = server.connect();
                for id in 0..16 {
                    stream.write_all(&Request::fetch(id, offset, 1 << 20).encode()).unwrap();
                }
                stream
            })
            .collect();
        let mut stream = server.connect();
        for id in 0..20 {
            stream.write_all(&Request::fetch(id, offset, 4096).encode()).unwrap();
            let (response, body) = answer(&mut stream);
            assert_eq!((response.request_id, body.len()), (id, 4096), "{path}");
        }
        drop(deaf);
    });
}
