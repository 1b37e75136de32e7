//! A small protocol that runs on a shard, and a blocking client for it: the engine over TCP.
//!
//! A request is a header of [`REQUEST_LEN`] bytes and, for appends, record batches; an answer is a header
//! of [`ANSWER_LEN`] bytes and, for fetches, log bytes. All numbers are little-endian.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

use rohrpost_engine::service::{Access, Answer, Frame};
use rohrpost_engine::{
    AppendError, Appended, ByteCount, FetchError, FetchOutcome, FetchRequest, Mode, Nanos, Now, Offset,
    PartitionId, Service,
};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// Length of a request's header.
pub const REQUEST_LEN: usize = 40;
/// Length of an answer's header.
pub const ANSWER_LEN: usize = 32;

const MAGIC: u8 = 0x52;
const FETCH: u8 = 1;
const APPEND: u8 = 2;
const PING: u8 = 3;

/// The request succeeded.
pub const OK: u32 = 0;
/// It was refused.
pub const REFUSED: u32 = 1;
/// The offset is out of range.
pub const OUT_OF_RANGE: u32 = 2;

/// One fetch as it goes over the wire.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// From here.
    pub offset: Offset,
    /// At most so many bytes.
    pub len_max: u32,
    /// At least so many.
    pub len_min: u32,
    /// But wait no longer than this, milliseconds.
    pub wait_ms: u32,
    /// Force a mode.
    pub mode: Option<Mode>,
}

impl Fetch {
    /// Up to `len_max` bytes from `offset`.
    pub const fn new(offset: Offset, len_max: u32) -> Self {
        Self { offset, len_max, len_min: 0, wait_ms: 0, mode: None }
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// [`OK`] or why not.
    pub status: u32,
    /// The request's number.
    pub tag: u64,
    /// The high watermark, or the base offset of what was appended.
    pub offset: i64,
    /// Log bytes.
    pub body: Vec<u8>,
}

/// What a test may do on the shard's thread before each frame is handled.
pub type Hook = fn();

/// See the module documentation. Owns nothing but a hook.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Called for every frame and at every turn.
    pub hook: Hook,
}

impl Default for Wire {
    fn default() -> Self {
        Self { hook: || {} }
    }
}

impl Service for Wire {
    type Connection = ();

    fn frame_len(&self, received: &[u8]) -> Frame {
        let Some(header) = received.first_chunk::<REQUEST_LEN>() else {
            let wrong = received.first().is_some_and(|magic| *magic != MAGIC);
            return if wrong { Frame::Malformed } else { Frame::Incomplete };
        };
        let len = number(header, 4..8) as usize;
        if header[0] != MAGIC || len < REQUEST_LEN {
            return Frame::Malformed;
        }
        if received.len() < len { Frame::Incomplete } else { Frame::Complete(len) }
    }

    fn handle_frame(&mut self, _: Now, (): &mut (), frame: &[u8], response: &mut Vec<u8>) -> Answer {
        (self.hook)();
        let partition = PartitionId(number(frame, 8..12) as u32);
        let tag = number(frame, 32..40);
        match frame[1] {
            FETCH => {
                let request = FetchRequest {
                    partition,
                    offset: Offset::new(number(frame, 16..24) as i64),
                    len_max: ByteCount::new(number(frame, 24..28)),
                    len_min: ByteCount::new(number(frame, 28..32)),
                    wait_ms_max: number(frame, 12..16) as u32,
                    mode: (frame[2] as usize).checked_sub(1).map(|mode| Mode::ALL[mode % Mode::ALL.len()]),
                };
                Answer::Fetch { request, tag }
            }
            APPEND => Answer::Append { partition, batches: REQUEST_LEN..frame.len(), tag },
            PING => {
                push_answer(response, OK, tag, 0, 0);
                Answer::Respond
            }
            _ => Answer::Close,
        }
    }

    fn handle_fetched(
        &mut self,
        tag: u64,
        outcome: &Result<FetchOutcome, FetchError>,
        response: &mut Vec<u8>,
    ) {
        match outcome {
            Ok(outcome) => {
                let high_watermark = outcome.watermarks.high_watermark.get();
                push_answer(response, OK, tag, high_watermark, outcome.len.get() as u32);
            }
            Err(FetchError::OffsetOutOfRange { .. }) => push_answer(response, OUT_OF_RANGE, tag, 0, 0),
            Err(_) => push_answer(response, REFUSED, tag, 0, 0),
        }
    }

    fn handle_appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>, response: &mut Vec<u8>) {
        match outcome {
            Ok(appended) => push_answer(response, OK, tag, appended.base_offset.get(), 0),
            Err(_) => push_answer(response, REFUSED, tag, 0, 0),
        }
    }

    fn turn(&mut self, _: Now, _: &mut impl Access) -> Option<Nanos> {
        (self.hook)();
        None
    }
}

fn push_answer(response: &mut Vec<u8>, status: u32, tag: u64, offset: i64, body_len: u32) {
    response.extend_from_slice(&status.to_le_bytes());
    response.extend_from_slice(&body_len.to_le_bytes());
    response.extend_from_slice(&tag.to_le_bytes());
    response.extend_from_slice(&offset.to_le_bytes());
    response.extend_from_slice(&[0; 8]);
}

fn number(bytes: &[u8], range: Range<usize>) -> u64 {
    bytes[range].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A connection to a [`Wire`] service.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    next_tag: u64,
}

impl Client {
    /// How long a client waits for anything: a server that has forgotten it must fail a test.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Connects.
    ///
    /// # Panics
    /// If it cannot.
    pub fn connect(address: SocketAddr) -> Self {
        Self::with_buffer(address, None)
    }

    /// Connects with a receive buffer of so many bytes.
    ///
    /// # Panics
    /// If it cannot.
    pub fn with_buffer(address: SocketAddr, receive_len: Option<usize>) -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        if let Some(len) = receive_len {
            sockopt::set_socket_recv_buffer_size(&socket, len).expect("a small buffer");
        }
        rustix::net::connect(&socket, &address).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
        Self::from_socket(socket.into())
    }

    /// Takes a connected socket.
    ///
    /// # Panics
    /// If it is broken.
    pub fn from_socket(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("an option of a live socket");
        socket.set_read_timeout(Some(Self::PATIENCE)).expect("an option of a live socket");
        socket.set_write_timeout(Some(Self::PATIENCE)).expect("an option of a live socket");
        Self { socket, next_tag: 1 }
    }

    /// The socket itself, for ill-treatment.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Closes so that the peer sees a reset.
    ///
    /// # Panics
    /// If the socket is broken.
    pub fn reset(self) {
        sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO)).expect("an option of a live socket");
    }

    /// Sends a fetch; returns its number.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn send_fetch(&mut self, partition: PartitionId, fetch: Fetch) -> u64 {
        let mode = fetch.mode.map_or(0, |mode| {
            1 + Mode::ALL.iter().position(|known| *known == mode).expect("every mode is listed")
        });
        let mut request = self.header(FETCH, partition, 0);
        request[2] = mode as u8;
        request[12..16].copy_from_slice(&fetch.wait_ms.to_le_bytes());
        request[16..24].copy_from_slice(&fetch.offset.get().to_le_bytes());
        request[24..28].copy_from_slice(&fetch.len_max.to_le_bytes());
        request[28..32].copy_from_slice(&fetch.len_min.to_le_bytes());
        self.send(&request)
    }

    /// Sends an append; returns its number.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn send_append(&mut self, partition: PartitionId, batches: &[u8]) -> u64 {
        let mut request = self.header(APPEND, partition, batches.len());
        request.extend_from_slice(batches);
        self.send(&request)
    }

    /// Sends a ping; returns its number.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn send_ping(&mut self) -> u64 {
        let request = self.header(PING, PartitionId(0), 0);
        self.send(&request)
    }

    /// The next answer.
    ///
    /// # Errors
    /// When the connection ends, or nothing comes.
    pub fn try_answer(&mut self) -> io::Result<Told> {
        let mut told = Told { status: 0, tag: 0, offset: 0, body: Vec::new() };
        self.answer_into(&mut told)?;
        Ok(told)
    }

    /// As [`Self::try_answer`], into memory that is there already.
    ///
    /// # Errors
    /// As [`Self::try_answer`].
    pub fn answer_into(&mut self, told: &mut Told) -> io::Result<()> {
        let mut header = [0; ANSWER_LEN];
        self.socket.read_exact(&mut header)?;
        told.status = number(&header, 0..4) as u32;
        told.tag = number(&header, 8..16);
        told.offset = number(&header, 16..24) as i64;
        told.body.resize(number(&header, 4..8) as usize, 0);
        self.socket.read_exact(&mut told.body)
    }

    /// Waits until the next answer has begun, without taking any of it.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn wait_for_answer(&self) {
        while let Err(error) = self.socket.peek(&mut [0]) {
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "no answer: {error}");
        }
    }

    /// What comes of the next answer's body until it is whole or the connection ends, and how long it was to be.
    pub fn body_or_end(&mut self) -> (Vec<u8>, usize) {
        let mut header = [0; ANSWER_LEN];
        if self.socket.read_exact(&mut header).is_err() {
            return (Vec::new(), 0);
        }
        let len = number(&header, 4..8) as usize;
        let (mut body, mut filled) = (vec![0; len], 0);
        while filled < len {
            match self.socket.read(&mut body[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(count) => filled += count,
            }
        }
        body.truncate(filled);
        (body, len)
    }

    /// The next answer.
    ///
    /// # Panics
    /// When the connection ends, or nothing comes.
    pub fn answer(&mut self) -> Told {
        self.try_answer().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Fetches and waits for the answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn fetch(&mut self, partition: PartitionId, fetch: Fetch) -> Told {
        let tag = self.send_fetch(partition, fetch);
        let told = self.answer();
        assert_eq!(told.tag, tag, "answers come in order");
        told
    }

    /// Appends and waits for the answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn append(&mut self, partition: PartitionId, batches: &[u8]) -> Told {
        let tag = self.send_append(partition, batches);
        let told = self.answer();
        assert_eq!(told.tag, tag, "answers come in order");
        told
    }

    /// Whether the server still answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn ping(&mut self) {
        let tag = self.send_ping();
        assert_eq!(self.answer().tag, tag, "answers come in order");
    }

    fn header(&mut self, opcode: u8, partition: PartitionId, body_len: usize) -> Vec<u8> {
        let mut header = vec![0; REQUEST_LEN];
        header[0] = MAGIC;
        header[1] = opcode;
        header[4..8].copy_from_slice(&((REQUEST_LEN + body_len) as u32).to_le_bytes());
        header[8..12].copy_from_slice(&partition.0.to_le_bytes());
        header[32..40].copy_from_slice(&self.next_tag.to_le_bytes());
        header
    }

    fn send(&mut self, request: &[u8]) -> u64 {
        self.socket.write_all(request).expect("the server takes requests");
        self.next_tag += 1;
        self.next_tag - 1
    }
}
