//! Pipes and sends without a copy, on the ring.

use std::time::Duration;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{DiskOp, Event, Fill, NetOp, SendHow, SendPart, Token};
use rohrpost_engine_core::platform::{Arena, CHUNK_LEN_MIN, Chunk, Content, Lease};
use rohrpost_engine_core::types::{ByteCount, Position};

use super::tests::{available, driver, under_every_mask};
use super::{Feature, FeatureMask, UringDriver};
use crate::testing::{
    Options, Rig, expect_pattern, limit_bodies, patterned, patterned_file, pipe_bodies, send_of, skip,
};

/// Under masks that matter to pipes: a kernel of 6.1 and everything there is.
fn with_and_without_what_is_new(body: impl Fn(&dyn Fn(Options) -> UringDriver)) {
    if !available() {
        return;
    }
    for mask in [FeatureMask::NONE, FeatureMask::KERNEL_6_1] {
        body(&|options| driver(mask, options));
    }
}

#[test]
fn ranges_arrive_whole() {
    with_and_without_what_is_new(|make| pipe_bodies::ranges_arrive_whole(make));
}

#[test]
fn pipe_and_memory_keep_their_order() {
    with_and_without_what_is_new(|make| pipe_bodies::pipe_and_memory_keep_their_order(make));
}

#[test]
fn a_reset_leaves_nothing_for_the_next() {
    with_and_without_what_is_new(|make| pipe_bodies::a_reset_leaves_nothing_for_the_next(make));
}

#[test]
fn closed_while_filling() {
    with_and_without_what_is_new(|make| pipe_bodies::closed_while_filling(make));
}

#[test]
fn pipes_are_bounded() {
    with_and_without_what_is_new(|make| pipe_bodies::pipes_are_bounded(make));
}

#[test]
fn refused_fills_say_why() {
    with_and_without_what_is_new(|make| pipe_bodies::refused_fills_say_why(make));
}

#[test]
fn dropped_with_full_pipes() {
    with_and_without_what_is_new(|make| pipe_bodies::dropped_with_full_pipes(make));
}

#[test]
fn cached_reads_bring_the_same_bytes() {
    under_every_mask(|make| pipe_bodies::cached_reads_bring_the_same_bytes(make));
}

#[test]
fn no_descriptor_for_a_pipe() {
    if limit_bodies::in_child("uring::transfer_tests::no_descriptor_for_a_pipe") && available() {
        pipe_bodies::no_descriptor_for_a_pipe(|options| driver(FeatureMask::NONE, options));
    }
}

/// Without the kernel's splice a fill is refused by name, and the report says why.
#[test]
fn a_masked_splice_is_refused_by_name() {
    if !available() {
        return;
    }
    let mask = FeatureMask::NONE.forbid(Feature::Splice);
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), 8192, 1);
    let (options, address) = Options::listening();
    let mut rig = Rig::new(driver(mask, options));
    let (_client, conn) = rig.connect(address);
    let fill = Fill { token: Token(1), conn, file, position: Position::ZERO, len: 4096, cached: false };
    rig.disk(DiskOp::Fill(fill));
    let refused = rig.until("fill", |event| match event {
        Event::Filled { result, .. } => Some(*result),
        _ => None,
    });
    assert_eq!(refused, Err(Errno::OPNOTSUPP));
    let reported = rig.driver.missing().iter().find(|missing| missing.feature == Feature::Splice);
    assert!(reported.is_some_and(|missing| missing.to_string().contains("direct_send")));
}

/// Whether the kernel sends without a copy here; says so when not.
fn zero_copy_available(rig: &Rig<UringDriver>) -> bool {
    let missing = rig.driver.missing().iter().find(|missing| missing.feature == Feature::SendmsgZc);
    if let Some(missing) = missing {
        skip(missing);
    }
    missing.is_none()
}

/// Header and log bytes in one send, over as many partial sends as a peer with the smallest buffers takes: every byte
/// arrives, in order; the driver counts, and says that a loopback device copies.
#[test]
fn sends_in_place_lose_nothing() {
    under_every_mask(|make| {
        let (options, address) = Options::listening_with_small_buffers();
        let mut rig = Rig::new(make(options));
        let mut arena = crate::testing::arena();
        let body = patterned(&mut arena, ByteCount::mib(1), 7);
        let (mut client, id) = rig.connect(address);
        let reader = std::thread::spawn(move || {
            use std::io::Read as _;
            let mut header = [0; 6];
            client.read_exact(&mut header).expect("the header arrives");
            assert_eq!(&header, b"header");
            expect_pattern(&mut client, 1 << 20, 7);
        });
        let (first, second) = (body.lease(0..300_001), body.lease(300_001..1 << 20));
        let header = SendPart::Bytes(b"..header".to_vec());
        let mut send = send_of(id, [header, SendPart::Lease(first), SendPart::Lease(second)]);
        (send.skip, send.how) = (2, SendHow::ZeroCopy);
        let mut left = 6 + (1 << 20);
        while left > 0 {
            rig.net(NetOp::Send(send));
            let (taken, back) = rig.until("sent", |event| match event {
                Event::Sent { result, send } => {
                    let empty = send_of(send.conn, []);
                    Some((result.expect("the peer reads"), std::mem::replace(send, empty)))
                }
                _ => None,
            });
            assert!(taken > 0 && taken <= left);
            left -= taken;
            send = rest_of(back, taken);
        }
        reader.join().expect("the reader got header and pattern");
        rig.close(id);
        drop((send, body));
        until_free(&mut rig, &arena);
        let counters = rig.driver.counters();
        let used = rig.driver.features().has(Feature::SendmsgZc);
        assert_eq!(counters.zero_copy_count > 0, used);
        let reported = rig.driver.features().has(Feature::ZcReport);
        assert_eq!(counters.zero_copy_copied_count > 0, reported, "loopback copies, and the kernel says so");
    });
}

/// What is left of a send, as the shard would ask for it.
fn rest_of(
    mut send: rohrpost_engine_core::ops::Send<super::UringPlatform>,
    taken: usize,
) -> rohrpost_engine_core::ops::Send<super::UringPlatform> {
    let mut gone = send.skip + taken;
    let parts = send.parts.drain(..).filter_map(|part| {
        let len = part.as_ref().len();
        let (skip, here) = (gone.min(len), gone);
        gone -= skip;
        match part {
            _ if here >= len => None,
            SendPart::Lease(lease) => Some(SendPart::Lease(lease.slice(skip..len))),
            SendPart::Bytes(bytes) => Some(SendPart::Bytes(bytes[skip..].to_vec())),
        }
    });
    let parts = Box::new(parts.collect());
    (send.parts, send.skip) = (parts, 0);
    send
}

fn until_free(rig: &mut Rig<UringDriver>, arena: &crate::arena::LinuxArena) {
    for _ in 0..1000 {
        if arena.free_len() == arena.capacity() {
            return;
        }
        rig.turn();
    }
    panic!("{} of {} bytes are free", arena.free_len(), arena.capacity());
}

fn overwrite_what_is_free(arena: &mut crate::arena::LinuxArena) {
    let free: Vec<_> = std::iter::from_fn(|| arena.take(CHUNK_LEN_MIN, Content::Written)).collect();
    for mut chunk in free {
        chunk.unfrozen_mut().fill(0xee);
    }
}

/// A peer that reads nothing: the operation comes back at once, its memory stays taken while the kernel reads it,
/// the connection can be closed, its slot serves the next one, and that one gets none of the old bytes; whoever gets memory
/// meanwhile gets none that is still to be read.
#[test]
fn memory_stays_taken_while_the_kernel_reads_it() {
    if !available() {
        return;
    }
    let (options, address) = Options::listening_with_small_buffers();
    let mut rig = Rig::new(driver(FeatureMask::NONE, options));
    if !zero_copy_available(&rig) {
        return;
    }
    let mut arena = crate::testing::arena();
    for round in 0..20 {
        let body = patterned(&mut arena, ByteCount::mib(1), round);
        let (client, id) = rig.connect(address);
        let mut taken = 0;
        // Until the socket is full.
        loop {
            let mut send = send_of(id, [SendPart::Lease(body.lease(taken..1 << 20))]);
            send.how = SendHow::ZeroCopy;
            rig.net(NetOp::Send(send));
            (0..3).for_each(|_| rig.turn());
            let sent = rig.events.iter().position(|event| matches!(event, Event::Sent { .. }));
            let Some(at) = sent else { break };
            let Event::Sent { result, .. } = rig.events.remove(at) else { continue };
            taken += result.expect("the peer is there");
        }
        rig.events.clear();
        drop(body);
        assert!(arena.free_len() < arena.capacity(), "the kernel still reads the stuck send");
        match round % 2 {
            // The peer resets.
            0 => {
                rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("linger");
                drop(client);
                let ended = rig.sent(id);
                assert!(matches!(ended, Err(Errno::CONNRESET | Errno::PIPE)), "{ended:?}");
                rig.close(id);
            }
            // The shard gives up on a peer that still does not read; what has left reaches it all the same.
            _ => {
                rig.net(NetOp::Close(id));
                match rig.sent(id) {
                    // The socket had room for some after all.
                    Ok(more) => taken += more,
                    Err(errno) => assert_eq!(errno, Errno::CANCELED),
                }
                rig.until("close", |event| matches!(event, Event::Closed(_)).then_some(()));
                overwrite_what_is_free(&mut arena);
                let mut client = client;
                expect_pattern(&mut client, taken, round);
            }
        }
        rig.events.clear();
        until_free(&mut rig, &arena);
        let next = patterned(&mut arena, ByteCount::kib(64), round + 100);
        let (mut client, id) = rig.connect(address);
        let reader = std::thread::spawn(move || expect_pattern(&mut client, 65_536, round + 100));
        rig.send_all(id, &next.lease(0..65_536));
        reader.join().expect("the reader got its own bytes");
        rig.close(id);
        rig.events.clear();
    }
}
