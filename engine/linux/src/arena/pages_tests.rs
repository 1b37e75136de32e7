//! Lent pages: nothing of them is handed out before they are replaced, and then all of it.

use rohrpost_engine_core::platform::{Arena, CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk};
use rohrpost_engine_core::types::ByteCount;

use super::*;

/// What chunks can be taken from in the first page.
const FIRST_PAGE_LEN: u64 = (HUGE_PAGE_LEN - BOUNCE_GRANULES * GRANULE_LEN) as u64;

fn lending_arena() -> (LinuxArena, PageRound) {
    let slab = LinuxSlab::allocate(0).unwrap();
    let (mut arena, mut round) = (LinuxArena::new(1), PageRound::default());
    round.watch(&slab);
    arena.adopt(slab);
    (arena, round)
}

/// One round of the driver and the helper; how many slabs were to be registered again.
fn replace(round: &mut PageRound) -> usize {
    let mut registered = 0;
    round.take_wanted(|pages| {
        pages.replace();
    });
    round.take_backed(|_| registered += 1);
    registered
}

fn frozen(arena: &mut LinuxArena, len: ByteCount, byte: u8) -> LinuxChunk {
    let mut chunk = arena.take(len).expect("free memory");
    chunk.unfrozen_mut().fill(byte);
    chunk.freeze(len.as_usize());
    chunk
}

fn page_of(chunk: &LinuxChunk) -> usize {
    chunk.address().addr().get() / HUGE_PAGE_LEN
}

/// Takes what is free of the first page, which holds the bounce blocks and is never lent.
fn take_first_page(arena: &mut LinuxArena) -> [LinuxChunk; 3] {
    let chunks = [256, 512, 1024].map(|kib| frozen(arena, ByteCount::kib(kib), 0));
    assert!(chunks.iter().all(|chunk| page_of(chunk) == page_of(&chunks[0]) && !chunk.lease(0..1).lend()));
    chunks
}

/// The memory of a lent chunk comes back only after its page was replaced, and is fresh then.
#[test]
fn lent_pages_are_handed_out_after_their_replacement_only() {
    let (mut arena, mut round) = lending_arena();
    let _first = take_first_page(&mut arena);
    let lent = frozen(&mut arena, CHUNK_LEN_MAX, 7);
    assert!(lent.lease(0..100).lend());
    assert_eq!(arena.lent_len().as_usize(), HUGE_PAGE_LEN);
    let (page, free) = (page_of(&lent), arena.free_len());
    drop(lent);
    arena.settle();
    // With the returned half, the half that was free is held back.
    assert_eq!(arena.free_len().get(), free.get() - CHUNK_LEN_MAX.get());
    assert_eq!((arena.replacing_len().as_usize(), arena.lent_len()), (HUGE_PAGE_LEN, ByteCount::ZERO));
    let rest: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN)).collect();
    assert!(rest.iter().all(|chunk| page_of(chunk) != page), "a lent page was handed out");
    assert_eq!(replace(&mut round), 1);
    let fresh: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MAX)).collect();
    assert_eq!(fresh.len(), 2);
    assert!(fresh.iter().all(|chunk| page_of(chunk) == page && chunk.bytes().iter().all(|&byte| byte == 0)));
    assert!(fresh.iter().all(|chunk| chunk.bytes().len() == CHUNK_LEN_MAX.as_usize()));
    assert_eq!((arena.replacing_len(), arena.lent_len()), (ByteCount::ZERO, ByteCount::ZERO));
    drop((fresh, rest));
    assert_eq!(replace(&mut round), 0, "a replaced page is lent no more");
}

/// As long as anybody owns part of a lent page, it is not replaced; nor is what was free of it used.
#[test]
fn a_lent_page_waits_for_its_last_owner() {
    let (mut arena, mut round) = lending_arena();
    let _first = take_first_page(&mut arena);
    let len = ByteCount::kib(512);
    let (a, b) = (frozen(&mut arena, len, 1), frozen(&mut arena, len, 2));
    let lease = b.lease(0..1000);
    assert_eq!(page_of(&a), page_of(&b));
    assert!(a.lease(0..1).lend());
    drop((a, b));
    arena.settle();
    assert_eq!(replace(&mut round), 0);
    assert_eq!(arena.replacing_len(), ByteCount::ZERO);
    assert!(lease.as_ref().iter().all(|&byte| byte == 2));
    let others: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN)).collect();
    let page = lease.address().addr().get() / HUGE_PAGE_LEN;
    assert!(others.iter().all(|chunk| page_of(chunk) != page));
    drop(lease);
    arena.settle();
    assert_eq!(replace(&mut round), 1);
    arena.settle();
    assert_eq!(arena.free_len().as_usize(), HUGE_PAGE_LEN);
    drop(others);
    assert_eq!(arena.free_len().get(), arena.capacity().get() - FIRST_PAGE_LEN);
}

/// Short runs are copied: their page would wait too long for all of them.
#[test]
fn short_runs_are_not_lent() {
    let (mut arena, _round) = lending_arena();
    let _first = take_first_page(&mut arena);
    assert!(!frozen(&mut arena, CHUNK_LEN_MIN, 1).lease(0..1).lend());
    assert!(frozen(&mut arena, ByteCount::kib(256), 1).lease(0..1).lend());
}

/// Random lives against the accounts: memory is free, held or owned, and everything comes home.
#[test]
fn nothing_is_lost_on_the_round() {
    let (mut arena, mut round) = lending_arena();
    let mut random = fastrand::Rng::with_seed(11);
    let mut owned = Vec::new();
    for turn in 0..20_000 {
        if random.u8(..100) < 55 {
            let len = ByteCount::new(CHUNK_LEN_MIN.get() << random.u32(..5));
            if let Some(mut chunk) = arena.take(len) {
                chunk.unfrozen_mut()[0] = turn as u8;
                chunk.freeze(1);
                if random.bool() {
                    chunk.lease(0..1).lend();
                }
                owned.push((chunk, turn as u8));
            }
        } else if !owned.is_empty() {
            let (chunk, byte) = owned.swap_remove(random.usize(..owned.len()));
            assert_eq!(chunk.bytes()[0], byte);
        }
        if random.u8(..10) == 0 {
            arena.settle();
            replace(&mut round);
        }
        let taken: usize = owned.iter().map(|(chunk, _)| chunk.len()).sum();
        assert!(taken + arena.free_len().as_usize() <= arena.capacity().as_usize());
    }
    owned.clear();
    for _ in 0..2 {
        arena.settle();
        replace(&mut round);
    }
    arena.settle();
    assert_eq!(arena.free_len(), arena.capacity());
    assert_eq!((arena.replacing_len(), arena.lent_len()), (ByteCount::ZERO, ByteCount::ZERO));
}
