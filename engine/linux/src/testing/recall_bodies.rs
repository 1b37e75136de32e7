//! Test bodies: sends whose memory is taken back while their peer does not read.

use rohrpost_engine_core::ops::{Driver, Event, NetOp, SendPart};
use rohrpost_engine_core::platform::Chunk;
use rohrpost_engine_core::types::ByteCount;

use super::{LinuxTypes, Options, Rig, arena, expect_pattern, patterned, send_of};

const LEN: usize = 1 << 20;

/// A send that waits for its peer is taken back. What it says has left is all that the peer has got when it reads again,
/// and the connection goes on from there.
pub(crate) fn a_recalled_send_was_not_sent<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening_with_small_buffers();
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::of_usize(LEN), 5);
    let (mut client, id) = rig.connect(address);
    let mut taken = 0;
    // Until the socket is full.
    loop {
        rig.net(NetOp::Send(send_of(id, [SendPart::Lease(body.lease(taken..LEN))])));
        (0..5).for_each(|_| rig.turn());
        let sent = rig.events.iter().position(|event| matches!(event, Event::Sent { .. }));
        let Some(at) = sent else { break };
        let Event::Sent { result, .. } = rig.events.remove(at) else { continue };
        taken += result.expect("the peer is there");
    }
    assert!(taken < LEN, "a peer that reads nothing takes everything");
    rig.net(NetOp::Recall(id));
    taken += rig.sent(id).expect("the peer is there");
    let reader = std::thread::spawn(move || expect_pattern(&mut client, LEN, 5));
    rig.until("room", |event| matches!(event, Event::Writable(conn) if *conn == id).then_some(()));
    if taken < LEN {
        rig.send_all(id, &body.lease(taken..LEN));
    }
    rig.close(id);
    reader.join().expect("the reader got every byte once, in order");
}
