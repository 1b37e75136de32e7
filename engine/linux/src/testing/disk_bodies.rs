//! Test bodies: files.

use arrayvec::ArrayVec;
use rohrpost_engine_core::disk::{Errno, OpenMode};
use rohrpost_engine_core::ops::{DiskOp, Driver, Event, Read, Token, Write};
use rohrpost_engine_core::platform::{Arena, Chunk, Content, Lease};
use rohrpost_engine_core::types::{ByteCount, Position};

use super::{LinuxTypes, Options, Rig, arena, fill, open_file, pattern, patterned, patterned_file};
use crate::arena::{LinuxArena, LinuxChunk, LinuxLease};
use crate::file::LinuxFile;

fn write_of<P: LinuxTypes>(
    file: &LinuxFile,
    position: u64,
    leases: &[LinuxLease],
    bounce: Option<LinuxChunk>,
    durable: bool,
) -> Write<P> {
    let extents: ArrayVec<_, _> = leases.iter().cloned().collect();
    let len = leases.iter().map(|lease| lease.len()).sum::<usize>() + bounce.as_ref().map_or(0, Chunk::len);
    Write {
        token: Token(position),
        file: file.clone(),
        position: Position::new(position),
        extents,
        bounce,
        len: ByteCount::of_usize(len),
        durable,
    }
}

fn written<D: Driver>(rig: &mut Rig<D>, token: u64) -> Result<ByteCount, Errno>
where
    D::Platform: LinuxTypes,
{
    rig.until("write", |event| match event {
        Event::Written { token: Token(of), result } if *of == token => Some(*result),
        _ => None,
    })
}

fn read<D: Driver>(
    rig: &mut Rig<D>,
    file: &LinuxFile,
    position: u64,
    chunk: LinuxChunk,
) -> (LinuxChunk, usize)
where
    D::Platform: LinuxTypes,
{
    let len = chunk.len();
    let position = Position::new(position);
    rig.disk(DiskOp::Read(Read {
        token: Token(77),
        file: file.clone(),
        position,
        chunk,
        from: 0,
        len,
        cached: false,
    }));
    let mut back = None;
    let mut events = std::mem::take(&mut rig.events);
    while back.is_none() {
        rig.turn();
        for event in rig.events.drain(..) {
            match event {
                Event::ReadDone { token: Token(77), chunk, result } => back = Some((chunk, result)),
                other => events.push(other),
            }
        }
    }
    rig.events = events;
    let (chunk, result) = back.expect("the loop ends with it");
    (chunk, result.expect("a readable file"))
}

/// Writes of one piece, of adjacent pieces, of scattered pieces, with a bounce block, durable and not:
/// the file holds exactly the bytes, where they belong.
pub(crate) fn writes_land_where_they_belong<D: Driver>(
    make: impl Fn(Options) -> D,
    register: impl Fn(&mut D, &mut LinuxArena),
) where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (path, file) = patterned_file(dir.path(), 1 << 20, 1);
    let mut rig = Rig::new(make(Options::default()));
    let mut arena = LinuxArena::new(1);
    register(&mut rig.driver, &mut arena);
    let first = patterned(&mut arena, ByteCount::kib(64), 2);
    let second = patterned(&mut arena, ByteCount::kib(128), 3);
    let bounce_of = |arena: &mut LinuxArena, seed| {
        let mut bounce = arena.take_bounce(&first.lease(0..4096)).expect("a free bounce block");
        fill(bounce.unfrozen_mut(), seed);
        bounce.freeze(4096);
        bounce
    };
    let cases: [(&[LinuxLease], Option<u64>); 4] = [
        (&[first.lease(0..65536)], None),
        (&[first.lease(0..4096), first.lease(4096..12288)], None),
        (&[second.lease(0..131072), first.lease(8192..12288)], None),
        (&[second.lease(4096..8192)], Some(9)),
    ];
    for (index, (leases, bounce_seed)) in cases.into_iter().enumerate() {
        for durable in [false, true] {
            let position = (index as u64 * 2 + u64::from(durable)) * (131072 + 4096);
            let bounce = bounce_seed.map(|seed| bounce_of(&mut arena, seed));
            let mut expected: Vec<u8> = leases.iter().flat_map(|lease| lease.as_ref().to_vec()).collect();
            expected
                .extend(bounce_seed.into_iter().flat_map(|seed| (0..4096).map(move |at| pattern(at, seed))));
            let write = write_of(&file, position, leases, bounce, durable);
            rig.disk(DiskOp::Write(write));
            assert_eq!(written(&mut rig, position), Ok(ByteCount::of_usize(expected.len())));
            let (chunk, len) = read_range(&mut rig, &file, position, &mut arena, expected.len());
            assert!(chunk.bytes()[..len] == expected[..], "case {index}, durable {durable}");
        }
    }
    rig.disk(DiskOp::Sync { token: Token(5), file: file.clone() });
    let synced = rig.until("sync", |event| match event {
        Event::Synced { token: Token(5), result } => Some(*result),
        _ => None,
    });
    assert_eq!(synced, Ok(()));
    assert_eq!(std::fs::metadata(path).expect("the file is there").len(), 1 << 20);
}

fn read_range<D: Driver>(
    rig: &mut Rig<D>,
    file: &LinuxFile,
    position: u64,
    arena: &mut LinuxArena,
    len: usize,
) -> (LinuxChunk, usize)
where
    D::Platform: LinuxTypes,
{
    let chunk_len = ByteCount::of_usize(len.next_power_of_two().max(65536));
    let chunk = arena.take(chunk_len, Content::Read).expect("room for what is read");
    let (chunk, read_len) = read(rig, file, position, chunk);
    assert!(read_len >= len, "{read_len} of {len} bytes");
    (chunk, len)
}

/// Reads return the file's bytes and their chunk; at the end of the file they are short, behind it
/// empty. The arena gets everything back.
pub(crate) fn reads_fill_their_chunk<D: Driver>(
    make: impl Fn(Options) -> D,
    register: impl Fn(&mut D, &mut LinuxArena),
) where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let len = (256 << 10) + 1000;
    let (_, file) = patterned_file(dir.path(), len, 4);
    let mut rig = Rig::new(make(Options::default()));
    let mut arena = LinuxArena::new(1);
    register(&mut rig.driver, &mut arena);
    for (position, expected) in [(0, 65536), (65536, 65536), (256 << 10, 1000), (512 << 10, 0)] {
        let chunk = arena.take(ByteCount::kib(64), Content::Written).expect("a chunk");
        let (chunk, read_len) = read(&mut rig, &file, position, chunk);
        assert_eq!(read_len, expected);
        let wrong = (0..read_len).find(|&at| chunk.bytes()[at] != pattern(position as usize + at, 4));
        assert_eq!(wrong, None);
    }
    assert_eq!(arena.free_len(), arena.capacity());
}

/// A file that may not be written, and a misaligned direct write: the kernel's error arrives as it is,
/// and the memory of the failed write is free again.
pub(crate) fn failed_writes_say_why<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (path, file) = patterned_file(dir.path(), 8192, 6);
    let mut arena = arena();
    let mut rig = Rig::new(make(Options::default()));
    let chunk = patterned(&mut arena, ByteCount::kib(64), 6);
    let read_only = open_file(&path, OpenMode::Read);
    rig.disk(DiskOp::Write(write_of(&read_only, 0, &[chunk.lease(0..4096)], None, false)));
    assert_eq!(written(&mut rig, 0), Err(Errno(libc::EBADF)));
    rig.disk(DiskOp::Write(write_of(&file, 1, &[chunk.lease(0..4096)], None, true)));
    assert_eq!(written(&mut rig, 1), Err(Errno::INVAL));
    drop(chunk);
    assert_eq!(arena.free_len(), arena.capacity());
}

/// Many operations in one turn, more than the submission queue has room for: all are answered.
pub(crate) fn more_operations_than_the_queue_holds<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), 4 << 20, 7);
    let mut arena = arena();
    let mut rig = Rig::new(make(Options::default()));
    let chunk = patterned(&mut arena, ByteCount::mib(1), 8);
    let count = 1500;
    for token in 0..count {
        let at = (token % 256) as usize * 4096;
        let write = write_of(&file, at as u64, &[chunk.lease(at..at + 4096)], None, false);
        rig.disk(DiskOp::Write(Write { token: Token(token), ..write }));
    }
    for token in 0..count {
        assert_eq!(written(&mut rig, token), Ok(ByteCount::new(4096)));
    }
}

/// Writes one block and waits for it.
pub(crate) fn one_write<D: Driver>(rig: &mut Rig<D>, arena: &mut LinuxArena)
where
    D::Platform: LinuxTypes,
{
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), 4096, 1);
    let chunk = patterned(arena, ByteCount::kib(64), 2);
    rig.disk(DiskOp::Write(write_of(&file, 0, &[chunk.lease(0..4096)], None, true)));
    assert_eq!(written(rig, 0), Ok(ByteCount::new(4096)));
}
