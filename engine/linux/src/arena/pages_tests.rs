//! Lent pages: nothing of them is handed out before they are replaced, and then all of it.

use rohrpost_engine_core::platform::{Arena, CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk, Content, Lease};
use rohrpost_engine_core::types::ByteCount;

use super::*;

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
    let mut chunk = arena.take(len, Content::Written).expect("free memory");
    chunk.unfrozen_mut().fill(byte);
    chunk.freeze(len.as_usize());
    chunk
}

fn page_of(chunk: &LinuxChunk) -> usize {
    chunk.address().addr().get() / HUGE_PAGE_LEN
}

fn pages(count: usize) -> ByteCount {
    ByteCount::of_usize(count * HUGE_PAGE_LEN)
}

/// The memory of a lent chunk comes back only after its page was replaced, and is fresh then.
#[test]
fn lent_pages_are_handed_out_after_their_replacement_only() {
    let (mut arena, mut round) = lending_arena();
    let lent = frozen(&mut arena, CHUNK_LEN_MAX, 7);
    assert!(lent.lease(0..100).lend());
    assert_eq!((arena.lent_len(), arena.coming_len()), (pages(1), pages(30)));
    let (page, free) = (page_of(&lent), arena.free_len());
    drop(lent);
    arena.settle();
    // With the returned half, the half that was free is held back.
    assert_eq!(arena.free_len().get(), free.get() - CHUNK_LEN_MAX.get());
    assert_eq!((arena.lent_len(), arena.coming_len()), (ByteCount::ZERO, pages(31)));
    let rest: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN, Content::Written)).collect();
    assert!(rest.iter().all(|chunk| page_of(chunk) != page), "a lent page was handed out");
    assert_eq!(replace(&mut round), 1);
    let fresh: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MAX, Content::Read)).collect();
    assert_eq!(fresh.len(), 2);
    assert!(fresh.iter().all(|chunk| page_of(chunk) == page && chunk.bytes().iter().all(|&byte| byte == 0)));
    assert!(fresh.iter().all(|chunk| chunk.bytes().len() == CHUNK_LEN_MAX.as_usize()));
    assert_eq!((arena.lent_len(), arena.coming_len()), (ByteCount::ZERO, ByteCount::ZERO));
    drop((fresh, rest));
    assert_eq!(replace(&mut round), 0, "a replaced page is lent no more");
}

/// As long as anybody owns part of a lent page, it is not replaced; nor is what was free of it used.
#[test]
fn a_lent_page_waits_for_its_last_owner() {
    let (mut arena, mut round) = lending_arena();
    let len = ByteCount::kib(512);
    let (a, b) = (frozen(&mut arena, len, 1), frozen(&mut arena, len, 2));
    let lease = b.lease(0..1000);
    assert_eq!(page_of(&a), page_of(&b));
    assert!(a.lease(0..1).lend());
    assert!(!lease.holds_up());
    drop((a, b));
    arena.settle();
    assert!(lease.holds_up());
    assert_eq!(replace(&mut round), 0);
    assert_eq!(arena.coming_len(), pages(30));
    assert!(lease.as_ref().iter().all(|&byte| byte == 2));
    let others: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN, Content::Written)).collect();
    let page = lease.address().addr().get() / HUGE_PAGE_LEN;
    assert!(others.iter().all(|chunk| page_of(chunk) != page));
    drop(lease);
    arena.settle();
    assert_eq!(replace(&mut round), 1);
    arena.settle();
    assert_eq!(arena.free_len(), pages(1));
    drop(others);
    assert_eq!(arena.free_len(), arena.capacity());
}

/// Short runs are copied, and so is what shares a page with one: the page would wait too long for all of them.
#[test]
fn pages_with_short_runs_are_not_lent() {
    let (mut arena, _round) = lending_arena();
    let short = frozen(&mut arena, ByteCount::kib(128), 1);
    assert!(!short.lease(0..1).lend());
    let long = frozen(&mut arena, ByteCount::kib(256), 1);
    assert!(page_of(&short) != page_of(&long) && long.lease(0..1).lend());
    let mut rest: Vec<_> = std::iter::from_fn(|| arena.take(ByteCount::kib(512), Content::Read)).collect();
    let last = rest.pop().expect("there was memory");
    let page = page_of(&last);
    drop(last);
    let among: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN, Content::Read)).collect();
    assert!(among.iter().any(|chunk| page_of(chunk) == page));
    let mut beside = rest.pop().expect("there was memory");
    assert_eq!(page_of(&beside), page);
    beside.freeze(1);
    assert!(!beside.lease(0..1).lend());
}

/// What is written and what is read fill pages of their own, front to back, as long as there are free ones; then
/// what is left.
#[test]
fn pages_are_of_one_kind() {
    let (mut arena, _round) = lending_arena();
    let len = ByteCount::kib(256);
    let mut chunks = Vec::new();
    for at in 0..40 {
        let content = if at % 3 == 0 { Content::Read } else { Content::Written };
        chunks.push((arena.take(len, content).expect("free memory"), content));
    }
    for (chunk, content) in &chunks {
        let mut others = chunks.iter().filter(|(other, _)| page_of(other) == page_of(chunk));
        assert!(others.all(|(_, other)| other == content));
    }
    let of = |content| chunks.iter().filter(move |(_, of)| *of == content).map(|(chunk, _)| page_of(chunk));
    assert!(of(Content::Read).is_sorted() && of(Content::Written).is_sorted());
    let rest: Vec<_> = std::iter::from_fn(|| arena.take(len, Content::Read)).collect();
    assert_eq!(rest.len() + chunks.len(), 7 + 31 * 8, "nothing is left unused");
}

/// When too much has come back that cannot be replaced, nothing more is lent until it can.
#[test]
fn lending_pauses_while_much_is_held_up() {
    let (mut arena, mut round) = lending_arena();
    let mut chunks: Vec<_> = (0..62).map(|_| frozen(&mut arena, CHUNK_LEN_MAX, 1)).collect();
    assert!(chunks.iter().step_by(2).take(10).all(|chunk| chunk.lease(0..1).lend()));
    let mut stuck = 0;
    for _ in 0..10 {
        chunks.remove(stuck + 1);
        arena.settle();
        stuck += 1;
        assert_eq!(arena.lends(), stuck * 8 <= 63, "{stuck} MiB");
    }
    assert!(!chunks[50].lease(0..1).lend());
    chunks.drain(..10);
    arena.settle();
    assert!(arena.lends());
    assert_eq!(replace(&mut round), 1);
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
            if let Some(mut chunk) = arena.take(len, Content::Written) {
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
    assert_eq!((arena.coming_len(), arena.lent_len()), (pages(31), ByteCount::ZERO));
}
