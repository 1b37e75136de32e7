//! The arena against a model: nobody sees foreign bytes, and everything comes home.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;

use rohrpost_engine_core::platform::{
    Arena, CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk, Content, DIRECT_IO_ALIGN, Lease,
};
use rohrpost_engine_core::types::ByteCount;

use super::slab::BOUNCES;
use super::*;

const KIB_64: usize = CHUNK_LEN_MIN.as_usize();

#[test]
fn chunks_are_aligned_and_of_the_length_asked_for() {
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    assert_eq!(arena.capacity(), SLAB_CAPACITY);
    let mut len = CHUNK_LEN_MIN.get();
    while len <= CHUNK_LEN_MAX.get() {
        let chunk = arena.take(ByteCount::new(len), Content::Written).unwrap();
        assert_eq!(chunk.len() as u64, len);
        assert_eq!(chunk.address().addr().get() as u64 % DIRECT_IO_ALIGN, 0);
        assert_eq!(arena.free_len().get(), SLAB_CAPACITY.get() - len);
        drop(chunk);
        assert_eq!(arena.free_len(), SLAB_CAPACITY);
        len *= 2;
    }
}

/// A slab gives exactly its capacity, then nothing, and everything again after the return.
#[test]
fn a_slab_is_exhausted_and_recovers() {
    let mut arena = LinuxArena::with_slabs(2).unwrap();
    for _ in 0..3 {
        let chunks: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN, Content::Written)).collect();
        assert_eq!(chunks.len() * KIB_64, arena.capacity().as_usize());
        assert_eq!(arena.free_len(), ByteCount::ZERO);
        assert!(arena.take(CHUNK_LEN_MIN, Content::Written).is_none());
        drop(chunks);
        assert_eq!(arena.free_len(), arena.capacity());
        let chunks: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MAX, Content::Written)).collect();
        assert_eq!(chunks.len(), 2 * 63, "small runs were not merged");
    }
}

/// The memory lives as long as its last lease: beyond the chunk, and beyond the arena.
#[test]
fn leases_outlive_chunk_and_arena() {
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).unwrap();
    chunk.unfrozen_mut()[..10].copy_from_slice(b"0123456789");
    chunk.freeze(10);
    let lease = chunk.lease(2..8);
    let part = lease.slice(1..3);
    chunk.unfrozen_mut().fill(b'x');
    drop(chunk);
    drop(lease);
    assert_eq!(arena.free_len().as_usize(), arena.capacity().as_usize() - KIB_64);
    let taken: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN, Content::Written)).collect();
    drop(taken);
    drop(arena);
    assert_eq!(part.as_ref(), b"34");
    assert_eq!(thread::spawn(move || part.as_ref().to_vec()).join().unwrap(), b"34");
}

#[test]
fn bounce_blocks_come_from_the_lease_slab() {
    let mut arena = LinuxArena::with_slabs(2).unwrap();
    let mut chunks: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MAX, Content::Written)).collect();
    let mut chunk = chunks.pop().unwrap();
    chunk.freeze(1);
    let lease = chunk.lease(0..1);
    for _ in 0..2 {
        let bounces: Vec<_> = std::iter::from_fn(|| arena.take_bounce(&lease)).collect();
        assert_eq!(bounces.len(), BOUNCES);
        for bounce in &bounces {
            assert_eq!(bounce.slab_index(), lease.slab_index());
            assert_eq!(bounce.len() as u64, DIRECT_IO_ALIGN);
        }
        let mut addresses: Vec<_> = bounces.iter().map(|bounce| bounce.address().addr()).collect();
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[1].get() - pair[0].get() >= 4096));
    }
    drop(chunks);
    let free = arena.capacity().get() - CHUNK_LEN_MAX.get();
    assert_eq!(arena.free_len().get(), free, "bounce blocks do not count");
}

#[test]
#[should_panic(expected = "is frozen only up to")]
fn unfrozen_bytes_are_not_leased() {
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).unwrap();
    chunk.freeze(100);
    let _ = chunk.lease(0..101);
}

#[test]
#[should_panic(expected = "cannot move back")]
fn frozen_bytes_stay_frozen() {
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).unwrap();
    chunk.freeze(100);
    chunk.freeze(99);
}

#[test]
#[should_panic(expected = "of a lease of")]
fn leases_are_not_extended() {
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).unwrap();
    chunk.freeze(100);
    let _ = chunk.lease(0..50).slice(0..51);
}

#[test]
#[should_panic(expected = "another arena")]
fn bounces_of_foreign_leases_are_refused() {
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    let mut other = LinuxArena::with_slabs(1).unwrap();
    let chunk = other.take(CHUNK_LEN_MIN, Content::Written).unwrap();
    let _ = arena.take_bounce(&chunk.lease(0..0));
}

/// What a holder in the model knows about its memory.
struct Held {
    chunk: Option<LinuxChunk>,
    leases: Vec<(LinuxLease, u8)>,
}

impl Held {
    fn check(&self) {
        for (lease, byte) in &self.leases {
            assert!(lease.as_ref().iter().all(|b| b == byte), "a lease sees foreign bytes");
        }
    }
}

/// One owner takes, fills, freezes, leases; three threads hold, check and drop in their own order.
/// A byte pattern per frozen part shows any overlap or early reuse.
#[test]
fn many_threads_return_everything_untouched() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut arena = LinuxArena::with_slabs(1).unwrap();
    let workers: Vec<_> = (0..3).map(holder).collect();
    let mut pattern = 0u8;
    for _ in 0..6_000 {
        let len = ByteCount::new(CHUNK_LEN_MIN.get() << random.u32(..5));
        let Some(mut chunk) = arena.take(len, Content::Written) else {
            thread::yield_now();
            continue;
        };
        let mut leases = Vec::new();
        for _ in 0..random.usize(..4) {
            pattern = pattern.wrapping_add(1);
            let from = chunk.frozen();
            let end = chunk.len().min(from + random.usize(1..8192));
            chunk.unfrozen_mut()[..end - from].fill(pattern);
            chunk.freeze(end);
            let lease = chunk.lease(from..end);
            leases.push((lease.slice(0..lease.len() / 2), pattern));
            leases.push((lease, pattern));
        }
        let keep = random.bool().then_some(chunk);
        workers[random.usize(..3)].0.send(Held { chunk: keep, leases }).unwrap();
    }
    for (sender, worker) in workers {
        drop(sender);
        worker.join().unwrap();
    }
    assert_eq!(arena.free_len(), arena.capacity());
    let chunks: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MAX, Content::Written)).collect();
    assert_eq!(chunks.len(), 63);
}

/// Holds up to 40 things, checks them, and scribbles over the writable rest of their chunks.
fn holder(seed: u64) -> (mpsc::Sender<Held>, thread::JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel::<Held>();
    let worker = thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut held = VecDeque::new();
        for mut new in receiver {
            if let Some(chunk) = &mut new.chunk {
                let end = chunk.unfrozen_mut().len().min(4096);
                chunk.unfrozen_mut()[..end].fill(0xEE);
            }
            held.push_back(new);
            while held.len() > 40 {
                let at = random.usize(..held.len());
                held[at].check();
                held.swap_remove_back(at);
            }
        }
        held.iter().for_each(Held::check);
    });
    (sender, worker)
}
