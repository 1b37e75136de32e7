//! The harness's wire format: 64-byte little-endian headers, answered in order (WIRE.md has the table).
//!
//! Every path speaks it, so that what differs between paths is delivery and nothing else. A request is one
//! header (an append's is followed by its body), a response one header and `body_len` bytes of the log as
//! they lie on disk. Parsing never panics: foreign bytes are a [`WireError`], after which framing is lost.

/// Length of every header.
pub const HEADER_LEN: usize = 64;
/// The version this build speaks.
pub const VERSION: u8 = 1;
/// First four bytes of a request.
pub const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"RPRQ");
/// First four bytes of a response.
pub const RESPONSE_MAGIC: u32 = u32::from_le_bytes(*b"RPRS");
/// Largest body a fetch may ask for.
pub const FETCH_LEN_MAX: u32 = 64 << 20;
/// Requests a client may have outstanding on one connection.
pub const PIPELINE_COUNT_MAX: usize = 64;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Read log bytes.
    Fetch = 1,
    /// Answer with an empty body.
    Ping = 2,
    /// Append the batch in the body; answered when it is durable.
    Append = 3,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// The body holds what was asked for.
    Ok = 0,
    /// No such partition here.
    UnknownPartition = 1,
    /// The offset lies before the log start or beyond the high watermark.
    OffsetOutOfRange = 2,
    /// The header cannot be understood; the server closes the connection after this answer.
    BadRequest = 3,
    /// The opcode is known but not served by this path.
    Unsupported = 4,
    /// The forced delivery mode is not available for this range.
    ModeUnavailable = 5,
    /// Storage failed.
    StorageError = 6,
}

impl Status {
    /// The status with this code, if there is one.
    pub const fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => Status::Ok,
            1 => Status::UnknownPartition,
            2 => Status::OffsetOutOfRange,
            3 => Status::BadRequest,
            4 => Status::Unsupported,
            5 => Status::ModeUnavailable,
            6 => Status::StorageError,
            _ => return None,
        })
    }
}

/// Why 64 bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not ours.
    #[error("magic at byte 0: expected {expected:#010x}, found {found:#010x}")]
    Magic {
        /// What the header should start with.
        expected: u32,
        /// What it starts with.
        found: u32,
    },
    /// A later version.
    #[error("version at byte 4: expected {VERSION}, found {0}")]
    Version(u8),
    /// No such operation.
    #[error("opcode at byte 5: expected 1 to 3, found {0}")]
    Opcode(u8),
    /// No such status.
    #[error("status at byte 6: expected 0 to 6, found {0}")]
    Status(u16),
    /// A fetch of nothing, or of more than [`FETCH_LEN_MAX`].
    #[error("max_bytes at byte 32: expected 1 to {FETCH_LEN_MAX}, found {0}")]
    Length(u32),
}

/// A request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub opcode: Opcode,
    /// Forced delivery mode (0: the server's choice); see WIRE.md for the numbers.
    pub flags: u16,
    /// Returned in the response.
    pub request_id: u64,
    /// Partition number within the served log.
    pub partition: u32,
    /// How long the server may wait for `min_bytes`, in milliseconds.
    pub max_wait_ms: u32,
    /// Any offset of the first batch wanted.
    pub offset: i64,
    /// Largest body, in bytes; the body may end inside a batch.
    pub max_bytes: u32,
    /// Bytes worth answering before `max_wait_ms` have passed.
    pub min_bytes: u32,
    /// Length of the body that follows (appends only).
    pub body_len: u32,
}

impl Request {
    /// A fetch in the server's choice of mode that answers at once.
    pub const fn fetch(request_id: u64, offset: i64, max_bytes: u32) -> Self {
        Self {
            opcode: Opcode::Fetch,
            flags: 0,
            request_id,
            partition: 0,
            max_wait_ms: 0,
            offset,
            max_bytes,
            min_bytes: 1,
            body_len: 0,
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0..4].copy_from_slice(&REQUEST_MAGIC.to_le_bytes());
        b[4] = VERSION;
        b[5] = self.opcode as u8;
        b[6..8].copy_from_slice(&self.flags.to_le_bytes());
        b[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        b[16..20].copy_from_slice(&self.partition.to_le_bytes());
        b[20..24].copy_from_slice(&self.max_wait_ms.to_le_bytes());
        b[24..32].copy_from_slice(&self.offset.to_le_bytes());
        b[32..36].copy_from_slice(&self.max_bytes.to_le_bytes());
        b[36..40].copy_from_slice(&self.min_bytes.to_le_bytes());
        b[40..44].copy_from_slice(&self.body_len.to_le_bytes());
        b
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError`] naming the first field that cannot be.
    pub fn decode(b: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        check_start(b, REQUEST_MAGIC)?;
        let opcode = match b[5] {
            1 => Opcode::Fetch,
            2 => Opcode::Ping,
            3 => Opcode::Append,
            other => return Err(WireError::Opcode(other)),
        };
        let request = Self {
            opcode,
            flags: u16_at(b, 6),
            request_id: u64_at(b, 8),
            partition: u32_at(b, 16),
            max_wait_ms: u32_at(b, 20),
            offset: u64_at(b, 24) as i64,
            max_bytes: u32_at(b, 32),
            min_bytes: u32_at(b, 36),
            body_len: u32_at(b, 40),
        };
        if opcode == Opcode::Fetch && (request.max_bytes == 0 || request.max_bytes > FETCH_LEN_MAX) {
            return Err(WireError::Length(request.max_bytes));
        }
        Ok(request)
    }
}

/// A response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's opcode.
    pub opcode: Opcode,
    /// How the request ended; without `Ok` there is no body.
    pub status: Status,
    /// From the request.
    pub request_id: u64,
    /// From the request.
    pub partition: u32,
    /// Bytes that follow this header.
    pub body_len: u32,
    /// From the request. The body starts at the batch that holds this offset.
    pub offset: i64,
    /// First offset that may not be read yet, or -1 where the path does not know.
    pub high_watermark: i64,
}

impl Response {
    /// The answer to `request` with a body of `body_len` bytes.
    pub const fn ok(request: &Request, body_len: u32, high_watermark: i64) -> Self {
        Self {
            opcode: request.opcode,
            status: Status::Ok,
            request_id: request.request_id,
            partition: request.partition,
            body_len,
            offset: request.offset,
            high_watermark,
        }
    }

    /// The answer to `request` without a body.
    pub const fn refused(request: &Request, status: Status) -> Self {
        Self { status, ..Self::ok(request, 0, -1) }
    }

    /// The answer to bytes that are no request.
    pub const fn bad_request() -> Self {
        Self {
            opcode: Opcode::Ping,
            status: Status::BadRequest,
            request_id: 0,
            partition: 0,
            body_len: 0,
            offset: -1,
            high_watermark: -1,
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0..4].copy_from_slice(&RESPONSE_MAGIC.to_le_bytes());
        b[4] = VERSION;
        b[5] = self.opcode as u8;
        b[6..8].copy_from_slice(&(self.status as u16).to_le_bytes());
        b[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        b[16..20].copy_from_slice(&self.partition.to_le_bytes());
        b[20..24].copy_from_slice(&self.body_len.to_le_bytes());
        b[24..32].copy_from_slice(&self.offset.to_le_bytes());
        b[32..40].copy_from_slice(&self.high_watermark.to_le_bytes());
        b
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError`] naming the first field that cannot be.
    pub fn decode(b: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        check_start(b, RESPONSE_MAGIC)?;
        let opcode = match b[5] {
            1 => Opcode::Fetch,
            2 => Opcode::Ping,
            3 => Opcode::Append,
            other => return Err(WireError::Opcode(other)),
        };
        let code = u16_at(b, 6);
        Ok(Self {
            opcode,
            status: Status::from_code(code).ok_or(WireError::Status(code))?,
            request_id: u64_at(b, 8),
            partition: u32_at(b, 16),
            body_len: u32_at(b, 20),
            offset: u64_at(b, 24) as i64,
            high_watermark: u64_at(b, 32) as i64,
        })
    }
}

fn check_start(b: &[u8; HEADER_LEN], expected: u32) -> Result<(), WireError> {
    let found = u32_at(b, 0);
    if found != expected {
        return Err(WireError::Magic { expected, found });
    }
    if b[4] != VERSION {
        return Err(WireError::Version(b[4]));
    }
    Ok(())
}

fn u16_at(b: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field survives the way through its bytes, with values that would show a swapped or short field.
    #[test]
    fn headers_survive_their_bytes() {
        let request = Request {
            opcode: Opcode::Fetch,
            flags: 0x1234,
            request_id: 0x0102_0304_0506_0708,
            partition: 0x1122_3344,
            max_wait_ms: 500,
            offset: -5,
            max_bytes: 1 << 20,
            min_bytes: 7,
            body_len: 9,
        };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        let response = Response { high_watermark: i64::MAX - 1, ..Response::ok(&request, 77, 0) };
        assert_eq!(Response::decode(&response.encode()), Ok(response));
    }

    /// The table in WIRE.md is a promise: the bytes of one request, written out.
    #[test]
    fn a_request_has_the_documented_bytes() {
        let b = Request::fetch(0x0b0a, 0x0908, 0x0706).encode();
        assert_eq!(&b[0..8], b"RPRQ\x01\x01\x00\x00");
        assert_eq!((b[8], b[9], b[24], b[25], b[32], b[33], b[36]), (0x0a, 0x0b, 0x08, 0x09, 0x06, 0x07, 1));
        assert!(b[40..].iter().all(|byte| *byte == 0));
    }

    /// Foreign bytes are refused by the first field that cannot be, on both sides of the limits.
    #[test]
    fn foreign_bytes_are_refused_by_name() {
        let good = Request::fetch(1, 2, FETCH_LEN_MAX).encode();
        assert!(Request::decode(&good).is_ok());
        let with = |at: usize, byte: u8| {
            let mut b = good;
            b[at] = byte;
            Request::decode(&b)
        };
        assert!(matches!(with(0, b'x'), Err(WireError::Magic { .. })));
        assert_eq!(with(4, 2), Err(WireError::Version(2)));
        assert_eq!(with(5, 0), Err(WireError::Opcode(0)));
        assert_eq!(with(5, 4), Err(WireError::Opcode(4)));
        assert_eq!(with(32, 1), Err(WireError::Length(FETCH_LEN_MAX + 1)));
        assert_eq!(Request::decode(&Request::fetch(1, 2, 0).encode()), Err(WireError::Length(0)));
        let mut b = Response::bad_request().encode();
        assert!(Response::decode(&b).is_ok());
        b[6] = 7;
        assert_eq!(Response::decode(&b), Err(WireError::Status(7)));
    }
}
