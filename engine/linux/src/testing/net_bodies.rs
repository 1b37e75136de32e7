//! Test bodies: connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::ops::{ConnId, Driver, Event, NetOp, SendFile, SendPart};
use rohrpost_engine_core::platform::{Arena, Chunk};
use rohrpost_engine_core::types::{ByteCount, Position};

use super::{
    LinuxTypes, Options, Rig, arena, expect_pattern, fill, pattern, patterned, patterned_file, send_of,
};

/// Requests arrive as sent, answers leave as asked: header and log bytes in one send, the bytes already
/// sent left out, the header's memory given back. The peer's end of stream arrives once, then `Closed`.
pub(crate) fn requests_and_answers<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::kib(64), 1);
    let (mut client, id) = rig.connect(address);
    rig.net(NetOp::Receive(id));
    for round in 0..3 {
        client.write_all(b"fetch, please").expect("the server reads");
        let mut request = rig.received(id);
        while request.len() < 13 {
            request.extend(rig.received(id));
        }
        assert_eq!(request, b"fetch, please", "round {round}");
        let header = SendPart::Bytes(b"..header".to_vec());
        let mut send = send_of(id, [header, SendPart::Lease(body.lease(100..5000))]);
        send.skip = 2;
        send.more = true;
        rig.net(NetOp::Send(send));
        let released = rig.until("sent", |event| match event {
            Event::Sent { result, send } if send.conn == id => {
                assert_eq!(*result, Ok(6 + 4900));
                Some(std::mem::take(&mut send.parts))
            }
            _ => None,
        });
        assert!(matches!(&released[0], SendPart::Bytes(bytes) if bytes == b"..header"));
        let tail = send_of(id, [SendPart::Bytes(vec![b'!'])]);
        rig.net(NetOp::Send(tail));
        assert_eq!(rig.sent(id), Ok(1));
        let mut answer = vec![0; 6 + 4900 + 1];
        client.read_exact(&mut answer).expect("the answer arrives");
        assert_eq!(&answer[..6], b"header");
        assert!(answer[6..4906].iter().enumerate().all(|(at, byte)| *byte == pattern(at + 100, 1)));
        assert_eq!(answer[4906], b'!');
    }
    client.shutdown(Shutdown::Write).expect("the client may end its side");
    assert_eq!(rig.received(id), b"");
    rig.close(id);
    assert_eq!(client.read(&mut [0; 8]).expect("an orderly end"), 0);
}

/// A peer that reads slowly, behind a send buffer of the smallest size: sends are partial, each says
/// how much was taken, and the peer gets every byte in order.
pub(crate) fn partial_sends_lose_nothing<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening_with_small_buffers();
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::mib(1), 2);
    let (mut client, id) = rig.connect(address);
    let reader = std::thread::spawn(move || expect_pattern(&mut client, 1 << 20, 2));
    rig.send_all(id, &body.lease(0..1 << 20));
    reader.join().expect("the reader got the pattern");
    rig.close(id);
}

/// Waits, turn by turn, until a send that the peer does not read is stuck in the driver.
fn stick<D: Driver>(
    rig: &mut Rig<D>,
    id: ConnId,
    lease: &<D::Platform as rohrpost_engine_core::platform::Platform>::Lease,
) where
    D::Platform: LinuxTypes,
{
    for _ in 0..1000 {
        rig.net(NetOp::Send(send_of(id, [SendPart::Lease(lease.clone())])));
        let mut quiet = 0;
        while quiet < 5 {
            rig.turn();
            let sent = rig.events.iter().position(|event| matches!(event, Event::Sent { .. }));
            match sent {
                Some(at) => {
                    rig.events.remove(at);
                    break;
                }
                None => quiet += 1,
            }
        }
        if quiet == 5 {
            return;
        }
    }
    panic!("a peer that reads nothing takes everything");
}

/// The peer resets while a send is stuck: the send ends with an error and its memory comes back,
/// receiving ends, and only then is the connection closed. Nothing names the memory any more.
pub(crate) fn reset_in_the_middle_of_a_send<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::mib(1), 3);
    let (client, id) = rig.connect(address);
    rig.net(NetOp::Receive(id));
    stick(&mut rig, id, &body.lease(0..1 << 20));
    drop(body);
    assert!(arena.free_len() < arena.capacity(), "the kernel still reads the stuck send");
    rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).expect("linger");
    drop(client);
    let released = rig.until("failed send", |event| match event {
        Event::Sent { result, send } => {
            assert!(matches!(*result, Err(Errno::CONNRESET | Errno::PIPE)), "{result:?}");
            Some(std::mem::take(&mut send.parts))
        }
        _ => None,
    });
    drop(released);
    rig.close(id);
    rig.events.clear();
    assert_eq!(arena.free_len(), arena.capacity());
}

/// The shard closes while a send is stuck: the send ends first, `Closed` comes last, and what comes
/// later for this connection is refused or ignored.
pub(crate) fn close_in_the_middle_of_a_send<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::mib(1), 4);
    let (_client, id) = rig.connect(address);
    rig.net(NetOp::Receive(id));
    stick(&mut rig, id, &body.lease(0..1 << 20));
    drop(body);
    rig.net(NetOp::Close(id));
    while !rig.events.iter().any(|event| matches!(event, Event::Closed(_))) {
        rig.turn();
    }
    assert_eq!(rig.kinds(), ["sent", "closed"]);
    rig.events.clear();
    assert_eq!(arena.free_len(), arena.capacity());
    rig.net(NetOp::Receive(id));
    rig.net(NetOp::Pause(id));
    rig.net(NetOp::Close(id));
    rig.net(NetOp::Send(send_of(id, [SendPart::Bytes(vec![0])])));
    assert_eq!(rig.sent(id), Err(Errno::CONNRESET));
    assert!(rig.events.is_empty());
}

/// Pausing stops the flow, receiving again resumes it, and no byte is lost, doubled or swapped.
pub(crate) fn pause_and_resume<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    const LEN: usize = 64 << 10;
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let (mut client, id) = rig.connect(address);
    let writer = std::thread::spawn(move || {
        let mut bytes = vec![0; LEN];
        fill(&mut bytes, 5);
        client.write_all(&bytes).expect("the server reads in the end");
        client
    });
    let mut received = Vec::new();
    let mut rounds = 0;
    while received.len() < LEN {
        rig.net(NetOp::Receive(id));
        received.extend(rig.received(id));
        rig.net(NetOp::Pause(id));
        if rounds % 2 == 0 {
            // Half the rounds resume before the pause has taken effect.
            (0..3).for_each(|_| rig.turn());
            take_received(&mut rig, &mut received);
            (0..2).for_each(|_| rig.turn());
            assert!(rig.events.is_empty(), "nothing arrives while paused");
        }
        rounds += 1;
    }
    take_received(&mut rig, &mut received);
    let wrong = (0..LEN).find(|&at| received[at] != pattern(at, 5));
    assert_eq!((received.len(), wrong), (LEN, None));
    drop(writer.join().expect("the writer wrote"));
    rig.close(id);
}

fn take_received<D: Driver>(rig: &mut Rig<D>, into: &mut Vec<u8>)
where
    D::Platform: LinuxTypes,
{
    for event in rig.events.drain(..) {
        if let Event::Received { bytes, .. } = event {
            into.extend_from_slice(bytes.expect("receiving works").as_ref());
        }
    }
}

/// The shard keeps every receive buffer: receiving stops. It drops them: receiving goes on, on every
/// connection, with nothing lost.
pub(crate) fn no_receive_buffer_left<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    const LEN: usize = 10_000;
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(Options { recv_buf_count: 4, recv_buf_len: 1024, ..options }));
    let mut clients: Vec<_> = (0..3).map(|_| rig.connect(address)).collect();
    for (index, (client, id)) in clients.iter_mut().enumerate() {
        let mut bytes = vec![0; LEN];
        fill(&mut bytes, index as u64);
        client.write_all(&bytes).expect("it fits into the socket's buffers");
        rig.net(NetOp::Receive(*id));
    }
    let mut received = vec![Vec::new(); clients.len()];
    let mut kept = Vec::new();
    let total = |received: &[Vec<u8>]| received.iter().map(Vec::len).sum::<usize>();
    let mut idle = 0;
    while total(&received) < clients.len() * LEN {
        rig.turn();
        idle = if rig.events.is_empty() { idle + 1 } else { 0 };
        assert!(idle < 1000, "receiving never resumed at {} bytes", total(&received));
        for event in rig.events.drain(..) {
            let Event::Received { conn, bytes } = event else { continue };
            let bytes = bytes.expect("receiving works");
            let index = clients.iter().position(|(_, id)| *id == conn).expect("a known connection");
            received[index].extend_from_slice(bytes.as_ref());
            kept.push(bytes);
        }
        assert!(kept.len() <= 4, "more buffers than there are");
        if idle == 2 {
            kept.clear();
        }
    }
    for (index, bytes) in received.iter().enumerate() {
        let wrong = (0..LEN).find(|&at| bytes[at] != pattern(at, index as u64));
        assert_eq!((bytes.len(), wrong), (LEN, None), "connection {index}");
    }
}

/// A file goes out from the page cache, over as many partial sends as a slow reader takes; behind its
/// end nothing is sent; a peer that is gone is an error and no signal.
pub(crate) fn files_are_sent<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    const LEN: usize = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory for the test");
    let (_, file) = patterned_file(dir.path(), LEN, 8);
    let (options, address) = Options::listening_with_small_buffers();
    let mut rig = Rig::new(make(options));
    let (mut client, id) = rig.connect(address);
    let reader = std::thread::spawn(move || {
        expect_pattern(&mut client, LEN, 8);
        client
    });
    let mut done = 0;
    while done < LEN {
        let position = Position::new(done as u64);
        rig.net(NetOp::SendFile(SendFile { conn: id, file: file.clone(), position, len: LEN - done }));
        done += rig.file_sent(id).expect("the peer reads");
    }
    let end = Position::new(LEN as u64);
    rig.net(NetOp::SendFile(SendFile { conn: id, file: file.clone(), position: end, len: 4096 }));
    assert_eq!(rig.file_sent(id), Ok(0));
    let client = reader.join().expect("the reader got the pattern");
    rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).expect("linger");
    drop(client);
    let start = Position::new(0);
    let failed = loop {
        rig.net(NetOp::SendFile(SendFile { conn: id, file: file.clone(), position: start, len: LEN }));
        if let Err(errno) = rig.file_sent(id) {
            break errno;
        }
    };
    assert!(matches!(failed, Errno::CONNRESET | Errno::PIPE), "{failed}");
    rig.close(id);
}

/// A table of two: the third client is not served until one of the two has gone. Slots are reused
/// under new generations.
pub(crate) fn a_full_table_waits<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let limits = ShardLimits { connections_max: 2, ..options.limits };
    let mut rig = Rig::new(make(Options { limits, ..options }));
    let (_first_client, first) = rig.connect(address);
    let (_second_client, second) = rig.connect(address);
    assert_ne!(first.slot, second.slot);
    let third_client = TcpStream::connect(address).expect("the backlog takes it");
    (0..5).for_each(|_| rig.turn());
    assert!(rig.events.is_empty(), "no room, no connection");
    rig.close(first);
    let (_fourth_client, third) = rig.connect(address);
    assert_eq!(third.slot, first.slot);
    assert_ne!(third.generation, first.generation);
    drop(third_client);
    rig.close(second);
}

/// Many short connections, each with a request, an answer and a close from either side: every slot and
/// every byte of memory comes back.
pub(crate) fn many_short_connections<D: Driver>(make: impl Fn(Options) -> D, count: usize)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let slots = options.limits.connections_max;
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::kib(64), 9);
    for round in 0..count {
        let (mut client, id) = rig.connect(address);
        assert!(id.slot < slots);
        rig.net(NetOp::Receive(id));
        client.write_all(&[7]).expect("the server reads");
        assert_eq!(rig.received(id), [7]);
        rig.send_all(id, &body.lease(0..1000));
        match round % 3 {
            0 => expect_pattern(&mut client, 1000, 9),
            1 => drop(client),
            _ => {}
        }
        rig.close(id);
        rig.events.clear();
    }
    drop(body);
    assert_eq!(arena.free_len(), arena.capacity());
}

/// The driver is dropped while a send is stuck and a receive waits: it ends them first, so that all
/// memory is back when `drop` returns.
pub(crate) fn dropped_in_the_middle<D: Driver>(make: impl Fn(Options) -> D)
where
    D::Platform: LinuxTypes,
{
    let (options, address) = Options::listening();
    let mut rig = Rig::new(make(options));
    let mut arena = arena();
    let body = patterned(&mut arena, ByteCount::mib(1), 10);
    let (mut client, id) = rig.connect(address);
    rig.net(NetOp::Receive(id));
    stick(&mut rig, id, &body.lease(0..1 << 20));
    drop(body);
    assert!(arena.free_len() < arena.capacity());
    drop(rig);
    assert_eq!(arena.free_len(), arena.capacity());
    let mut rest = Vec::new();
    let ended = client.read_to_end(&mut rest);
    assert!(ended.is_ok() || !rest.is_empty(), "the connection ended: {ended:?}");
}
