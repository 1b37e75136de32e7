//! The simulated arena by itself: what is taken, lent, held back and replaced.

use super::*;
use crate::slab::SlabWatch;

fn arena(granules: usize, bounces: usize) -> (SimArena, SlabWatch) {
    let (slab, mut arena) = (SimSlab::new(1, granules, bounces), SimArena::default());
    let watch = slab.watch();
    arena.adopt(slab);
    (arena, watch)
}

#[test]
fn memory_comes_home_with_its_last_owner_and_not_before() {
    let (mut arena, watch) = arena(4, 1);
    let mut chunk = arena.take(ByteCount::kib(128), Content::Written).expect("two of four granules");
    assert_eq!(arena.free_len(), ByteCount::kib(128));
    chunk.freeze(4096);
    let lease = chunk.lease(0..4096);
    let part = lease.slice(512..1024);
    drop((chunk, lease));
    assert_eq!((watch.taken(), arena.free_len()), (2, ByteCount::kib(128)));
    drop(part);
    assert_eq!((watch.taken(), arena.free_len()), (0, ByteCount::kib(256)));
}

#[test]
fn chunks_lie_on_their_natural_boundary_and_never_overlap() {
    let (mut arena, _watch) = arena(4, 0);
    let small = arena.take(ByteCount::kib(64), Content::Written).expect("four granules are free");
    let large = arena.take(ByteCount::kib(128), Content::Written).expect("the second pair is free");
    assert_eq!(large.region.offset, 2 * GRANULE);
    assert!(
        arena.take(ByteCount::kib(128), Content::Written).is_none(),
        "only one granule of the first pair is free"
    );
    assert_eq!(arena.take(ByteCount::kib(64), Content::Written).expect("that one").region.offset, GRANULE);
    drop(small);
    assert!(arena.take(ByteCount::kib(256), Content::Written).is_none());
}

#[test]
fn a_fresh_chunk_holds_garbage_even_where_zeros_were_before() {
    let (mut arena, _watch) = arena(1, 0);
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).expect("a free granule");
    chunk.unfrozen_mut().fill(0);
    drop(chunk);
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).expect("it came home");
    assert!(chunk.unfrozen_mut().iter().all(|byte| *byte == POISON));
}

#[test]
fn bounce_blocks_come_from_the_slab_of_the_lease_and_run_out() {
    let (mut arena, watch) = arena(1, 2);
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).expect("a free granule");
    chunk.freeze(1);
    let beside = chunk.lease(0..1);
    let first = arena.take_bounce(&beside).expect("two are free");
    let second = arena.take_bounce(&beside).expect("one is free");
    assert!(arena.take_bounce(&beside).is_none());
    assert_ne!(first.region.offset, second.region.offset);
    assert_eq!(watch.taken(), 3);
    drop((first, second, beside, chunk));
    assert_eq!(watch.taken(), 0);
}

#[test]
#[should_panic(expected = "leasing what is not frozen")]
fn what_is_not_frozen_cannot_be_leased() {
    let (mut arena, _watch) = arena(1, 0);
    let mut chunk = arena.take(CHUNK_LEN_MIN, Content::Written).expect("a free granule");
    chunk.freeze(10);
    let _lease = chunk.lease(0..11);
}
