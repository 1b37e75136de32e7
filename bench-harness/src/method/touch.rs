//! Touches free memory before a cold window. Memory that the host has not backed yet makes page-cache fills look
//! three times slower than they are, which would slander every path that uses the page cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ipc::{self, Peer};

const PAGE_LEN: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Order {
    len: u64,
}

#[derive(Serialize, Deserialize)]
struct Touched {
    len: u64,
}

/// Touches `len` bytes in a process of its own, whose end frees them; at most half of what is available.
/// Returns how many were touched.
pub(super) fn touch_free_memory(len: u64) -> Result<u64> {
    let len = len.min(available_len().unwrap_or(0) / 2);
    if len == 0 {
        return Ok(0);
    }
    let mut peer = Peer::spawn("touch", &Order { len })?;
    let touched: Touched = peer.receive(Duration::from_secs(60))?;
    peer.finish(Duration::from_secs(10))?;
    Ok(touched.len)
}

/// The body of the hidden `touch` subcommand.
///
/// # Errors
/// If the parent is gone.
pub fn main() -> Result<()> {
    let order: Order = ipc::child_start()?;
    let mut pages = Vec::new();
    // In pieces, so that a refused allocation ends the touching and not the process.
    const PIECE_LEN: usize = 16 << 20;
    while pages.len() as u64 * (PIECE_LEN as u64) < order.len {
        let mut piece: Vec<u8> = Vec::new();
        if piece.try_reserve_exact(PIECE_LEN).is_err() {
            break;
        }
        piece.resize(PIECE_LEN, 0);
        for at in (0..PIECE_LEN).step_by(PAGE_LEN) {
            piece[at] = std::hint::black_box(1);
        }
        pages.push(piece);
    }
    let len = pages.len() as u64 * PIECE_LEN as u64;
    std::hint::black_box(&pages);
    ipc::child_send(&Touched { len })
}

/// MemAvailable, in bytes.
pub(crate) fn available_len() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    /// The running kernel says how much memory is available.
    #[test]
    fn available_memory_is_known() {
        assert!(super::available_len().unwrap() > 1 << 20);
    }
}
